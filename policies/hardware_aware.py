"""DSpark section 5.2: budget by global argmax on two-step-old confidences, ranking by current ones.

    B* = argmax over all B of (N + s_1 + ... + s_B) / (draft_s + verify_s[T + B])

with s the sorted survivals as they were ``lag`` steps ago (1 for a request too new for that), so
that the host can choose B before this step's drafts exist. The B* largest *current* survivals are
then admitted.

Source: DSpark (arXiv 2607.05147), section 5.2.
With lag >= 1 it is lossless: B* is known before any of this step's tokens is drawn, and a draft is
in the top B* unless enough drafts outrank it, which later drafts of its own request never do. With
lag = 0 it is the anticipating scheduler of appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.base import Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.registry import register
from policies.select import lagged_budget, spend


@register
class HardwareAware(Policy):
    """Lagged argmax for the size, current values for the order."""

    @dataclass(frozen=True)
    class Config:
        """``lag``: age in steps of the confidences that size the budget."""

        lag: int = 2

    name: ClassVar[str] = "hardware-aware"

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, lag=(0, 16))
        self.lag = config.lag
        self.anticipating = config.lag == 0

    def size(self, state: VerifyState) -> int:
        """The argmax of the whole curve, on lagged values."""
        cost, base = state.cost, state.sampling_requests
        return lagged_budget(
            state.lagged, state.drafted, base, 0, state.other_tokens, cost.draft_s, cost.verify_s
        )

    def plan(self, state: VerifyState) -> VerifyPlan:
        """That budget, spent on the best current drafts."""
        budget = self.size(state) if state.budget is None else state.budget
        return VerifyPlan(spend(state.current, state.drafted, budget))
