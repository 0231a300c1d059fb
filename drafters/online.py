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
HALVINGS = 30


class OnlineLogistic:
    """Learns from ``observe``, answers ``confidences``; parameters [w, b_1 .. b_gamma]."""

    def __init__(self, gamma: int) -> None:
        self.gamma = gamma
        self.parameters = np.full(gamma + 1, START_INTERCEPT)
        self.parameters[0] = START_SLOPE
        self._window: list[tuple[Floats, Floats, Floats]] = []

    def confidences(self, max_prob: npt.ArrayLike) -> Floats:
        """[R, gamma] acceptance given that all before were, from max probabilities [R, gamma]."""
        return expit(_score(self.parameters, _feature(max_prob)))

    def observe(
        self, max_prob: npt.ArrayLike, lengths: npt.ArrayLike, accepted: npt.ArrayLike
    ) -> None:
        """Take in one step: [R, gamma] max probabilities, [R] drafts verified, [R] accepted."""
        verified, stood = np.asarray(lengths)[:, None], np.asarray(accepted)[:, None]
        position = np.arange(self.gamma)
        seen = ((position <= stood) & (position < verified)).astype(np.float64)
        label = (position < stood).astype(np.float64)
        self._window.append((_feature(max_prob), label, seen))
        if len(self._window) == REFIT_STEPS:
            self._refit(*(np.concatenate(parts) for parts in zip(*self._window, strict=True)))
            self._window = []

    def _refit(self, f: Floats, label: Floats, seen: Floats) -> None:
        """A damped Newton step on the window [n, gamma], halved until the window gets likelier."""
        p = expit(_score(self.parameters, f))
        error, spread = seen * (label - p), seen * p * (1 - p)
        gradient = np.concatenate(([(error * f).sum()], error.sum(0)))
        cross = (spread * f).sum(0)
        curvature = np.diag(np.concatenate(([(spread * f * f).sum()], spread.sum(0))))
        curvature[0, 1:] = curvature[1:, 0] = cross
        trials = np.concatenate(([seen.sum()], seen.sum(0)))
        step = np.linalg.solve(curvature + RIDGE * np.eye(self.gamma + 1), gradient)
        step *= trials / (trials + DAMPING_TRIALS)
        before = _likelihood(self.parameters, f, label, seen)
        for _ in range(HALVINGS):
            if _likelihood(self.parameters + step, f, label, seen) >= before:
                self.parameters += step
                return
            step /= 2


def _score(parameters: Floats, f: Floats) -> Floats:
    return parameters[0] * f + parameters[1:]


def _likelihood(parameters: Floats, f: Floats, label: Floats, seen: Floats) -> float:
    """Log-likelihood of what was seen."""
    score = _score(parameters, f)
    return float((seen * (label * score - np.logaddexp(0.0, score))).sum())


def _feature(max_prob: npt.ArrayLike) -> Floats:
    return np.clip(logit(np.asarray(max_prob, dtype=np.float64)), -LARGEST_LOGIT, LARGEST_LOGIT)
