"""How well calibrated confidences tell what is accepted: scores per position, and diagrams.

Judged is the survival of each prefix, the running product of the calibrated confidences.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from drafters.online import REFIT_STEPS, OnlineLogistic
from drafters.reliability import (
    area_under_curve,
    brier,
    expected_calibration_error,
    reliability,
)
from gpu_traces.bundle import Calibration
from gpu_traces.calibration import calibrate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HALF_STEP = 1 / 510  # bundles keep max_prob in 256 levels: 1.0 means anything that rounds to it
ONLINE_BATCH = 32  # blocks per step when the online estimator is replayed


class Anchors(NamedTuple):
    """Blocks to fit or judge on."""

    raw: Floats
    """[A, gamma] head output."""
    accepted: Ints
    """[A] accepted length."""
    fits: Ints
    """[A] positions inside the response; later ones say nothing."""
    weight: Floats
    """[A]"""
    max_prob: Floats
    """[A, gamma]"""

    def rows(self, keep: npt.NDArray[np.bool_]) -> Anchors:
        return Anchors(*(values[keep] for values in self))


def identity(gamma: int, temperature: float) -> Calibration:
    """The calibration that changes nothing."""
    return Calibration(temperature, "none", (1.0,) * gamma, (0.0,) * gamma)


def scores(anchors: Anchors, calibration: Calibration) -> pd.DataFrame:
    """ECE (20 bins), AUC, Brier of the calibrated survival, one row per draft position (from 1)."""
    survival = survivals(anchors.raw, calibration)
    return pd.DataFrame(
        {"position": k + 1, **_score(survival[:, k], anchors, k)} for k in range(survival.shape[1])
    )


def survivals(raw: Floats, calibration: Calibration) -> Floats:
    """[A, gamma] calibrated probability that the prefix through each position is accepted."""
    return np.cumprod(calibrate(raw, calibration.scales, calibration.bias), 1, dtype=np.float64)


def _score(predicted: Floats, anchors: Anchors, k: int) -> dict[str, float]:
    inside = anchors.fits > k
    outcome = (anchors.accepted[inside] > k).astype(np.float64)
    given, weight = predicted[inside], anchors.weight[inside]
    return {
        "ece": expected_calibration_error(given, outcome, weight),
        "auc": area_under_curve(given, outcome, weight),
        "brier": brier(given, outcome, weight),
    }


def reliability_data(anchors: Anchors, calibration: Calibration) -> pd.DataFrame:
    """Reliability diagrams of the calibrated survival, all positions stacked (20 bins each)."""
    survival, parts = survivals(anchors.raw, calibration), []
    for k in range(survival.shape[1]):
        inside = anchors.fits > k
        outcome = (anchors.accepted[inside] > k).astype(np.float64)
        part = reliability(survival[inside, k], outcome, anchors.weight[inside])
        parts.append(part.assign(position=k + 1))
    return pd.concat(parts, ignore_index=True)


def can_learn(anchors: Anchors) -> bool:
    """Whether the head-free estimator gets to learn anything: enough blocks, of a drafter that is
    not always certain as prompt lookup is."""
    return len(anchors.accepted) > ONLINE_BATCH * REFIT_STEPS and bool(np.ptp(anchors.max_prob))


def online_scores(anchors: Anchors) -> pd.DataFrame:
    """Scores of the head-free estimator, each block judged before the estimator learns from it."""
    gamma = anchors.raw.shape[1]
    model, told = OnlineLogistic(gamma), np.empty_like(anchors.raw)
    max_prob = np.clip(anchors.max_prob, HALF_STEP, 1 - HALF_STEP)
    for start in range(0, len(told), ONLINE_BATCH):
        batch = slice(start, start + ONLINE_BATCH)
        told[batch] = model.confidences(max_prob[batch])
        model.observe(max_prob[batch], anchors.fits[batch], anchors.accepted[batch])
    return scores(anchors._replace(raw=told), identity(gamma, 1.0))
