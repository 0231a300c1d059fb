"""Selection primitives that the policies share: survivals, how many to admit, and which.

Survival S[r, j] = c[r, 1] ... c[r, j] is the probability that the prefix through draft token j is
accepted. A budget B admits the B largest survivals of the step; as S never rises along a row, that
set is a prefix per request, and the expected tokens of the step are base + the sum of its values.

``survivals`` and the admitting loop are numba-compiled once per array type and cached on disk;
``warm_up`` compiles them before a clock runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from policies.base import Floats, Ints, VerifyState
from policies.order import best_budget, early_stop_budget, kth_largest

Confidences = npt.NDArray[np.floating]


@njit(cache=True)
def survivals(confidences: Confidences, drafted: Ints) -> Floats:
    """Prefix survivals [R, gamma] of confidences [R, gamma]; 0 beyond ``drafted`` [R]."""
    rows, gamma = confidences.shape
    out = np.zeros((rows, gamma))
    for r in range(rows):
        product = 1.0
        for j in range(drafted[r]):
            product *= confidences[r, j]
            out[r, j] = product
    return out


@njit(cache=True)
def prefix_above(confidences: Confidences, drafted: Ints, tau: float, survival: bool) -> Ints:
    """Leading positions [R] whose survival (else: confidence) is at least ``tau``."""
    lengths = np.zeros(drafted.size, dtype=np.int64)
    for r in range(drafted.size):
        product = 1.0
        for j in range(drafted[r]):
            product *= confidences[r, j]
            if (product if survival else confidences[r, j]) < tau:
                break
            lengths[r] += 1
    return lengths


@njit(cache=True)
def draft_counts(drafted: Ints) -> tuple[int, int, int]:
    """Requests that drafted, the longest draft, and all draft tokens of ``drafted`` [R]."""
    drafting, longest, total = 0, 0, 0
    for length in drafted:
        drafting += length > 0
        longest = max(longest, length)
        total += length
    return drafting, longest, total


@njit(cache=True)
def top_budget(survival: Floats, drafted: Ints, budget: int) -> Ints:
    """Lengths [R] that admit the ``budget`` largest survivals, at most ``drafted`` per row.

    The order is survival descending, position ascending, row ascending: token values never enter.
    """
    rows, gamma = survival.shape
    lengths = np.zeros(rows, dtype=np.int64)
    if budget <= 0:
        return lengths
    if budget >= drafted.sum():
        lengths[:] = drafted
        return lengths
    threshold, left = kth_largest(survival, budget), budget
    for r in range(rows):
        for j in range(drafted[r]):
            if survival[r, j] <= threshold:
                break
            lengths[r] += 1
            left -= 1
    for j in range(gamma):  # ties at the threshold: earlier position first, then earlier row
        for r in range(rows):
            if left == 0:
                return lengths
            if lengths[r] == j and j < drafted[r] and survival[r, j] == threshold:
                lengths[r] += 1
                left -= 1
    return lengths


@njit(cache=True)
def believed_cost_s(
    drafted: Ints, batch: int, other_tokens: int, draft_s: Floats, verify_s: Floats
) -> tuple[float, Floats]:
    """Seconds of drafting, and of the target pass at B = 0, 1, ..., all, by a ``CostTable``.

    ``batch`` > 0 charges full blocks for so many requests instead of what was drafted.
    """
    drafting, longest, total = draft_counts(drafted)
    if batch > 0:
        drafting, longest = batch, draft_s.shape[0] - 1
    fixed_s = draft_s[longest, min(drafting, draft_s.shape[1] - 1)]
    last = verify_s.size - 1
    slope_s = verify_s[last] - verify_s[last - 1] if last > 0 else 0.0
    curve_s = np.empty(total + 1)
    for b in range(total + 1):
        tokens = other_tokens + b
        beyond = max(tokens - last, 0)
        curve_s[b] = verify_s[min(tokens, last)] + slope_s * beyond
    return fixed_s, curve_s


@njit(cache=True)
def lagged_budget(
    lagged: Confidences, drafted: Ints, base: float, batch: int, other_tokens: int,
    draft_s: Floats, verify_s: Floats,
) -> int:  # fmt: skip
    """The best budget of the lagged survivals; arguments as ``believed_cost_s`` has them."""
    fixed_s, curve_s = believed_cost_s(drafted, batch, other_tokens, draft_s, verify_s)
    return int(best_budget(survivals(lagged, drafted), base, fixed_s, curve_s)[0])


@njit(cache=True)
def spend(current: Confidences, drafted: Ints, budget: int) -> Ints:
    """Lengths [R] that admit the ``budget`` likeliest drafts."""
    return top_budget(survivals(current, drafted), drafted, budget)


def step_cost_s(state: VerifyState) -> tuple[float, Floats]:
    """Believed seconds of this step: the fixed part, and the target pass at B = 0, 1, ..., all.

    The drafts exist already, but their time is part of the step that B divides.
    """
    cost = state.cost
    believed: tuple[float, Floats] = believed_cost_s(
        state.drafted, 0, state.other_tokens, cost.draft_s, cost.verify_s
    )
    return believed


def warm_up() -> None:
    """Compile every kernel for the array types that simulator and live loop pass."""
    drafted = np.array([2, 1], dtype=np.int64)
    for kind in (np.float32, np.float64):
        for writeable in (True, False):
            confidences: Confidences = np.array([[0.9, 0.8], [0.7, 0.0]], dtype=kind)
            confidences.setflags(write=writeable)
            drafted.setflags(write=writeable)
            survival = survivals(confidences, drafted)
            curve = np.array([1.0, 1.5, 2.0, 3.0])
            curve.setflags(write=False)
            for base in (2, 2.0):
                best_budget(survival, base, 0.5, curve)
                early_stop_budget(survival, base, 0.5, curve)
            draft_s = np.ones((3, 4))
            draft_s.setflags(write=False)
            believed_cost_s(drafted, 0, 2, draft_s, curve)
            lagged_budget(confidences, drafted, 2, 0, 2, draft_s, curve)
            spend(confidences, drafted, 2)
            draft_counts(drafted)
            prefix_above(confidences, drafted, 0.5, True)
            top_budget(survival, drafted, 2)
            drafted = drafted.copy()
