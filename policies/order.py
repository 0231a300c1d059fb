"""What a full sort of the step's survivals would tell, for a fraction of its time.

Values are counted and summed in even buckets from the largest to the smallest. Sums of whole
buckets bound what any budget inside one could be worth, so only the buckets that may hold the
answer are looked at again, and only the few values left at the end are sorted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from policies.base import Floats

BUCKETS = 64
FEW = 32
"""Values that insertion sorts about as fast as anything."""
SLACK = 1e-9
"""Relative margin on bounds, far above the rounding of sums taken in different orders."""

Homes = npt.NDArray[np.uint8]
Ends = npt.NDArray[np.int64]


@njit(cache=True)
def _bucketed(values: Floats) -> tuple[Homes, Ends, float, float]:
    """Each value's bucket, [BUCKETS + 1] values in the buckets before, the largest, the step.

    Values of bucket b are at most ``largest - b * step``. Step 0: too close together to tell apart.
    """
    lowest, largest = values.min(), values.max()
    scale = BUCKETS / (largest - lowest) if largest - lowest > 1e-300 else 0.0
    homes = np.empty(values.size, dtype=np.uint8)
    for i in range(values.size):
        homes[i] = min(int((largest - values[i]) * scale), BUCKETS - 1)
    ends = np.zeros(BUCKETS + 1, dtype=np.int64)
    for home in homes:
        ends[home + 1] += 1
    for b in range(BUCKETS):
        ends[b + 1] += ends[b]
    return homes, ends, largest, (largest - lowest) / BUCKETS if scale > 0.0 else 0.0


@njit(cache=True)
def _gather(values: Floats, homes: Homes, first: int, last: int, size: int) -> Floats:
    """The values of buckets ``first`` to ``last``, ``size`` in all, in their given order."""
    found = np.empty(size)
    k = 0
    for i in range(values.size):
        if first <= homes[i] <= last:
            found[k] = values[i]
            k += 1
    return found


@njit(cache=True)
def _insert(values: Floats) -> None:
    """Sort in place, large to small."""
    for i in range(1, values.size):
        value = values[i]
        k = i
        while k > 0 and values[k - 1] < value:
            values[k] = values[k - 1]
            k -= 1
        values[k] = value


@njit(cache=True)
def _scatter(values: Floats, homes: Homes, ends: Ends) -> Floats:
    """The values bucket by bucket."""
    ordered, at = np.empty(values.size), ends[:BUCKETS].copy()
    for i in range(values.size):
        ordered[at[homes[i]]] = values[i]
        at[homes[i]] += 1
    return ordered


@njit(cache=True)
def sort_falling(values: Floats) -> None:
    """Sort in place, large to small."""
    if values.size <= FEW:
        _insert(values)
        return
    homes, ends, _, step = _bucketed(values)
    if step == 0.0:
        if values.min() < values.max():
            values[:] = np.sort(values)[::-1]
        return
    values[:] = _scatter(values, homes, ends)
    for b in range(BUCKETS):
        if ends[b + 1] - ends[b] > 1:
            sort_falling(values[ends[b] : ends[b + 1]])


@njit(cache=True, error_model="numpy")
def early_stop_budget(
    values: Floats, base: float, fixed_s: float, verify_s: Floats
) -> tuple[int, float]:
    """As ``best_budget``, but stops at the first B at which the rate does not strictly rise."""
    flat = values.ravel()
    if verify_s.size == 1:
        return 0, base / (fixed_s + verify_s[0])
    homes, ends, _, step = _bucketed(flat)
    ordered = _scatter(flat, homes, ends)
    tokens, rate = float(base), base / (fixed_s + verify_s[0])
    for b in range(BUCKETS):
        sort_falling(ordered[ends[b] : ends[b + 1]])
        for i in range(ends[b], min(ends[b + 1], verify_s.size - 1)):
            tokens += ordered[i]
            next_rate = tokens / (fixed_s + verify_s[i + 1])
            if next_rate <= rate:
                return i, rate
            rate = next_rate
    return verify_s.size - 1, rate


@njit(cache=True)
def kth_largest(values: Floats, k: int) -> float:
    """The ``k``-th largest (from 1) of a contiguous array."""
    crowd = values.ravel()
    while crowd.size > FEW:
        homes, ends, largest, step = _bucketed(crowd)
        if step == 0.0:
            break
        home = 0
        while ends[home + 1] < k:
            home += 1
        k -= ends[home]
        crowd = _gather(crowd, homes, home, home, ends[home + 1] - ends[home])
    few = crowd.copy()
    sort_falling(few)
    return few[k - 1]  # type: ignore[no-any-return]


@njit(cache=True, error_model="numpy")
def best_budget(values: Floats, base: float, fixed_s: float, verify_s: Floats) -> tuple[int, float]:
    """Budget B that maximises (base + sum of the B largest values) / (fixed_s + verify_s[B]).

    The global maximum over B = 0 .. len(verify_s) - 1, the smallest on ties, and its value in
    tokens per second. ``verify_s[B]`` is the target pass with B draft tokens on board; ``values``
    is contiguous, each at least 0.
    """
    crowd, start, before = values.ravel()[:], 0, float(base)
    most = min(verify_s.size - 1, crowd.size)
    sure = before / (fixed_s + verify_s[0])
    while crowd.size > FEW:
        homes, ends, largest, step = _bucketed(crowd)
        if step == 0.0:
            break
        tokens = _sums(crowd, homes, before)
        sure = max(sure, _reached(tokens, ends, start, most, fixed_s, verify_s))
        first, last = _hopeful(tokens, ends, largest, step, start, most, fixed_s, verify_s, sure)
        size = ends[last + 1] - ends[first]
        if 2 * size > crowd.size:
            break
        crowd = _gather(crowd, homes, first, last, size)
        start, before = start + ends[first], tokens[first]
    best, best_rate = start, before / (fixed_s + verify_s[start])
    crowd = crowd.copy()
    sort_falling(crowd)
    for i in range(min(crowd.size, most - start)):
        before += crowd[i]
        rate = before / (fixed_s + verify_s[start + i + 1])
        if rate > best_rate:
            best, best_rate = start + i + 1, rate
    return best, best_rate


@njit(cache=True)
def _sums(values: Floats, homes: Homes, before: float) -> Floats:
    """[BUCKETS + 1] tokens before each bucket."""
    tokens = np.zeros(BUCKETS + 1)
    for i in range(values.size):
        tokens[homes[i] + 1] += values[i]
    tokens[0] = before
    for b in range(BUCKETS):
        tokens[b + 1] += tokens[b]
    return tokens


@njit(cache=True, error_model="numpy")
def _reached(
    tokens: Floats, ends: Ends, start: int, most: int, fixed_s: float, verify_s: Floats
) -> float:
    """The best rate at the end of a bucket."""
    sure = 0.0
    for b in range(1, BUCKETS + 1):
        if start + ends[b] <= most:
            sure = max(sure, tokens[b] / (fixed_s + verify_s[start + ends[b]]))
    return sure


@njit(cache=True, error_model="numpy")
def _hopeful(
    tokens: Floats, ends: Ends, largest: float, step: float, start: int, most: int, fixed_s: float,
    verify_s: Floats, sure: float,
) -> tuple[int, int]:  # fmt: skip
    """First and last bucket in which some rate may be at least ``sure``; (0, -1) for none."""
    bar = sure * (1.0 - SLACK)
    first, last = BUCKETS, -1
    for b in range(BUCKETS):
        top = (largest - b * step) * (1.0 + SLACK)
        reach = tokens[b]
        for k in range(start + ends[b] + 1, min(start + ends[b + 1], most) + 1):
            reach += top
            if reach >= bar * (fixed_s + verify_s[k]):
                first, last = min(first, b), b
                break
    return (first, last) if last >= 0 else (0, -1)
