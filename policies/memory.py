"""What drafting was worth to each request lately, by cache slot, shrunk to its domain's mean.

For a block with survivals S, in a step where a draft had to be worth ``bar`` to be verified,
position j brought S_j tokens for one verified token where w S_j >= bar, else nothing at no cost.
``pace`` is the request's running mean of tokens per step.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from policies.base import Floats, Ints, VerifyState

WINDOW_BLOCKS = 32.0
"""Blocks of a request that its running means remember."""
PRIOR_BLOCKS = 4.0
"""Blocks of evidence that the domain's mean counts for."""
DOMAIN_BLOCKS = 1000.0
"""Blocks of a domain that its running mean remembers."""
PACE_STEPS = 1000
"""Steps that the mean pace remembers."""
FIRST_SURVIVAL = 0.7
"""Survival per position before anything was seen: hopeful, so that drafting starts."""


@njit(cache=True)
def _last_codes(slots: Ints, domain: Ints) -> tuple[int, int]:
    last_slot, last_domain = -1, -1
    for r in range(slots.size):
        last_slot, last_domain = max(last_slot, slots[r]), max(last_domain, domain[r])
    return last_slot, last_domain


@njit(cache=True)
def _learn(
    survival: Floats,
    weights: Floats,
    bar: float,
    tokens: Ints,
    drafted: Ints,
    slots: Ints,
    domain: Ints,
    pace: Floats,
    missed: Ints,
    blocks: Floats,
    worth: Floats,
    domain_blocks: Floats,
    domain_worth: Floats,
) -> None:
    for r in range(slots.size):
        slot, area = slots[r], domain[r]
        pace[slot] += (tokens[r] - pace[slot]) / WINDOW_BLOCKS
        if drafted[r] == 0:
            missed[slot] += tokens[r]
            continue
        missed[slot] = 0
        blocks[slot] = min(blocks[slot] + 1.0, WINDOW_BLOCKS)
        domain_blocks[area] = min(domain_blocks[area] + 1.0, DOMAIN_BLOCKS)
        for j in range(drafted[r]):
            kept = weights[r] * survival[r, j] >= bar
            for part in range(2):
                value = (survival[r, j] if part == 0 else 1.0) if kept else 0.0
                worth[slot, j, part] += (value - worth[slot, j, part]) / blocks[slot]
                mean = domain_worth[area, j, part]
                domain_worth[area, j, part] = mean + (value - mean) / domain_blocks[area]


@njit(cache=True)
def _expected(
    slots: Ints, domain: Ints, blocks: Floats, worth: Floats, domain_worth: Floats
) -> Floats:
    gamma = worth.shape[1]
    out = np.empty((slots.size, gamma, 2))
    for r in range(slots.size):
        share = blocks[slots[r]] / (blocks[slots[r]] + PRIOR_BLOCKS)
        gain, cost = 0.0, 0.0
        for j in range(gamma):
            own, prior = worth[slots[r], j], domain_worth[domain[r], j]
            gain += share * own[0] + (1.0 - share) * prior[0]
            cost += share * own[1] + (1.0 - share) * prior[1]
            out[r, j, 0], out[r, j, 1] = gain, cost
    return out


class DraftWorth:
    """Running means of tokens gained and verified per draft position, by request and domain.

    ``mean_pace``: tokens per request and step. By slot: ``pace``, the same of one request;
    ``missed``, tokens made since the request last drafted.
    """

    def __init__(self, gamma: int) -> None:
        first = FIRST_SURVIVAL ** np.arange(1.0, gamma + 1)
        self._first = np.stack([first, np.ones(gamma)], axis=1)
        self.pace = np.zeros(0)
        self.missed: Ints = np.zeros(0, dtype=np.int64)
        self.mean_pace = 1.0
        self._steps = 0
        self._blocks = np.zeros(0)
        self._worth = np.zeros((0, gamma, 2))
        self._domain_blocks = np.zeros(0)
        self._domain_worth = np.zeros((0, gamma, 2))

    def admit(self, state: VerifyState, fresh: Ints) -> None:
        """Make room for the state's slots and domains; forget who had the ``fresh`` slots."""
        slot, domain = _last_codes(state.slots, state.domain)
        if slot >= self._blocks.size:
            more = slot + 1 - self._blocks.size
            self.pace = np.pad(self.pace, (0, more), constant_values=1.0)
            self.missed = np.pad(self.missed, (0, more))
            self._blocks = np.pad(self._blocks, (0, more))
            self._worth = np.pad(self._worth, ((0, more), (0, 0), (0, 0)))
        if domain >= self._domain_blocks.size:
            more = domain + 1 - self._domain_blocks.size
            self._domain_blocks = np.pad(self._domain_blocks, (0, more))
            first = np.broadcast_to(self._first, (more, *self._first.shape))
            self._domain_worth = np.concatenate([self._domain_worth, first])
        if fresh.size:
            self.pace[fresh] = self.mean_pace
            self.missed[fresh] = 0
            self._blocks[fresh] = 0.0
            self._worth[fresh] = self._domain_worth[state.domain[state.fresh]]

    def learn(
        self, state: VerifyState, survival: Floats, weights: Floats, bar: float, tokens: Ints
    ) -> None:
        """Fold in a step: survivals, weights, the bar they were held to, the tokens [R] made."""
        self._steps = min(self._steps + 1, PACE_STEPS)
        self.mean_pace += (float(tokens.mean()) - self.mean_pace) / self._steps
        _learn(
            survival,
            weights,
            bar,
            tokens,
            state.drafted,
            state.slots,
            state.domain,
            self.pace,
            self.missed,
            self._blocks,
            self._worth,
            self._domain_blocks,
            self._domain_worth,
        )

    def expected(self, state: VerifyState) -> Floats:
        """[R, gamma, 2] tokens gained and verified if the next block has 1..gamma drafts."""
        expected: Floats = _expected(
            state.slots, state.domain, self._blocks, self._worth, self._domain_worth
        )
        return expected
