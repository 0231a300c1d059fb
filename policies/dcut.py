"""D-Cut: one of four keep ratios per step, by measured cost, on this step's own probabilities.

    rho* = argmax over rho in {1/4, 1/2, 3/4, 1} of (R + s_1 + ... + s_K) / C(R, rho),
    K = ceil(rho * R * gamma),  s the sorted survivals of the current drafts

and the K best drafts of the batch are verified. C is the step's cost at that ratio, profiled at
start; here the belief's draft time plus its target pass at T + K tokens.

Source: AngelSlim D-Cut (arXiv 2607.14647); its probabilities are the drafter's softmax values, so
it needs no confidence head.
Sizes on current values over a whole menu: anticipating, so sampled output is biased. All of its
published numbers are greedy, where that is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit

from policies.base import Floats, Policy, VerifyPlan, VerifyState
from policies.registry import register
from policies.select import step_cost_s, survivals, top_budget

RATIOS = (0.25, 0.5, 0.75, 1.0)


@njit(cache=True, error_model="numpy")
def _best_ratio(ascending: Floats, base: float, fixed_s: float, verify_s: Floats) -> int:
    best, best_rate, tokens, admitted = 0, -1.0, float(base), 0
    for ratio in RATIOS:
        kept = int(np.ceil(ratio * (verify_s.size - 1)))
        while admitted < kept:
            admitted += 1
            tokens += ascending[ascending.size - admitted]
        rate = tokens / (fixed_s + verify_s[kept])
        if rate > best_rate:
            best, best_rate = kept, rate
    return best


@register
class DCut(Policy):
    """Argmax over four keep ratios, on current values."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "dcut"
    anticipating = True
    signal: ClassVar[str] = "token_prob"

    def __init__(self, gamma: int, config: Config) -> None:
        """Nothing to keep."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The ratio with the best utility, spent on the best drafts."""
        survival = survivals(state.current, state.drafted)
        fixed_s, verify_s = step_cost_s(state)
        ascending = np.sort(survival, axis=None)
        budget = _best_ratio(ascending, state.drafted.size, fixed_s, verify_s)
        return VerifyPlan(top_budget(survival, state.drafted, budget))
