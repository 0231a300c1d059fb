"""TensorRT-LLM's planner: interpolated argmax with a minimum gain, and a concurrency limit.

    B* = argmax over B of (N + s_1 + ... + s_B) / (bias + alpha(R) + theta(T + B))

over a linearly interpolated table (a floor lookup would make tokens look free just before a riser);
trims only if the predicted goodput beats the full block by ``min_gain``, else takes the native
fixed path. Above ``max_concurrency`` requests it neither drafts nor verifies (0: no limit).

Source: NVIDIA/TensorRT-LLM#17056 and #18392 (``minimum_predicted_gain``: 0 in tests, 1 % against
profiler noise), ``max_concurrency`` of its released speculation options. The pull requests do not
say how old the sizing confidences are; two steps, as in the paper.
Sizes on lagged values, ranks by current ones: lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.base import Policy, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.limits import in_range
from policies.order import best_budget
from policies.registry import register
from policies.select import spend, step_cost_s, survivals


@register
class TensorRtLlm(Policy):
    """Lagged argmax that trims only when it clearly pays."""

    @dataclass(frozen=True)
    class Config:
        """``min_gain``: fraction; ``max_concurrency``: requests, 0 for no limit; ``lag``: steps."""

        min_gain: float = 0.01
        max_concurrency: int = 0
        lag: int = 2

    name: ClassVar[str] = "tensorrt-llm"

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, min_gain=(0, 10), max_concurrency=(0, 1 << 20), lag=(0, 16))
        self.config, self.gamma = config, gamma
        self.lag = config.lag
        self.anticipating = config.lag == 0

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Nothing above the limit, else the budget spent on the best current drafts."""
        limit = self.config.max_concurrency
        crowded = 0 < limit < state.sampling_requests
        self.first_draft = 0 if crowded else self.gamma
        if crowded:
            return uniform_plan(state, 0)
        budget = self.size(state) if state.budget is None else state.budget
        adaptive = budget < state.drafted.sum()
        return VerifyPlan(spend(state.current, state.drafted, budget), adaptive=bool(adaptive))

    def size(self, state: VerifyState) -> int:
        """The argmax on lagged values; the full block when trimming gains little."""
        fixed_s, verify_s = step_cost_s(state)
        stale, tokens = survivals(state.lagged, state.drafted), state.sampling_requests
        budget, rate = best_budget(stale, tokens, fixed_s, verify_s)
        full_rate = (tokens + float(stale.sum())) / (fixed_s + verify_s[-1])
        trims = rate >= (1.0 + self.config.min_gain) * full_rate
        return budget if trims else int(state.drafted.sum())
