"""Budget search that replans as it admits: Algorithm 1 for cost curves that are not smooth.

Drafts are admitted in order of value v_1 >= v_2 >= ... At a checkpoint with ``a`` admitted, the
values ahead are taken to fall as they have done lately, v_i = v_{a+1} * shape(i) / shape(a+1), and
the walk goes on towards the best point ahead,

    argmax over B >= a of (tokens so far + v_{a+1} + ... + v_B) / t(B),

for one stride, then looks again; it ends where a itself is best. Stairs of the cost curve are seen
before they are climbed, and a stair once paid for is filled. Admission of a draft depends on the
past, on better-ranked drafts and on its own value, never on later ones: non-anticipating.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from policies.base import Floats

CHECKS = 2
"""Checkpoints per R admitted drafts."""
GRID = 8
"""Points of the remembered shape per R ranks."""
SHAPE_RATE = 0.05
"""Weight of the newest step in the remembered shape."""


def first_shape(gamma: int) -> Floats:
    """A straight fall over all ranks, before anything was seen."""
    return np.linspace(1.0, 0.05, GRID * gamma)


@njit(cache=True)
def _ahead(shape: Floats, total: int, rows: int) -> Floats:
    """Remembered value of the best 0..total drafts of a batch of ``rows`` requests."""
    ahead = np.zeros(total + 1)
    tokens, i = 0.0, 0
    for point in range(shape.size):
        last = total if point == shape.size - 1 else min(total, -(-(point + 1) * rows // GRID))
        while i < last:
            tokens += shape[point]
            i += 1
            ahead[i] = tokens
    return ahead


@njit(cache=True, error_model="numpy")
def trimming_pays(
    base: float, fixed_s: float, ragged_s: Floats, verify_s: Floats, shape: Floats, rows: int
) -> bool:
    """Whether some trimmed step, at ``ragged_s``, should beat verifying everything.

    Judged by the remembered shape alone, before this step's values are looked at.
    """
    total = verify_s.size - 1
    ahead = _ahead(shape, total, rows)
    full_rate = (base + ahead[total]) / (fixed_s + verify_s[total])
    for v in range(total):
        tokens = base + ahead[v]
        if tokens > full_rate * (fixed_s + ragged_s[v]):
            return True
    return False


@njit(cache=True, error_model="numpy")
def lookahead_budget(
    falling: Floats,
    base: float,
    fixed_s: float,
    verify_s: Floats,
    shape: Floats,
    rows: int,
) -> int:
    """Drafts to admit, for values ``falling``, largest first, of ``rows`` requests.

    ``verify_s[B]`` [total + 1]: the target pass with B drafts; ``base``: tokens that come anyway.
    """
    total = verify_s.size - 1
    ahead = _ahead(shape, total, rows)
    stride = max(1, rows // CHECKS)
    admitted, tokens = 0, base
    while admitted < total:
        here = ahead[admitted]
        scale = falling[admitted] / (ahead[admitted + 1] - here)
        target, best = admitted, -np.inf
        for v in range(admitted, total + 1):
            rate = (tokens + scale * (ahead[v] - here)) / (fixed_s + verify_s[v])
            if rate > best:
                target, best = v, rate
        if target == admitted:
            break
        target = min(target, admitted + stride)
        while admitted < target:
            tokens += falling[admitted]
            admitted += 1
    return admitted


@njit(cache=True)
def remember_shape(shape: Floats, falling: Floats, rows: int) -> None:
    """Fold a step's sorted values into ``shape``, by rank per request; kept above 0."""
    for i in range(shape.size):
        rank = i * rows // GRID
        value = falling[rank] if rank < falling.size else 0.0
        shape[i] += SHAPE_RATE * (max(value, 1e-6) - shape[i])
