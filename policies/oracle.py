"""Upper bound: a scheduler that knows how many of its drafts each block will have accepted.

    B* = argmax over B of (N + B) / (draft_s + verify_s[T + B]),  B at most the sum of accepted,

verifying accepted drafts alone, earlier positions first: none is verified that this argmax would
not pay for, and none is wasted unless verifying all on the plain path is faster. How far the next
block is drafted (0: not at all) is what would have paid most lately, by the labels of the last 32
steps of its kind (with or without prefill): it knows nothing of later blocks. It is told what
contexts cost.

Analysis only: no engine can know the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit

from policies.base import Floats, Ints, Policy, VerifyPlan, VerifyState
from policies.registry import register
from policies.select import draft_counts, survivals, top_budget

STEPS = 32
"""Steps of each kind that the choice of draft length remembers."""


@njit(cache=True, error_model="numpy")
def _best(
    useful: int, drafted: int, base: float, draft_s: float, ragged_s: Floats, verify_s: Floats
) -> tuple[int, float]:
    """Best budget and its tokens per second: up to ``useful`` accepted drafts, or all ``drafted``
    on the plain path."""
    best, best_rate = drafted, (base + useful) / (draft_s + verify_s[drafted])
    for budget in range(useful + 1):
        rate = (base + budget) / (draft_s + ragged_s[budget])
        if rate > best_rate:
            best, best_rate = budget, rate
    return best, best_rate


@njit(cache=True)
def _rates(
    accepted: Ints, base: float, draft_s: Floats, ragged_s: Floats, verify_s: Floats
) -> Floats:
    """[gamma + 1] best tokens per second had everyone drafted 0..gamma."""
    rates = np.empty(draft_s.size)
    for k in range(draft_s.size):
        useful = 0
        for length in accepted:
            useful += min(length, k)
        rates[k] = _best(useful, k * accepted.size, base, draft_s[k], ragged_s, verify_s)[1]
    return rates


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
        self.first_draft, self.draft_lengths = gamma, tuple(range(1, gamma + 1))
        self._rates = np.zeros((2, gamma + 1))
        self._seen = [0, 0]

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Accepted drafts only; ValueError where the labels are missing."""
        accepted, cost, rows = state.true_accepted, state.cost, state.drafted.size
        if accepted is None:
            raise ValueError("policy 'oracle' needs true accepted lengths: only a replay has them")
        if rows == 0:
            return VerifyPlan(state.drafted.copy())
        most = rows * (cost.draft_s.shape[0] - 1) + 1
        read_s = cost.context_s * float(state.context_tokens.sum())
        verify_s = cost.verify_curve_s(state.other_tokens, most) + read_s
        ragged_s = cost.ragged_curve_s(state.other_tokens, most, rows) + read_s
        draft_s = cost.draft_s[:, min(rows, cost.draft_s.shape[1] - 1)]
        base = float(state.sampling_requests)
        kind = int(state.other_tokens > rows)
        self._seen[kind] = min(self._seen[kind] + 1, STEPS)
        rates = _rates(accepted, base, draft_s, ragged_s, verify_s)
        self._rates[kind] += (rates / rates[0] - self._rates[kind]) / self._seen[kind]
        self.first_draft = rates.size - 1 - int(np.argmax(self._rates[kind][::-1]))
        useful = np.minimum(state.drafted, accepted)
        _, longest, total = draft_counts(state.drafted)
        spent_s = float(draft_s[longest])
        budget, _ = _best(int(useful.sum()), total, base, spent_s, ragged_s, verify_s)
        draft = np.full(rows, self.first_draft)
        if budget == total:
            return VerifyPlan(state.drafted.copy(), draft, adaptive=False)
        survival = survivals(np.ones(state.current.shape), useful)
        return VerifyPlan(top_budget(survival, useful, budget), draft)
