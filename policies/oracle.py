"""Upper bound: a scheduler that knows how many of its drafts each block will have accepted.

    B* = argmax over B of (N + B) / (draft_s + verify_s[T + B]),  B at most the sum of accepted,

verifying accepted drafts alone, earlier positions first: no token is ever wasted, and none is
verified that this argmax would not pay for. Where even that is slower than plain decoding, the next
step drafts nothing. It knows nothing of later blocks.

Analysis only: no engine can know the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Floats, Ints, Policy, VerifyPlan, VerifyState
from policies.order import best_budget
from policies.registry import register
from policies.select import survivals, top_budget


@register
class Oracle(Policy):
    """The argmax over true labels."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "oracle"
    anticipating = True
    analysis_only: ClassVar[bool] = True
    cost_rule = "stairs"
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        self.gamma = self.first_draft = gamma

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Accepted drafts only; ValueError where the labels are missing."""
        if state.true_accepted is None:
            raise ValueError("policy 'oracle' needs true accepted lengths: only a replay has them")
        useful = np.minimum(state.drafted, state.true_accepted)
        budget, _ = self._best(state, useful)
        plain = state.sampling_requests / self._seconds(state, 1)[0]
        self.first_draft = self.gamma * (self._best(state, state.true_accepted)[1] > plain)
        survival = survivals(np.ones(state.current.shape), useful)
        lengths = top_budget(survival, useful, budget)
        return VerifyPlan(lengths, np.full(useful.size, self.first_draft))

    def _best(self, state: VerifyState, useful: Ints) -> tuple[int, float]:
        """Best budget and its tokens per second when ``useful`` [R] drafts would be accepted."""
        verify_s = self._seconds(state, int(useful.sum()) + 1)
        draft_s = state.cost.draft_time_s(useful.size)
        ones = np.ones(verify_s.size - 1)
        return best_budget(ones, state.sampling_requests, draft_s, verify_s)

    def _seconds(self, state: VerifyState, count: int) -> Floats:
        """The target pass at 0, 1, ... drafts; a bound is told what contexts cost."""
        context_s = state.cost.context_s * float(state.context_tokens.sum())
        seconds: Floats = state.cost.verify_curve_s(state.other_tokens, count) + context_s
        return seconds
