"""When requests arrive: point processes that draw any number of arrivals in a few array calls.

``first(count, seed)`` returns the first ``count`` arrival times in seconds, sorted, from time 0.
Every random variable of a process has its own child of ``seed``, so a longer draw begins with the
shorter one: ``first(m, seed) == first(n, seed)[:m]`` for m <= n, bit for bit.

CV is the coefficient of variation of the gaps between arrivals (Poisson: 1). Processes that follow
the time of day are in ``sim.curves``; recorded arrivals are replayed from a request table. Sources:
Gamma renewal and the client mix, ServeGen (arXiv 2505.09999); log-Gaussian Cox process, Moller et
al. 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

Floats = npt.NDArray[np.float64]


class ArrivalProcess(Protocol):
    """A point process on [0, inf)."""

    @property
    def rate_rps(self) -> float:
        """Long-run mean rate, requests per second."""

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        """The first ``count`` arrival times, seconds."""


def child(seed: np.random.SeedSequence, index: int) -> np.random.SeedSequence:
    """Child number ``index`` of a seed; unlike ``spawn`` it leaves the parent as it was."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index))


def generator(seed: np.random.SeedSequence, index: int) -> np.random.Generator:
    """A generator on child number ``index`` of a seed."""
    return np.random.default_rng(child(seed, index))


def gamma_gaps(rng: np.random.Generator, count: int, cv: float) -> Floats:
    """Gamma distributed gaps of mean 1 and the given CV, seen from an arbitrary point in time.

    Time 0 lies inside a gap, which is longer than most (length-biased: Gamma with shape + 1), and
    what is left of it is a uniform share. Else bursty clients would all begin with a burst.
    """
    shape = cv**-2
    rest = rng.gamma(shape + 1) * rng.random()
    gaps = np.append(rest, rng.gamma(shape, size=max(count - 1, 0)))[:count]
    return gaps / shape


def first_of(enough: int, guess: int, draw: Callable[[int], Floats]) -> Floats:
    """The first ``enough`` results of ``draw(n)``, which returns a random share of n candidates."""
    guess = max(guess, 16)
    while (times := draw(guess)).size < enough:
        guess *= 2
    return times[:enough]


@dataclass(frozen=True)
class Renewal:
    """Gamma renewal process; ``cv=1`` is Poisson, above it gaps cluster, below it they even out."""

    rate_rps: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "rate_rps", "cv")

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        return np.cumsum(gamma_gaps(generator(seed, 0), count, self.cv)) / self.rate_rps


def poisson(rate_rps: float) -> Renewal:
    """Poisson arrivals."""
    return Renewal(rate_rps)


@dataclass(frozen=True)
class OnOff:
    """Bursts and silences in turn: ``within`` runs on a clock that stands still in silences.

    Burst lengths are Gamma, silences log-normal; with a Poisson ``within`` and ``on_cv`` 1 this is
    an interrupted Poisson process but for the silences' law.
    """

    within: ArrivalProcess
    on_s: float
    on_cv: float
    off_s: float
    off_cv: float

    def __post_init__(self) -> None:
        require_positive(self, "on_s", "on_cv", "off_s")

    @property
    def rate_rps(self) -> float:
        return self.within.rate_rps * self.on_s / (self.on_s + self.off_s)

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        on_clock_s = self.within.first(count, child(seed, 0))
        bursts = int(1.2 * on_clock_s[-1] / self.on_s) + 16
        while (ends := self._burst_ends(bursts, seed))[-1] <= on_clock_s[-1]:
            bursts *= 2
        silences_s = np.cumsum(self.off_s * lognormal(generator(seed, 2), bursts, self.off_cv))
        times: Floats = on_clock_s + silences_s[np.searchsorted(ends, on_clock_s, side="right")]
        return times

    def _burst_ends(self, bursts: int, seed: np.random.SeedSequence) -> Floats:
        return np.cumsum(self.on_s * gamma_gaps(generator(seed, 1), bursts, self.on_cv))


@dataclass(frozen=True)
class Modulated:
    """Arrivals whose log rate wanders: a sum of Ornstein-Uhlenbeck processes.

    Each component (sigma, tau_s) has standard deviation sigma and correlation time tau_s; the mean
    rate is ``rate_rps`` whatever the components. Gaps are Gamma with ``gap_cv`` on a clock that
    runs with the rate; 1 makes it a Cox process.
    """

    rate_rps: float
    components: tuple[tuple[float, float], ...]
    gap_cv: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "rate_rps", "gap_cv")
        if not self.components or min(min(c) for c in self.components) <= 0:
            raise ValueError(f"components {self.components} must be pairs (sigma, tau_s) above 0")

    def first(self, count: int, seed: np.random.SeedSequence) -> Floats:
        mass = np.cumsum(gamma_gaps(generator(seed, 0), count, self.gap_cv))
        step_s = min(tau_s for _, tau_s in self.components) / 4
        steps = int(1.2 * mass[-1] / (self.rate_rps * step_s)) + 16
        while (ends := self._mass(steps, step_s, seed))[-1] <= mass[-1]:
            steps *= 2
        times: Floats = np.interp(mass, np.append(0.0, ends), np.arange(steps + 1) * step_s)
        return times

    def _mass(self, steps: int, step_s: float, seed: np.random.SeedSequence) -> Floats:
        """Expected arrivals up to the end of each step."""
        log_rate = np.zeros(steps)
        for i, (sigma, tau_s) in enumerate(self.components):
            keep = float(np.exp(-step_s / tau_s))
            shock = generator(seed, i + 1).standard_normal(steps)
            shock[1:] *= np.sqrt(1 - keep**2)
            log_rate += sigma * lfilter([1.0], [1.0, -keep], shock) - sigma**2 / 2
        return np.cumsum(np.exp(log_rate)) * (self.rate_rps * step_s)


def lognormal(rng: np.random.Generator, count: int, cv: float) -> Floats:
    """Log-normal variates of mean 1 and the given CV (0: all 1)."""
    sigma = float(np.sqrt(np.log1p(cv**2)))
    return np.exp(sigma * rng.standard_normal(count) - sigma**2 / 2)


def check_times(times_s: Floats, what: str) -> None:
    """Refuse arrivals that are empty, NaN, negative or out of order; ``what`` names their source.

    Raises ValueError naming the first bad row, counted from 0 without the header.
    """
    if not times_s.size:
        raise ValueError(f"{what}: no arrivals; at least 1 is needed")
    for bad, why in (
        (~np.isfinite(times_s), "is not a finite number"),
        (times_s < 0, "is negative; times count from 0"),
        (np.diff(times_s, prepend=times_s[0]) < 0, "comes before the row above; sort by arrival"),
    ):
        rows = np.flatnonzero(bad)
        if rows.size:
            raise ValueError(f"{what}: arrival {times_s[rows[0]]:g} s in row {rows[0]} {why}")


def require_positive(owner: object, *names: str) -> None:
    """Refuse a process whose named parameters are not finite and above 0."""
    for name in names:
        value = getattr(owner, name)
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{type(owner).__name__} {name}={value:g} must be above 0")
