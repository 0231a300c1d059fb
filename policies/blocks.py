"""What a batch could make of its drafts: rates promised by a sample of recent blocks.

The sample holds the survivals of the latest full blocks. A batch of R requests that draft k tokens
each is taken to offer the values of its first k columns, R / n times over, and verifies as many of
the best as pay: the promised rate is

    max over B of (R + value of the best B) / (draft_s[k, R] + verify_s[R + B]).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from policies.base import Floats, Ints
from policies.order import sort_falling

BLOCKS = 32
"""Blocks in the sample."""
NEW_BLOCKS = 8
"""Most blocks that one step adds, so that a large batch does not replace the past at once."""
FIRST_SURVIVAL = 0.7
"""Survival per position before anything was seen: hopeful, so that drafting starts."""


class BlockSample:
    """Survivals [n, gamma] of the latest blocks that drafted all gamma."""

    def __init__(self, gamma: int) -> None:
        self._ring = np.tile(FIRST_SURVIVAL ** np.arange(1.0, gamma + 1), (BLOCKS, 1))
        self.added = 0

    def add(self, survival: Floats, drafted: Ints) -> None:
        """Keep evenly spread rows of survivals [R, gamma], those that are full."""
        self.added = _keep(self._ring, self.added, survival, drafted)

    def rates(self, rows: int, draft_s: Floats, ragged_s: Floats, verify_s: Floats) -> Floats:
        """[gamma + 1] tokens per second promised to ``rows`` requests that draft 0..gamma each.

        ``draft_s`` [gamma + 1]: seconds to draft so many for all of them; ``verify_s[B]``: the
        target pass with B drafts, all that were drafted; ``ragged_s[B]``: with a part of them.
        """
        rates: Floats = _rates(self._ring, rows, draft_s, ragged_s, verify_s)
        return rates


@njit(cache=True)
def _keep(ring: Floats, added: int, survival: Floats, drafted: Ints) -> int:
    stride = 1 + (drafted.size - 1) // NEW_BLOCKS
    for r in range(0, drafted.size, stride):
        if drafted[r] == ring.shape[1]:
            ring[added % BLOCKS] = survival[r]
            added += 1
    return added


@njit(cache=True, error_model="numpy")
def _rates(
    sample: Floats, rows: int, draft_s: Floats, ragged_s: Floats, verify_s: Floats
) -> Floats:
    rates = np.zeros(draft_s.size)
    rates[0] = rows / verify_s[0]
    each = rows / sample.shape[0]
    for k in range(1, draft_s.size):
        falling = sample[:, :k].copy().ravel()
        sort_falling(falling)
        tokens, pass_s = float(rows), ragged_s
        for i in range(falling.size):
            tokens += each * falling[i]
            if i == falling.size - 1:
                pass_s = verify_s
            rate = tokens / (draft_s[k] + pass_s[int(each * (i + 1) + 0.5)])
            rates[k] = max(rates[k], rate)
    return rates
