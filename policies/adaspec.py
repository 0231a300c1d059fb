"""AdaSpec (SpecServe): verify the ranking's prefix with the best efficiency that keeps the SLO.

Rank all drafts of the batch by cumulative confidence. Over prefixes B of that ranking,

    efficiency E(B) = (N + s_1 + ... + s_B) / t(B),
    predicted TPOT of request r = t(B) / (1 + sum of its admitted s),

keep the prefixes where the slowest request meets ``tpot_slo_s`` and take the largest E among them;
if none does, the one that misses by least.

Source: AdaSpec/SpecServe (arXiv 2503.05096), from its abstract and secondary descriptions: details
unverified. Its step-by-step stop of drafting has no counterpart for a drafter that proposes the
whole block at once.
Sizes on current values over the whole curve: anticipating, so sampled output is biased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit

from policies.base import Floats, Ints, Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.registry import register
from policies.select import step_cost_s, survivals, top_budget


@njit(cache=True)
def _best_prefix(survival: Floats, order: Ints, base: float, step_s: Floats, slo_s: float) -> int:
    rows, gamma = survival.shape
    tokens = np.ones(rows)
    slowest, best, best_rate, best_miss, total = 0, 0, 0.0, np.inf, base
    for admitted in range(step_s.size):
        if admitted:
            slot = order[order.size - admitted]
            row, gain = slot // gamma, survival[slot // gamma, slot % gamma]
            tokens[row] += gain
            total += gain
            if row == slowest:
                slowest = int(np.argmin(tokens))
        miss = max(0.0, step_s[admitted] / tokens[slowest] - slo_s)
        rate = total / step_s[admitted]
        if miss < best_miss or (miss == best_miss and rate > best_rate):
            best, best_rate, best_miss = admitted, rate, miss
    return best


@register
class AdaSpec(Policy):
    """Efficiency argmax under a TPOT limit, on current values."""

    @dataclass(frozen=True)
    class Config:
        """``tpot_slo_s``: seconds per output token that every request should meet."""

        tpot_slo_s: float = 0.05

    name: ClassVar[str] = "adaspec"
    anticipating = True

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, tpot_slo_s=(0, 1e6))
        self.slo_s = float(config.tpot_slo_s)

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The most efficient prefix that keeps the slowest request in time."""
        survival = survivals(state.current, state.drafted)
        if survival.size == 0:
            return VerifyPlan(state.drafted.copy())
        fixed_s, verify_s = step_cost_s(state)
        order = np.argsort(survival, axis=None, kind="stable")
        base = float(state.sampling_requests)
        budget = _best_prefix(survival, order, base, fixed_s + verify_s, self.slo_s)
        return VerifyPlan(top_budget(survival, state.drafted, budget))
