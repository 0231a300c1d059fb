"""Sorting and selecting survivals in linear time, with the result of a comparison sort.

Values go into buckets by the leading bits of their floating-point form, which rise with the value,
from the largest (bucket 0) to the smallest; what is left is to sort within buckets. Few values are
sorted directly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from policies.base import Floats

SMALL = 64
"""Values up to which a plain sort is used."""
MIDDLE = 512
"""Values up to which coarse buckets do."""
OCTAVES = 16
COARSE, FINE = 4, 6
"""Buckets per octave, as a power of two."""
BUCKETS = OCTAVES << FINE
MOVES = 8
"""Moves per value that the final insertion sort may take before a plain sort takes over."""

Bits = npt.NDArray[np.int64]


@njit(cache=True)
def _fineness(size: int) -> int:
    return COARSE if size <= MIDDLE else FINE


@njit(cache=True, inline="always")
def _bucket(bits: int, fineness: int) -> int:
    """Values of 1 and above share bucket 0, the smallest share the last."""
    last = (OCTAVES << fineness) - 1
    return min(max((1023 << fineness) - 1 - (bits >> (52 - fineness)), 0), last)


@njit(cache=True)
def _finish(values: Floats) -> bool:
    """Insertion sort, large to small; False when it took too long and was given up."""
    left = MOVES * values.size
    for i in range(1, values.size):
        value = values[i]
        k = i
        while k > 0 and values[k - 1] < value:
            values[k] = values[k - 1]
            k -= 1
        values[k] = value
        left -= i - k
        if left < 0:
            return False
    return True


@njit(cache=True)
def falling(values: Floats) -> Floats:
    """The values of a contiguous array, all at least 0, from large to small."""
    flat = values.ravel()
    if flat.size <= SMALL:
        return np.sort(flat)[::-1].copy()
    bits, fineness = flat.view(np.int64), _fineness(flat.size)
    ends = np.zeros(BUCKETS + 1, dtype=np.int64)
    for i in range(flat.size):
        ends[_bucket(bits[i], fineness) + 1] += 1
    for b in range(OCTAVES << fineness):
        ends[b + 1] += ends[b]
    ordered = np.empty(flat.size)
    for i in range(flat.size):
        b = _bucket(bits[i], fineness)
        ordered[ends[b]] = flat[i]
        ends[b] += 1
    return ordered if _finish(ordered) else np.sort(flat)[::-1].copy()


@njit(cache=True)
def kth_largest(values: Floats, k: int) -> float:
    """The ``k``-th largest (from 1) value of a contiguous array of values of at least 0."""
    flat = values.ravel()
    if flat.size <= SMALL:
        return np.sort(flat)[flat.size - k]  # type: ignore[no-any-return]
    bits, fineness = flat.view(np.int64), _fineness(flat.size)
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for i in range(flat.size):
        counts[_bucket(bits[i], fineness)] += 1
    home = 0
    while counts[home] < k:
        k -= counts[home]
        home += 1
    crowd = np.empty(counts[home])
    found = 0
    for i in range(flat.size):
        if _bucket(bits[i], fineness) == home:
            crowd[found] = flat[i]
            found += 1
    if not _finish(crowd):
        crowd = np.sort(crowd)[::-1].copy()
    return crowd[k - 1]  # type: ignore[no-any-return]
