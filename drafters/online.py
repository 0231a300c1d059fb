"""Head-free acceptance estimates: an online logistic model of the drafter's own certainty.

    p[r, k] = sigmoid(w f[r, k] + b_k),  f = logit(largest draft probability), within +-40

One slope, one intercept per position. Position k of a block teaches when it was verified and all
before it were accepted (trimming hides the rest); its label is "accepted". Gradient and curvature
of the log-likelihood gather for ``REFIT_STEPS`` steps at fixed parameters, then one damped Newton
step is taken and they are cleared, so that the model follows drift. For drafters without a
confidence head. Source: vLLM pull request 52228 (``acceptance_estimator.py``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

Floats = npt.NDArray[np.float64]

START_SLOPE, START_INTERCEPT = 0.5, -0.2
REFIT_STEPS = 100
RIDGE = 1e-3
DAMPING_TRIALS = 50.0
LARGEST_LOGIT = 40.0


class OnlineLogistic:
    """Learns from ``observe``, answers ``confidences``; parameters [w, b_1 .. b_gamma]."""

    def __init__(self, gamma: int) -> None:
        self.gamma, self.steps = gamma, 0
        self.parameters = np.full(gamma + 1, START_INTERCEPT)
        self.parameters[0] = START_SLOPE
        self._clear()

    def _clear(self) -> None:
        size = self.gamma + 1
        self._gradient, self._curvature = np.zeros(size), np.zeros((size, size))
        self._trials = np.zeros(size)

    def confidences(self, max_prob: npt.ArrayLike) -> Floats:
        """[R, gamma] acceptance given that all before were, from max probabilities [R, gamma]."""
        score = self.parameters[0] * _feature(max_prob) + self.parameters[1:]
        return expit(score)

    def observe(
        self, max_prob: npt.ArrayLike, lengths: npt.ArrayLike, accepted: npt.ArrayLike
    ) -> None:
        """Take in one step: [R, gamma] max probabilities, [R] drafts verified, [R] accepted."""
        verified, stood = np.asarray(lengths)[:, None], np.asarray(accepted)[:, None]
        position = np.arange(self.gamma)
        seen = ((position <= stood) & (position < verified)).astype(np.float64)
        p, f = self.confidences(max_prob), _feature(max_prob)
        error, spread = seen * ((position < stood) - p), seen * p * (1 - p)
        self._gradient += np.concatenate(([(error * f).sum()], error.sum(0)))
        self._curvature[0, 0] += (spread * f * f).sum()
        self._curvature[0, 1:] += (spread * f).sum(0)
        self._curvature[1:, 0] = self._curvature[0, 1:]
        self._curvature[position + 1, position + 1] += spread.sum(0)
        self._trials += np.concatenate(([seen.sum()], seen.sum(0)))
        self.steps += 1
        if self.steps % REFIT_STEPS == 0:
            self._refit()

    def _refit(self) -> None:
        step = np.linalg.solve(self._curvature + RIDGE * np.eye(self.gamma + 1), self._gradient)
        self.parameters += step * self._trials / (self._trials + DAMPING_TRIALS)
        self._clear()


def _feature(max_prob: npt.ArrayLike) -> Floats:
    return np.clip(logit(np.asarray(max_prob, dtype=np.float64)), -LARGEST_LOGIT, LARGEST_LOGIT)
