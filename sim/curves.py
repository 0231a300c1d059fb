"""Arrivals under a rate curve that repeats every day or week.

``Diurnal`` thins a Poisson process (Lewis and Shedler 1979). ``Client`` stretches the clock of a
bursty one instead, since thinning would pull its gaps towards Poisson (the client mix of ServeGen,
arXiv 2505.09999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.arrivals import Floats, first_of, gamma_gaps, generator, require_positive


@dataclass(frozen=True)
class Diurnal:
    """Poisson arrivals under a periodic rate curve, by thinning at the curve's largest rate."""

    curve_rps: Floats
    """Rate in the middle of each step of one period; linear in between, the last to the first."""
    step_s: float
    start_s: float = 0.0
    """Point of the period at which time 0 lies."""

    def __post_init__(self) -> None:
        _check_curve(self.curve_rps, self.step_s)

    @property
    def rate_rps(self) -> float:
        return float(self.curve_rps.mean())

    def rate_at(self, time_s: Floats) -> Floats:
        """The curve at any times, requests per second."""
        steps = self.curve_rps.size
        knots = np.arange(steps + 1, dtype=np.float64)
        phase = ((time_s + self.start_s) / self.step_s - 0.5) % steps
        rates: Floats = np.interp(phase, knots, np.append(self.curve_rps, self.curve_rps[0]))
        return rates

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        peak = float(self.curve_rps.max())

        def draw(candidates: int) -> Floats:
            times = np.cumsum(generator(seed, 0).exponential(size=candidates)) / peak
            return times[generator(seed, 1).random(candidates) * peak < self.rate_at(times)]

        return first_of(count, int(1.05 * count * peak / self.rate_rps), draw)


@dataclass(frozen=True)
class Client:
    """One client: a Gamma renewal process on a clock that runs with a periodic rate curve."""

    curve_rps: Floats
    """Mean rate in each step of one period."""
    step_s: float
    cv: float
    start_s: float = 0.0
    """Point of the period at which time 0 lies."""

    def __post_init__(self) -> None:
        require_positive(self, "cv")
        _check_curve(self.curve_rps, self.step_s)
        if not self.curve_rps.min() > 0:
            raise ValueError("a client's rate curve must stay above 0")

    @property
    def rate_rps(self) -> float:
        return float(self.curve_rps.mean())

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        ends = np.cumsum(self.curve_rps) * self.step_s
        gaps = gamma_gaps(generator(seed, 0), count, self.cv)
        period, rest = np.divmod(self._mass_at_start(ends) + np.cumsum(gaps), ends[-1])
        step = np.minimum(np.searchsorted(ends, rest, side="right"), ends.size - 1)
        inside_s = (rest - np.append(0.0, ends)[step]) / self.curve_rps[step]
        start_of_step_s = (period * self.curve_rps.size + step) * self.step_s
        times: Floats = start_of_step_s + inside_s - self.start_s
        return times

    def _mass_at_start(self, ends: Floats) -> float:
        """Expected arrivals from the period's beginning to ``start_s``."""
        knots_s = np.arange(ends.size + 1) * self.step_s
        return float(np.interp(self.start_s, knots_s, np.append(0.0, ends)))


def _check_curve(curve_rps: Floats, step_s: float) -> None:
    if not (np.all(np.isfinite(curve_rps)) and curve_rps.size and curve_rps.min() >= 0):
        raise ValueError("rate curve must hold finite rates of at least 0")
    if not curve_rps.max() > 0 or not step_s > 0:
        raise ValueError("rate curve must rise above 0 and its step must be above 0 s")
