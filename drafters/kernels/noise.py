"""Uniforms that belong to a request: counter-based, the same on any device, in any batch.

SplitMix64 (Steele, Lea, Flood 2014): the n-th value of a stream is a bijective mix of n, so nothing
is stored and nothing is drawn in order. A counter must never come twice with one seed; the number
of the request's own round is such a counter, a text position is not (it is drafted again after a
rejection).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = TypeVar("Words", Tensor, npt.NDArray[np.int64])

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Words, bits: int) -> Words:
    """Logical shift of 64-bit words kept in int64."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Words) -> Words:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seeds: Tensor, rounds: Tensor, count: int) -> Tensor:
    """``count`` float64 uniforms in [0, 1) for each request: [R] int64, [R] int64 -> [R, count].

    A function of (seed, round, column) alone, 53 bits each. Runs on any device without a
    synchronisation, so it can be captured in a CUDA graph.
    """
    stream = _mix(_mix(seeds * _GOLDEN + _MIX_1) + rounds * _GOLDEN)
    column = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    return _shift_right(_mix(stream.unsqueeze(-1) + column), 11).double() * 2.0**-53


def host_uniforms(
    seeds: npt.NDArray[np.int64], rounds: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """The same numbers, computed on the host."""
    stream = _mix(_mix(seeds * _GOLDEN + _MIX_1) + rounds * _GOLDEN)
    column = np.arange(1, count + 1) * _GOLDEN
    return _shift_right(_mix(stream[:, None] + column), 11) * 2.0**-53
