"""DSpark Algorithm 1: admit the likeliest drafts while throughput strictly rises, then stop.

Sort all survivals of the step in descending order s_1 >= s_2 >= ... and admit them one by one while

    Theta(B) = (N + s_1 + ... + s_B) * SPS(B),   SPS(B) = 1 / (draft_s + verify_s[T + B])

strictly rises; stop at the first B where it does not. N counts the requests that get a token anyway
and T the step's other tokens.

Source: DSpark (arXiv 2607.05147), Algorithm 1; AMD's ATOM ships it (see ``atom``).
Reads current values only, with no lag. The early stop is what keeps it lossless: whether a draft is
admitted depends on drafts that rank before it, so never on its own token's value or a later one
(its appendix A shows the bias of a search over the whole curve). On a staircase cost
curve the stop comes too early: the first token of a new step never pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.base import Policy, VerifyPlan, VerifyState
from policies.order import early_stop_budget
from policies.registry import register
from policies.select import step_cost_s, survivals, top_budget


@register
class ConfidenceScheduled(Policy):
    """Algorithm 1 with the early stop, on this step's confidences."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "confidence"

    def __init__(self, gamma: int, config: Config) -> None:
        """Nothing to keep."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The sorted prefix up to the first descent of throughput."""
        survival = survivals(state.current, state.drafted)
        budget, _ = early_stop_budget(survival, state.sampling_requests, *step_cost_s(state))
        return VerifyPlan(top_budget(survival, state.drafted, budget))
