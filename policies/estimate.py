"""Acceptance estimates: the drafter's confidence corrected by what was seen, and by whom.

    odds(p[r, j]) = odds(c[r, j]) * beta[j, bin(c)] * exp(u_r)

``beta`` recalibrates the confidence head by position and confidence bin (16 equal bins), so it also
undoes a wrong temperature: in each cell the acceptance rate is shrunk to the mean confidence with
``PRIOR_TRIALS`` pseudo-trials. ``u_r`` is the request's own offset, one Newton step from 0 of a
logistic model with prior variance 1 / ``REQUEST_PRECISION``, sum(y - p) / (sum p (1 - p) +
precision), over a decaying window. Position j is a trial only when it was verified and all before
it were accepted (trimming censors the rest), and its label is "accepted".

The estimate of position j uses c[r, j] and the past: it keeps what makes a policy non-anticipating.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from policies.base import Floats, Ints, StepOutcome
from policies.select import Confidences

BINS = 16
PRIOR_TRIALS = 50.0
REQUEST_PRECISION = 8.0
CELL_KEEP = 0.999
"""Weight that the calibration keeps per step: it follows drift over about 1,000 steps."""
REQUEST_KEEP = 0.95
"""Weight that a request's own residuals keep per block of its."""
MAX_ODDS = 8.0


@njit(cache=True)
def _estimate(
    confidences: Confidences, drafted: Ints, slots: Ints, beta: Floats, request_odds: Floats
) -> Floats:
    rows, gamma = confidences.shape
    out = np.zeros((rows, gamma))
    for r in range(rows):
        product, own = 1.0, request_odds[slots[r]]
        for j in range(drafted[r]):
            c = float(confidences[r, j])
            up = c * own * beta[j, min(int(c * BINS), BINS - 1)]
            product *= up / (up + 1.0 - c)
            out[r, j] = product
    return out


@njit(cache=True)
def _learn(
    confidences: Confidences,
    lengths: Ints,
    accepted: Ints,
    slots: Ints,
    beta: Floats,
    cells: Floats,
    requests: Floats,
) -> None:
    for r in range(slots.size):
        trials = min(accepted[r] + 1, lengths[r])
        slot = slots[r]
        if trials > 0:
            requests[:, slot] *= REQUEST_KEEP
        for j in range(trials):
            c = float(confidences[r, j])
            box = min(int(c * BINS), BINS - 1)
            label = 1.0 if j < accepted[r] else 0.0
            cells[0, j, box] += 1.0
            cells[1, j, box] += c
            cells[2, j, box] += label
            up = c * beta[j, box]
            p = up / (up + 1.0 - c)
            requests[0, slot] += label - p
            requests[1, slot] += p * (1.0 - p)


class AcceptanceEstimator:
    """Online recalibration of confidences; memory by cache slot, which grows as slots appear."""

    def __init__(self, gamma: int) -> None:
        self._cells = np.zeros((3, gamma, BINS))
        self._beta = np.ones((gamma, BINS))
        self._requests = np.zeros((2, 0))
        self._request_odds = np.ones(0)

    def admit(self, slots: int, fresh: Ints) -> None:
        """Make room for slots below ``slots`` and forget who had the ``fresh`` ones before."""
        missing = slots - self._request_odds.size
        if missing > 0:
            self._requests = np.pad(self._requests, ((0, 0), (0, missing)))
            self._request_odds = np.pad(self._request_odds, (0, missing), constant_values=1.0)
        if fresh.size:
            self._requests[:, fresh] = 0.0
            self._request_odds[fresh] = 1.0

    def survivals(self, confidences: Confidences, drafted: Ints, slots: Ints) -> Floats:
        """Estimated prefix survivals [R, gamma], 0 beyond ``drafted``."""
        estimate: Floats = _estimate(confidences, drafted, slots, self._beta, self._request_odds)
        return estimate

    def learn(self, outcome: StepOutcome) -> None:
        """Count this step's trials, then renew ``beta`` and the offsets of its requests."""
        slots, cells = outcome.slots, self._cells
        cells *= CELL_KEEP
        _learn(
            outcome.current,
            outcome.lengths,
            outcome.accepted,
            slots,
            self._beta,
            cells,
            self._requests,
        )
        self._beta = _cell_odds(cells)
        residual, information = self._requests[:, slots]
        self._request_odds[slots] = np.exp(residual / (information + REQUEST_PRECISION))


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
