"""What policies get to see of a drafter's confidence: the same numbers live as from a trace.

Raw confidences go to the float16 grid of ``drafters.base.CONFIDENCE_DTYPE``, through the
calibration fitted at their temperature, and to the grid again, as ``gpu_traces.bundle`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from drafters.base import Proposal
from drafters.request import Running
from gpu_traces.calibration import calibrate
from gpu_traces.manifest import Calibration
from policies.base import Floats, Ints
from policies.harness import frozen


def confidences(
    rows: Sequence[Running],
    raw: Floats | None,
    gamma: int,
    calibration: Sequence[Calibration],
) -> Floats:
    """[n, gamma] what a policy sees of each row's block: calibrated, 0 where nothing is drafted.

    ``raw`` [n, k]: ``raw_confidences`` of the block; None where none was drafted.
    """
    current = np.zeros((len(rows), gamma))
    if raw is None:
        return current
    temperatures = np.array([row.request.temperature for row in rows])
    seen = calibrated(raw, temperatures, calibration)
    current[:, : seen.shape[1]] = seen
    drafted = np.array([row.drafted for row in rows])
    current[np.arange(gamma) >= drafted[:, None]] = 0.0
    return current


def raw_confidences(proposal: Proposal, temperatures: Tensor) -> Tensor:
    """[n, k] fp32, to be put on the grid: the head's, or the largest draft probability at
    ``temperatures`` [n] where there is no head."""
    raw = proposal.confidences
    if raw is None:
        assert proposal.logits is not None
        raw = _largest(proposal.logits, torch.where(temperatures > 0, temperatures, 1.0))
    return raw.float()


def told(proposal: Proposal, temperatures: Tensor) -> Tensor:
    """[n, 3 k] int32: the bits of the draft tokens, two each, then of their fp32 raw confidences;
    what the host reads, in one copy (``heard``)."""
    sure = raw_confidences(proposal, temperatures)
    return torch.cat((proposal.tokens.view(torch.int32), sure.view(torch.int32)), 1)


def heard(told: Tensor) -> tuple[list[list[int]], Floats]:
    """Tokens [n][k] and raw confidences [n, k], on the grid, of what was ``told``, on the host."""
    bits = told.numpy()
    tokens, sure = np.split(bits, [bits.shape[1] // 3 * 2], axis=1)
    grid = sure.view(np.float32).astype(np.float16)
    return tokens.view(np.int64).tolist(), grid.astype(np.float64)


def _largest(logits: Tensor, heat: Tensor) -> Tensor:
    """Largest probability per position of [n, k, V] at temperatures [n]."""
    return torch.softmax(logits / heat[:, None, None], -1).amax(-1)


def calibrated(raw: Floats, temperatures: Floats, calibration: Sequence[Calibration]) -> Floats:
    """Confidences [n, k] after the calibration fitted nearest to each row's temperature [n]."""
    if not calibration:
        return raw
    fitted = np.array([entry.temperature for entry in calibration])
    nearest = np.abs(temperatures[:, None] - fitted).argmin(1)
    made = np.empty_like(raw)
    for i, entry in enumerate(calibration):
        mine, k = nearest == i, raw.shape[1]
        made[mine] = calibrate(raw[mine], entry.scales[:k], entry.bias[:k])
    return made


def column(values: list[int]) -> Ints:
    """A read-only integer column of a ``VerifyState``."""
    return frozen(np.array(values, dtype=np.int64))
