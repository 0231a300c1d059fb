"""SGLang's DSpark planner: argmax on two-step-old confidences over a floor or an additive table.

    n* = first argmax over n of (R + s_1 + ... + s_n) / T(R, R + n),   only s >= 1e-6 count

``table=additive``: T = bias + alpha(R) + theta(M), interpolated and clamped at both ends.
``table=1d``: steps per second by tokens alone, measured on the diagonal (M tokens came from the
fewest requests that can make them, M / (gamma + 1)) and looked up at the largest probe below.
``align_tiers`` then raises n to the captured size that the step is padded to anyway;
``min_length`` gives every request that many drafts at least (SGLang: the anchor alone, 0).
A step with prefill tokens makes no decision: every request verifies its full window.

Source: SGLang 0.5.23 ``dspark_planner.py``, ``dspark_schedule.py`` (sgl-project/sglang#30261).
Sizes on values two steps old, ranks by current ones with a value-independent tie-break: lossless.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Floats, Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.order import best_budget
from policies.registry import register
from policies.select import spend, step_cost_s, survivals

MIN_SURVIVAL = 1e-6
COST_RULE = {"additive": "clamp", "1d": "floor"}


@register
class Sglang(Policy):
    """Two-step lag, global argmax, no decision on prefill steps."""

    @dataclass(frozen=True)
    class Config:
        """``table``: 'additive' or '1d'; ``lag`` in steps; ``min_length`` in draft tokens."""

        table: str = "additive"
        lag: int = 2
        min_length: int = 0
        align_tiers: bool = False

    name: ClassVar[str] = "sglang"

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, lag=(0, 16), min_length=(0, gamma))
        if config.table not in COST_RULE:
            raise ValueError(f"policy 'sglang': table={config.table!r} must be additive or 1d")
        self.config, self.gamma = config, gamma
        self.cost_rule = COST_RULE[config.table]
        self.lag = config.lag
        self.anticipating = config.lag == 0

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The budget spent on the best current drafts, floored per request when asked to."""
        if state.other_tokens > state.drafted.size:
            return VerifyPlan(state.drafted.copy(), adaptive=False)
        budget = self.size(state) if state.budget is None else state.budget
        lengths = spend(state.current, state.drafted, budget)
        floor = np.minimum(state.drafted, self.config.min_length)
        return VerifyPlan(np.maximum(lengths, floor))

    def size(self, state: VerifyState) -> int:
        """The argmax on lagged values, aligned to a tier when asked to."""
        stale = survivals(state.lagged, state.drafted)
        candidates = int(np.count_nonzero(stale >= MIN_SURVIVAL))
        fixed_s, verify_s = step_cost_s(state)
        if self.config.table == "1d":
            fixed_s, verify_s = 0.0, self._diagonal(state, verify_s)
        verify_s = verify_s[: candidates + 1]
        budget, _ = best_budget(stale, state.drafted.size, fixed_s, verify_s)
        return _fill_tier(state, budget) if self.config.align_tiers else budget

    def _diagonal(self, state: VerifyState, verify_s: Floats) -> Floats:
        draft_s = state.cost.draft_s[-1]
        requests = np.arange(state.other_tokens, state.other_tokens + verify_s.size)
        requests //= self.gamma + 1
        diagonal: Floats = verify_s + draft_s[np.minimum(requests, draft_s.size - 1)]
        return diagonal


def _fill_tier(state: VerifyState, budget: int) -> int:
    """The budget that fills the captured size to which this step is padded."""
    tiers, tokens = state.cost.tiers, state.other_tokens + budget
    tier = bisect_left(tiers, tokens)
    return tiers[tier] - state.other_tokens if tier < len(tiers) else budget
