"""How long an engine step takes."""

from __future__ import annotations

from collections.abc import Generator
from itertools import repeat

import numpy as np

from sim import state as s
from sim.world import World


class StepClock:
    """How long steps take: the latency model, with its noise."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.model, self.extrapolate = world.latency, world.config.extrapolate
        self.verify_s: list[float] = world.latency.verify_s.tolist()
        self.draft_s: list[list[float]] = world.latency.draft_s.tolist()
        self.spread = world.latency.spread if world.config.spread else 0.0
        self.noise = self._noise(rng)

    def step_time_s(self, counts: list[int], budget: int, adaptive: bool) -> float:
        """Seconds of a step that verifies ``budget`` drafts (``LatencyModel``'s formula)."""
        model, context = self.model, counts[s.CONTEXT_SUM]
        if context > model.max_context_tokens:
            model.check_range(0, 0, context, self.extrapolate)
        tokens = counts[s.DECODING] + counts[s.PREFILL_TOKENS] + budget
        seconds = model.overhead_s + self.verify_s[tokens] + model.context_s * context
        if counts[s.DECODING] and counts[s.LONGEST]:
            seconds += self.draft_s[counts[s.LONGEST]][counts[s.DRAFTING]]
            seconds += model.draft_context_s * counts[s.DRAFT_CONTEXT]
            seconds += model.refill_s * counts[s.REFILL]
        if adaptive:
            seconds += model.adaptive_s + model.adaptive_token_s * (counts[s.DECODING] + budget)
        return seconds * next(self.noise)

    def _noise(self, rng: np.random.Generator) -> Generator[float, None, None]:
        """Factors on the median step time, drawn in blocks."""
        if not self.spread:
            yield from repeat(1.0)
        while True:
            yield from np.exp(self.spread * rng.standard_normal(1024)).tolist()
