"""Acceptance estimates: the drafter's confidence corrected by what became of others like it.

    odds(p[r, j]) = odds(c[r, j]) * beta[j, bin(c)]

``beta`` recalibrates the confidence head by position and confidence bin (16 equal bins), so it
undoes a wrong temperature and follows drift: in each cell the acceptance rate is shrunk to the mean
confidence with ``PRIOR_TRIALS`` pseudo-trials. Position j is a trial only when it was verified and
all before it were accepted (trimming censors the rest), and its label is "accepted".

The estimate of position j uses c[r, j] and the past: it keeps what makes a policy non-anticipating.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from policies.base import Floats, Ints, StepOutcome
from policies.select import Confidences

BINS = 16
PRIOR_TRIALS = 50.0
CELL_KEEP = 0.999
"""Weight that the calibration keeps per step: it follows drift over about 1,000 steps."""
MAX_ODDS = 8.0


@njit(cache=True)
def _estimate(confidences: Confidences, drafted: Ints, beta: Floats) -> Floats:
    rows, gamma = confidences.shape
    out = np.zeros((rows, gamma))
    for r in range(rows):
        product = 1.0
        for j in range(drafted[r]):
            c = float(confidences[r, j])
            up = c * beta[j, min(int(c * BINS), BINS - 1)]
            product *= up / (up + 1.0 - c)
            out[r, j] = product
    return out


@njit(cache=True)
def _count(confidences: Confidences, lengths: Ints, accepted: Ints, cells: Floats) -> None:
    for r in range(lengths.size):
        for j in range(min(accepted[r] + 1, lengths[r])):
            c = float(confidences[r, j])
            box = min(int(c * BINS), BINS - 1)
            cells[0, j, box] += 1.0
            cells[1, j, box] += c
            cells[2, j, box] += 1.0 if j < accepted[r] else 0.0


@njit(cache=True)
def _cell_odds(cells: Floats) -> Floats:
    """Odds ratio of shrunk acceptance rate to mean confidence per cell; 1 where unknown."""
    beta = np.ones((cells.shape[1], BINS))
    for j in range(beta.shape[0]):
        for box in range(BINS):
            trials = cells[0, j, box]
            if trials < 1.0:
                continue
            c = min(max(cells[1, j, box] / trials, 1e-3), 1.0 - 1e-3)
            p = (PRIOR_TRIALS * c + cells[2, j, box]) / (PRIOR_TRIALS + trials)
            p = min(max(p, 1e-3), 1.0 - 1e-3)
            odds = p / (1.0 - p) * (1.0 - c) / c
            beta[j, box] = min(max(odds, 1.0 / MAX_ODDS), MAX_ODDS)
    return beta


class AcceptanceEstimator:
    """Online recalibration of confidences."""

    def __init__(self, gamma: int) -> None:
        self._cells = np.zeros((3, gamma, BINS))
        self._beta = np.ones((gamma, BINS))

    def survivals(self, confidences: Confidences, drafted: Ints) -> Floats:
        """Estimated prefix survivals [R, gamma], 0 beyond ``drafted``."""
        estimate: Floats = _estimate(confidences, drafted, self._beta)
        return estimate

    def learn(self, outcome: StepOutcome) -> None:
        """Count this step's trials and renew ``beta``."""
        self._cells *= CELL_KEEP
        _count(outcome.current, outcome.lengths, outcome.accepted, self._cells)
        self._beta = _cell_odds(self._cells)
