"""Changing the rate of traffic by a named method, and merging independent streams.

The method decides what becomes of the bursts, so results must name it:

time_scale  runs the clock ``factor`` times faster: keeps the CV, compresses the day.
thin        keeps each arrival with probability ``factor``: wall clock kept, towards Poisson.
superpose   adds independent copies (the last one thinned): wall clock kept, more clients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from sim.arrivals import ArrivalProcess, Floats, child, first_of, generator
from sim.curves import Diurnal

Method = Literal["time_scale", "thin", "superpose"]
METHODS: tuple[Method, ...] = ("time_scale", "thin", "superpose")


@dataclass(frozen=True)
class Scaled:
    """A process at ``factor`` times its rate, by one of the methods above."""

    process: ArrivalProcess
    factor: float
    method: Method

    def __post_init__(self) -> None:
        check_scaling(self.factor, self.method)

    @property
    def rate_rps(self) -> float:
        return self.process.rate_rps * self.factor

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        if self.method == "time_scale":
            return self.process.first(count, seed) / self.factor
        if self.method == "thin":
            return self._thinned(count, seed)
        copies, rest = divmod(self.factor, 1.0)
        parts: list[ArrivalProcess] = [self.process] * int(copies)
        if rest:
            parts.append(Scaled(self.process, rest, "thin"))
        return merged(parts, count, seed)[0]

    def _thinned(self, count: int, seed: np.random.SeedSequence) -> Floats:
        if isinstance(self.process, Diurnal):
            curve_rps = self.process.curve_rps * self.factor
            return replace(self.process, curve_rps=curve_rps).first(count, seed)

        def draw(candidates: int) -> Floats:
            times = self.process.first(candidates, child(seed, 0))
            return times[generator(seed, 1).random(candidates) < self.factor]

        return first_of(count, int(1.05 * count / self.factor), draw)


def merged(
    parts: list[ArrivalProcess], count: int, seed: np.random.SeedSequence
) -> tuple[Floats, npt.NDArray[np.int16]]:
    """The first ``count`` arrivals of independent processes, and which process each came from."""
    total_rps = sum(p.rate_rps for p in parts)
    seeds = [child(seed, i) for i in range(len(parts))]
    drawn = [0] * len(parts)
    times = [np.empty(0)] * len(parts)
    horizon_s = 1.05 * count / total_rps
    while True:
        for i, part in enumerate(parts):
            while not drawn[i] or times[i][-1] < horizon_s:
                wanted = int(1.05 * part.rate_rps * horizon_s) + 16
                drawn[i] = max(2 * drawn[i], wanted) if drawn[i] else wanted
                times[i] = part.first(drawn[i], seeds[i])
        upto = [t[: np.searchsorted(t, horizon_s)] for t in times]
        if sum(t.size for t in upto) >= count:
            break
        horizon_s *= 1.5
    every = np.concatenate(upto)
    origin = np.repeat(np.arange(len(parts), dtype=np.int16), [t.size for t in upto])
    order = np.argsort(every, kind="stable")[:count]
    return every[order], origin[order]


def check_scaling(factor: float, method: str) -> None:
    """Refuse an unknown method or a factor that the method cannot reach."""
    allowed = {"time_scale": factor > 0, "thin": 0 < factor <= 1, "superpose": factor >= 1}
    if method not in allowed:
        raise ValueError(f"unknown rate scaling {method!r}; known: {', '.join(METHODS)}")
    if not (np.isfinite(factor) and allowed[method]):
        bound = {
            "time_scale": "above 0",
            "thin": "in (0, 1] (time_scale and superpose raise rates)",
            "superpose": "1 or more (time_scale and thin lower rates)",
        }[method]
        raise ValueError(f"{method} factor is {factor:g}; it must be {bound}")
