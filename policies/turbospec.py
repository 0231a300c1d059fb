"""TurboSpec (SmartSpec): one length for the batch, by goodput under one running acceptance rate.

    goodput(k) = R * (1 - alpha^(k+1)) / (1 - alpha) / (draft_s(R, k) + verify_s(T + R k))

k is scanned upwards from 0 and the scan stops at the first fall; goodput(0) counts 10 % more, so
that speculation starts only when it clearly pays. alpha is one number for all requests, an
exponential mean of accepted over tried tokens; k is chosen anew every ``interval`` steps. While
k = 0 nothing is tried and alpha stands still.

Source: TurboSpec/SmartSpec (arXiv 2406.14066) and its "DSD" code in vLLM forks: alpha starts at
0.7, keeps 0.85 of itself per step, interval 20, bonus 1.1.
Reads outcomes of past steps. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, StepOutcome, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.limits import in_range
from policies.registry import register


def expected_tokens(alpha: float, k: int) -> float:
    """Tokens per request and step, bonus included, when each draft is accepted with ``alpha``."""
    return float(np.sum(alpha ** np.arange(k + 1)))


@register
class TurboSpec(Policy):
    """Uniform k that maximises goodput."""

    @dataclass(frozen=True)
    class Config:
        """``alpha``: first acceptance rate; ``keep``: its weight per step; ``interval``: steps."""

        alpha: float = 0.7
        keep: float = 0.85
        interval: int = 20
        idle_bonus: float = 1.1

    name: ClassVar[str] = "turbospec"
    needs_confidences: ClassVar[bool] = False
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, alpha=(0, 1), keep=(0, 1), interval=(1, 1 << 20))
        in_range(self.name, config, idle_bonus=(0, 100))
        self.config, self.gamma = config, gamma
        self.alpha = float(config.alpha)
        self.first_draft, self.draft_lengths = gamma, tuple(range(1, gamma + 1))
        self._plans = 0

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The current k for everyone; a new k now and then, drafted from the next step on."""
        k = self.first_draft
        if self._plans % self.config.interval == 0 and state.drafted.size:
            self.first_draft = self._best(state)
        self._plans += 1
        return uniform_plan(state, k, self.first_draft)

    def observe(self, outcome: StepOutcome) -> None:
        """Fold this step's accepted share into alpha; a rejection ends a request's trials."""
        tried = int(np.minimum(outcome.accepted + 1, outcome.lengths).sum())
        if tried:
            rate = float(outcome.accepted.sum()) / tried
            self.alpha = self.config.keep * self.alpha + (1 - self.config.keep) * rate

    def _best(self, state: VerifyState) -> int:
        best, best_rate = 0, self._goodput(state, 0) * self.config.idle_bonus
        for k in range(1, self.gamma + 1):
            rate = self._goodput(state, k)
            if rate < best_rate:
                break
            best, best_rate = k, rate
        return best

    def _goodput(self, state: VerifyState, k: int) -> float:
        requests = state.drafted.size
        verify_s = state.cost.verify_curve_s(state.other_tokens + requests * k, 1)[0]
        step_s = state.cost.draft_time_s(requests, k) + float(verify_s)
        return requests * expected_tokens(self.alpha, k) / step_s
