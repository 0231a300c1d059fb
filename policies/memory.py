"""What a request's recent blocks were worth, kept by cache slot and shrunk to its domain's mean."""

from __future__ import annotations

import numpy as np
from numba import njit

from policies.base import Bools, Floats, Ints, VerifyState

WINDOW_BLOCKS = 16.0
"""Blocks of a request that its running mean remembers."""
PRIOR_BLOCKS = 4.0
"""Blocks of evidence that the domain's mean counts for."""
DOMAIN_BLOCKS = 1000.0
"""Blocks of a domain that its running mean remembers."""
FIRST_SURVIVAL = 0.7
"""Survival per position before anything was seen: hopeful, so that drafting starts."""


@njit(cache=True)
def _learn(
    survival: Floats,
    drafted: Ints,
    slots: Ints,
    domain: Ints,
    price: float,
    blocks: Floats,
    surplus: Floats,
    domain_blocks: Floats,
    domain_surplus: Floats,
    domain_survival: Floats,
) -> None:
    for r in range(slots.size):
        slot, area = slots[r], domain[r]
        if drafted[r] == 0:
            continue
        blocks[slot] = min(blocks[slot] + 1.0, WINDOW_BLOCKS)
        domain_blocks[area] = min(domain_blocks[area] + 1.0, DOMAIN_BLOCKS)
        for j in range(drafted[r]):
            gain = max(0.0, survival[r, j] - price)
            surplus[slot, j] += (gain - surplus[slot, j]) / blocks[slot]
            domain_surplus[area, j] += (gain - domain_surplus[area, j]) / domain_blocks[area]
            domain_survival[area, j] += (survival[r, j] - domain_survival[area, j]) / domain_blocks[
                area
            ]


@njit(cache=True)
def _worth(
    slots: Ints, domain: Ints, blocks: Floats, surplus: Floats, domain_surplus: Floats
) -> Floats:
    gamma = surplus.shape[1]
    out = np.empty((gamma, slots.size))
    for r in range(slots.size):
        share = blocks[slots[r]] / (blocks[slots[r]] + PRIOR_BLOCKS)
        total = 0.0
        for j in range(gamma):
            own, prior = surplus[slots[r], j], domain_surplus[domain[r], j]
            total += share * own + (1.0 - share) * prior
            out[j, r] = total
    return out


@njit(cache=True)
def _fill_unknown(
    lagged: Floats, drafted: Ints, known: Bools, domain: Ints, means: Floats, survival: Floats
) -> None:
    for r in range(drafted.size):
        for j in range(drafted[r]):
            if not known[r] or lagged[r, j] == 0.0:
                survival[r, j] = means[domain[r], j]


class BlockValue:
    """Running means of survival and of surplus max(0, S - price), by request and by domain.

    ``age`` [slots] counts steps since admission, ``missed`` [slots] the tokens that went by while a
    request did not draft.
    """

    def __init__(self, gamma: int) -> None:
        self._first = FIRST_SURVIVAL ** np.arange(1.0, gamma + 1)
        self.age: Ints = np.zeros(0, dtype=np.int64)
        self.missed: Ints = np.zeros(0, dtype=np.int64)
        self._blocks = np.zeros(0)
        self._surplus = np.zeros((0, gamma))
        self._domain_blocks = np.zeros(0)
        self._domain_surplus = np.zeros((0, gamma))
        self._domain_survival = np.zeros((0, gamma))

    def admit(self, slots: Ints, fresh: Ints) -> None:
        """Make room for ``slots``, age them by a step, and forget who had the ``fresh`` before."""
        missing = int(slots.max(initial=-1)) + 1 - self.age.size
        if missing > 0:
            self.age = np.pad(self.age, (0, missing))
            self.missed = np.pad(self.missed, (0, missing))
            self._blocks = np.pad(self._blocks, (0, missing))
            self._surplus = np.pad(self._surplus, ((0, missing), (0, 0)))
        self.age[slots] += 1
        for memory in (self.age, self.missed, self._blocks):
            memory[fresh] = 0

    def learn(self, state: VerifyState, survival: Floats, price: float) -> None:
        """Fold in the blocks of a step: their survivals, worth max(0, S - price) per position."""
        self._cover_domains(state.domain)
        _learn(
            survival,
            state.drafted,
            state.slots,
            state.domain,
            price,
            self._blocks,
            self._surplus,
            self._domain_blocks,
            self._domain_surplus,
            self._domain_survival,
        )

    def skipped(self, state: VerifyState, tokens: Ints) -> None:
        """Count the ``tokens`` [R] of requests that did not draft; a draft clears its count."""
        self.missed[state.slots] = np.where(state.drafted > 0, 0, self.missed[state.slots] + tokens)

    def worth(self, state: VerifyState) -> Floats:
        """Expected surplus [gamma, R] of drafting 1..gamma tokens for each request."""
        self._cover_domains(state.domain)
        worth: Floats = _worth(
            state.slots, state.domain, self._blocks, self._surplus, self._domain_surplus
        )
        return worth

    def fill_unknown(self, state: VerifyState, known: Bools, survival: Floats) -> None:
        """Put the domain's mean into ``survival`` where a request has no lagged confidence."""
        self._cover_domains(state.domain)
        _fill_unknown(
            state.lagged, state.drafted, known, state.domain, self._domain_survival, survival
        )

    def _cover_domains(self, domain: Ints) -> None:
        missing = int(domain.max(initial=-1)) + 1 - self._domain_blocks.size
        if missing > 0:
            first = np.tile(self._first, (missing, 1))
            self._domain_blocks = np.pad(self._domain_blocks, (0, missing))
            self._domain_surplus = np.vstack([self._domain_surplus, first])
            self._domain_survival = np.vstack([self._domain_survival, first])
