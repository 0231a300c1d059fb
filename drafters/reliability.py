"""How good probabilities are: calibration error, ranking and Brier score, all with weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def prefix_outcomes(accepted: npt.ArrayLike, gamma: int) -> Floats:
    """[A, gamma] 1 where the prefix through that position was accepted."""
    lengths = np.asarray(accepted)[:, None]
    return (np.arange(gamma) < lengths).astype(np.float64)


def _bins(predicted: Floats, bins: int) -> Ints:
    return np.minimum((predicted * bins).astype(np.int64), bins - 1)


def reliability(
    predicted: Floats, outcome: Floats, weight: Floats | None = None, bins: int = 20
) -> pd.DataFrame:
    """Reliability diagram: one row per non-empty equal-width bin of predictions in [0, 1]."""
    mass = np.ones_like(predicted) if weight is None else weight
    where = _bins(predicted, bins)
    sums = [np.bincount(where, mass * x, bins) for x in (np.ones_like(mass), predicted, outcome)]
    frame = pd.DataFrame(
        {
            "low": np.arange(bins) / bins,
            "high": np.arange(1, bins + 1) / bins,
            "weight": sums[0],
            "predicted": sums[1] / np.where(sums[0] > 0, sums[0], 1),
            "observed": sums[2] / np.where(sums[0] > 0, sums[0], 1),
        }
    )
    return frame[frame["weight"] > 0].reset_index(drop=True)


def expected_calibration_error(
    predicted: Floats, outcome: Floats, weight: Floats | None = None, bins: int = 20
) -> float:
    """Weighted mean of |mean prediction - observed frequency| over equal-width bins."""
    mass = np.ones_like(predicted) if weight is None else weight
    gap = np.bincount(_bins(predicted, bins), mass * (predicted - outcome), bins)
    total = mass.sum()
    return float(np.abs(gap).sum() / total) if total > 0 else float("nan")


def brier(predicted: Floats, outcome: Floats, weight: Floats | None = None) -> float:
    """Weighted mean squared error of probabilities."""
    mass = np.ones_like(predicted) if weight is None else weight
    total = mass.sum()
    return float((mass * (predicted - outcome) ** 2).sum() / total) if total > 0 else float("nan")


def area_under_curve(predicted: Floats, outcome: Floats, weight: Floats | None = None) -> float:
    """Probability that a random success is ranked above a random failure; ties count a half.

    NaN where one of the two does not occur.
    """
    mass = np.ones_like(predicted) if weight is None else weight
    values, where = np.unique(predicted, return_inverse=True)
    good = np.bincount(where, mass * outcome, values.size)
    bad = np.bincount(where, mass * (1 - outcome), values.size)
    pairs = good.sum() * bad.sum()
    if pairs <= 0:
        return float("nan")
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / pairs)
