"""Applying a calibration to raw confidences, the one way for replay, live loop and evaluation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EDGE = 1e-6
"""Confidences are clipped to EDGE .. 1 - EDGE before the logit."""


def calibrate(
    raw: npt.ArrayLike, scales: npt.ArrayLike = 1.0, bias: npt.ArrayLike = 0.0
) -> npt.NDArray[np.float32]:
    """sigmoid(logit(raw) / scales + bias), rounded to the float16 grid; shape [..., gamma].

    On the grid so that a confidence computed in other precision elsewhere lands on the same value,
    and ties between equal confidences stay ties.
    """
    c = np.clip(np.asarray(raw, dtype=np.float32), EDGE, 1 - EDGE)
    logit = np.log(c / (1 - c))
    logit /= np.asarray(scales, dtype=np.float32)
    logit += np.asarray(bias, dtype=np.float32)
    odds = np.exp(np.minimum(-logit, 80))  # exp(80) is still a float32, and its inverse is 0
    grid: npt.NDArray[np.float32] = (1 / (1 + odds)).astype(np.float16).astype(np.float32)
    return grid
