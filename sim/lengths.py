"""Token counts drawn from a fitted quantile curve.

A curve is a short table of quantiles, log-linear in between: enough to hold two humps (chat
answers), atoms (a fixed system prompt) and a long tail in some twenty numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.arrivals import Floats

Tokens = npt.NDArray[np.int32]

LEVELS = (
    *(0.0, 0.001, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55),
    *(0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.999, 1.0),
)


@dataclass(frozen=True)
class QuantileCurve:
    """Quantiles ``values`` at the probabilities ``levels`` (from 0 to 1, rising)."""

    values: tuple[float, ...]
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        if len(self.values) != len(self.levels):
            raise ValueError(f"{len(self.values)} values for {len(self.levels)} levels")
        if self.levels[0] != 0 or self.levels[-1] != 1 or min(np.diff(self.levels)) <= 0:
            raise ValueError("levels must rise from 0 to 1")
        if min(self.values) <= 0 or min(np.diff(self.values)) < 0:
            raise ValueError("values must be above 0 and must not fall")

    def at(self, uniform: Floats) -> Floats:
        """The quantile of each probability in [0, 1]."""
        return np.exp(np.interp(uniform, self.levels, np.log(self.values)))

    def tokens(self, uniform: Floats) -> Tokens:
        """Quantiles as whole token counts, at least 1."""
        return np.maximum(np.rint(self.at(uniform)), 1).astype(np.int32)

    @property
    def mean(self) -> float:
        """Mean of the curve, before rounding."""
        return float(self.at((np.arange(200_000) + 0.5) / 200_000).mean())


def fit(sample: Floats, levels: tuple[float, ...] = LEVELS, digits: int = 4) -> QuantileCurve:
    """The curve through a sample's own quantiles, to ``digits`` significant digits."""
    quantiles = np.quantile(sample, levels)
    return QuantileCurve(tuple(float(f"{q:.{digits}g}") for q in np.maximum(quantiles, 1)), levels)


def rounded(values: Sequence[float] | Floats, digits: int) -> list[float]:
    """Values to ``digits`` significant digits; whole ones as integers, for short files."""
    short = (float(f"{value:.{digits}g}") for value in values)
    return [int(value) if value.is_integer() else value for value in short]
