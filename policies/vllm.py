"""vLLM's adaptive verification: cost-table argmax on one-step-old confidences.

    B* = first argmax over B of (N_s + s_1 + ... + s_B) / (draft_cost[batch] + verify_cost[T + B])

N_s counts the requests that sample this step (prefills that end included), T all other tokens
(prefill chunks included), draft_cost is looked up at the whole batch, and both tables round up to
the next profiled size over a running maximum. The B* largest current survivals are admitted. No
calibration, no hysteresis, no minimum length, no SLO term.

Source: vLLM 0.33 ``adaptive_verification.py`` (vllm-project/vllm#47808).
Sizes on values one step old, ranks by current ones: lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.base import Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.registry import register
from policies.select import lagged_budget, spend


@register
class Vllm(Policy):
    """One-step lag, global argmax, prefill counted, tables rounded up."""

    @dataclass(frozen=True)
    class Config:
        """``lag``: age in steps of the confidences that size the budget."""

        lag: int = 1

    name: ClassVar[str] = "vllm"
    cost_rule = "ceil"

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, lag=(0, 16))
        self.lag = config.lag
        self.anticipating = config.lag == 0

    def size(self, state: VerifyState) -> int:
        """The argmax of the whole curve, on lagged values; drafting charged for the whole batch."""
        cost, requests = state.cost, state.sampling_requests
        return lagged_budget(
            state.lagged, state.drafted, requests, requests, state.other_tokens,
            cost.draft_s, cost.verify_s,
        )  # fmt: skip

    def plan(self, state: VerifyState) -> VerifyPlan:
        """That budget, spent on the best current drafts."""
        budget = self.size(state) if state.budget is None else state.budget
        return VerifyPlan(spend(state.current, state.drafted, budget))
