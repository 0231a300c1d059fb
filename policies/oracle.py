"""Upper bound: a scheduler that knows how many of its drafts each block will have accepted.

    B* = argmax over B of (N + B) / (draft_s + verify_s[T + B]),  B at most the sum of accepted,

verifying accepted drafts alone, earlier positions first: no token is ever wasted, and none is
verified that this argmax would not pay for. It knows nothing of later blocks.

Analysis only: no engine can know the labels. Drafting is not trimmed, so its gap to a policy that
also skips drafting can close or turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.order import best_budget
from policies.registry import register
from policies.select import step_cost_s, survivals, top_budget


@register
class Oracle(Policy):
    """The argmax over true labels."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "oracle"
    anticipating = True
    analysis_only: ClassVar[bool] = True

    def __init__(self, gamma: int, config: Config) -> None:
        """Nothing to keep."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Accepted drafts only; ValueError where the labels are missing."""
        if state.true_accepted is None:
            raise ValueError("policy 'oracle' needs true accepted lengths: only a replay has them")
        useful = np.minimum(state.drafted, state.true_accepted)
        survival = survivals(np.ones(state.current.shape), useful)
        fixed_s, verify_s = step_cost_s(state)
        verify_s = verify_s[: int(useful.sum()) + 1]
        budget, _ = best_budget(survival, state.sampling_requests, fixed_s, verify_s)
        return VerifyPlan(top_budget(survival, useful, budget))
