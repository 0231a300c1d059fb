"""A Nightjar-like bandit: learn the best uniform length per batch-size bucket from measured speed.

Context: bucket = floor(log2 R). Arms: k = 0..gamma. Reward of a step: (R + accepted) / seconds.
Every ``hold`` steps the arm with the largest

    mean_k / best + bonus * sqrt(ln(n) / n_k)

is taken, n the discounted counts of the bucket (so it forgets) and best its largest mean; an arm
never tried comes first, from gamma downwards. Turning drafting on again costs ``switch_cost`` of
the mean (the drafter's cache must be refilled). Steps with prefill tokens teach nothing.

Source: Nightjar (arXiv 2512.22420): one bandit per batch bucket, throughput as reward, a switching
cost; its exact index was not available, so this is discounted UCB.
Reads outcomes of past steps. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Floats, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.limits import in_range
from policies.registry import register

BUCKETS = 24


@register
class Bandit(Policy):
    """Discounted UCB over uniform lengths."""

    @dataclass(frozen=True)
    class Config:
        """``hold``: steps per pull; ``discount``: per observed step; the rest are fractions."""

        hold: int = 8
        bonus: float = 0.1
        discount: float = 0.998
        switch_cost: float = 0.02

    name: ClassVar[str] = "bandit"
    needs_confidences: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, hold=(1, 1 << 20), bonus=(0, 100), discount=(0, 1))
        in_range(self.name, config, switch_cost=(0, 1))
        self.config = config
        self._weight = np.zeros((BUCKETS, gamma + 1))
        self._reward = np.zeros((BUCKETS, gamma + 1))
        self._plans = 0
        self._cell: tuple[int, int] | None = None
        self.first_draft, self.draft_lengths = gamma, tuple(range(1, gamma + 1))

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The arm whose drafts exist; a new arm now and then, drafted from the next step on."""
        arm, bucket = self.first_draft, max(1, state.drafted.size).bit_length() - 1
        decode_only = state.other_tokens == state.drafted.size > 0
        self._cell = (bucket, arm) if decode_only and state.drafted.max() <= arm else None
        self._plans += 1
        if self._plans % self.config.hold == 0:
            self.first_draft = int(np.argmax(self._index(bucket, arm)[::-1]))
            self.first_draft = self._weight.shape[1] - 1 - self.first_draft
        return uniform_plan(state, arm, self.first_draft)

    def observe(self, outcome: StepOutcome) -> None:
        """Credit the arm with this step's tokens per second."""
        if self._cell is None:
            return
        rate = (outcome.accepted.size + float(outcome.accepted.sum())) / outcome.step_time_s
        bucket = self._cell[0]
        self._weight[bucket] *= self.config.discount
        self._reward[bucket] *= self.config.discount
        self._weight[self._cell] += 1.0
        self._reward[self._cell] += rate

    def _index(self, bucket: int, arm: int) -> Floats:
        weight = self._weight[bucket]
        tried = weight > 0
        mean = np.divide(self._reward[bucket], weight, out=np.zeros_like(weight), where=tried)
        if arm == 0:
            mean[1:] *= 1.0 - self.config.switch_cost
        spread = np.sqrt(np.log1p(weight.sum()) / np.maximum(weight, 1e-12))
        index = mean / max(float(mean.max()), 1e-12) + self.config.bonus * spread
        return np.where(tried, index, np.inf)
