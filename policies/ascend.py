"""vllm-ascend's dynamic speculation: a budget from how many survivals pass a bar, no cost model.

Every ``interval`` steps: k = ceil(#{S >= threshold} / R), made odd (k + 1 if even and below gamma:
an even window of k + 1 tokens is cheaper there), held in [min_length, gamma]. Each step everyone
gets ``min_length`` and the rest of R * k goes to the largest current survivals.

Source: vllm-ascend 0.30 ``dynamic_spec_config`` (vllm-project/vllm-ascend#13216): threshold 0.3,
interval 16, first k 5, minimum 1.
The count is taken on confidences one step old, so the budget is known before the drafts; the
ranking reads current ones: lossless. (A count on the same step's values would be anticipating.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.registry import register
from policies.select import survivals, top_budget


@register
class Ascend(Policy):
    """R * k tokens, k from a survival count now and then."""

    @dataclass(frozen=True)
    class Config:
        """``threshold``: survival; ``interval``: steps; lengths in draft tokens per request."""

        threshold: float = 0.3
        interval: int = 16
        initial: int = 5
        min_length: int = 1

    name: ClassVar[str] = "ascend"
    needs_cost: ClassVar[bool] = False
    lag = 1

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, threshold=(0, 1), interval=(1, 1 << 20), min_length=(0, gamma))
        in_range(self.name, config, initial=(0, 64))
        self.config, self.gamma = config, gamma
        self._k = min(config.initial, gamma)
        self._plans = 0

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The minimum for everyone, the rest to the likeliest drafts."""
        self._plans += 1
        requests = state.drafted.size
        if self._plans % self.config.interval == 0 and requests:
            self._k = self._length(state)
        survival = survivals(state.current, state.drafted)
        survival[:, : self.config.min_length] += 1.0  # ahead of every true survival
        return VerifyPlan(top_budget(survival, state.drafted, requests * self._k))

    def _length(self, state: VerifyState) -> int:
        stale = survivals(state.lagged, state.drafted)
        passing = int(np.count_nonzero(stale >= self.config.threshold))
        k = ceil(passing / state.drafted.size)
        if k % 2 == 0 and k < self.gamma:
            k += 1
        return max(self.config.min_length, min(k, self.gamma))
