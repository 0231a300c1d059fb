"""The drafter's half of the live loop on the device: features in, blocks out.

Row i of every call is the sequence in slot i of the drafter's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drafters.base import Drafter, Proposal, Sampler
from drafters.beliefs import heard, told
from drafters.block import BlockDrafter
from drafters.cache import KVCache
from drafters.captured import CapturedDraft
from drafters.graphs import memory_pool, next_size, powers_of_two, say_once
from drafters.judging import Uniforms, temperatures_of, uniforms_of
from drafters.module import DraftModule
from drafters.request import Running

ALIGNED = 16  # positions: masks of attention want rows of whole vectors


class Block(NamedTuple):
    """What was drafted, on the host."""

    tokens: list[list[int]]
    """[n][k] draft tokens."""
    raw: Uniforms
    """[n, k] raw confidences on their grid (``drafters.beliefs``)."""
    proposal: Proposal
    """The same on the device."""


class Drafting:
    """A block that the device may still be at work on."""

    def __init__(self, proposal: Proposal, told: Tensor, captured: bool) -> None:
        """``told`` [n, 3 k], see ``drafters.beliefs``. ``captured``: whether the tokens also lie
        where a captured pass finds them."""
        self.proposal, self.captured = proposal, captured
        self._told = told.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if told.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def block(self) -> Block:
        """The block, once it is there; what the device was given since is not waited for."""
        if self._arrived:
            self._arrived.synchronize()
        return Block(*heard(self._told), self.proposal)


class DraftRunner:
    """A drafter and its state for ``slots`` sequences of up to ``capacity`` tokens.

    With ``graphs`` the drafts of trained drafters are captured (off CUDA: their replays in eager
    form); these read features where target passes leave them, in ``features``.
    """

    def __init__(
        self,
        drafter: Drafter,
        gamma: int,
        slots: int,
        capacity: int,
        features: Tensor,
        graphs: bool,
    ) -> None:
        self.drafter, self.gamma, self.slots, self.capacity = drafter, gamma, slots, capacity
        self.device, self.graphs = features.device, graphs
        self.captures = graphs and isinstance(drafter, DraftModule)
        self.counts = powers_of_two(slots)
        self.state = self._new_state()
        self._features = features
        # Not the passes' own: a block is judged after the pass over it has run.
        self._pool = memory_pool(self.device) if self.captures else None
        self.drawn = torch.zeros(1 + self.counts[-1] * gamma, dtype=torch.long, device=self.device)
        """The tokens of the last captured draft, row by row, behind a zero."""
        self._captured: dict[tuple[int, int, bool], CapturedDraft] = {}
        self._draws_apart = not getattr(drafter, "drawn_in_one", False)
        if graphs and not self.captures:
            say_once(f"{type(drafter).__name__} drafts eagerly: it has no shapes to capture")

    def _new_state(self) -> object:
        """The drafter's state; of a captured one, for all slots of the largest draft."""
        if not self.graphs:
            return self.drafter.new_state(self.slots, self.capacity)
        if isinstance(self.drafter, BlockDrafter):
            return self.drafter.new_rows(self.counts[-1], self.capacity)
        room = -(-(self.capacity + self.gamma) // ALIGNED) * ALIGNED - self.gamma
        state = self.drafter.new_state(self.counts[-1], room)
        cache = getattr(state, "cache", state)
        if isinstance(cache, KVCache):
            cache.whole = True
        return state

    def capture(self, hot: bool, lengths: Sequence[int]) -> None:
        """Capture drafts of these ``lengths`` for every count of requests ahead; ``hot``: also at
        temperatures above 0."""
        heats = {False, hot and self._draws_apart}
        wanted = product(reversed(self.counts), sorted(lengths, reverse=True), heats)
        for count, length, heat in wanted if self.captures else ():
            self._capture(count, length, heat)

    def left(self) -> Iterator[Proposal]:
        """What captured drafts have left: for all the requests of each, and for all but one."""
        for captured in self._captured.values():
            for n in {captured.count, max(1, captured.count - 1)}:
                yield captured.last(n)

    def _capture(self, count: int, length: int, hot: bool) -> CapturedDraft:
        key = count, length, hot
        if key not in self._captured:
            self._captured[key] = CapturedDraft(
                self.drafter,
                self.state,
                self._features,
                self.drawn,
                count,
                length,
                hot,
                self.capacity - 1,
                self._pool,
            )
        return self._captured[key]

    def begin(self, rows: Sequence[Running]) -> Drafting | None:
        """Begin a block for each row, as long as the longest one wanted; None if none is."""
        longest = max((row.drafted for row in rows), default=0)
        if not longest:
            return None
        self.extend(rows)
        heat = [row.request.temperature for row in rows]
        hot = any(heat)
        uniforms = (
            uniforms_of(rows, self.gamma)[:, :longest] if hot else np.zeros((len(rows), longest))
        )
        if self.captures:
            count = next_size(self.counts, len(rows))
            captured = self._capture(count, longest, hot and self._draws_apart)
            drafting = Drafting(*captured.run(rows, heat, uniforms), captured=True)
        else:
            drafting = self._propose(rows, longest, hot, uniforms)
        for row in rows:
            if row.drafted:
                row.extended, row.kept = row.cached, (0, 0)
        found = drafting.proposal.drafted
        if found is not None:
            for row, real in zip(rows, found.tolist(), strict=True):
                row.drafted = min(row.drafted, real)
        return drafting

    def _propose(
        self, rows: Sequence[Running], longest: int, hot: bool, uniforms: Uniforms
    ) -> Drafting:
        anchors = self._tensor([row.tokens[-1] for row in rows])
        positions = self._tensor([row.cached for row in rows])
        heat = temperatures_of(rows, self.device)
        fused = self.device.type == "cuda"
        drawn = torch.from_numpy(uniforms).to(self.device)
        sampler = Sampler(heat, drawn, any_hot=hot, fused=fused)
        proposal = self.drafter.propose(self.state, anchors, positions, longest, sampler)
        return Drafting(proposal, told(proposal, heat), captured=False)

    def extend(self, rows: Sequence[Running]) -> None:
        """Give the drafter the ``pending`` features of the rows that draft; equally long parts
        share a call, so that none is padded."""
        behind = [slot for slot, row in enumerate(rows) if row.drafted and row.pending]
        self.set_aside([rows[slot] for slot in behind])
        alike: dict[int, list[int]] = {}
        for slot in behind:
            alike.setdefault(rows[slot].cached - rows[slot].extended, []).append(slot)
        for count, slots in alike.items():
            group = [rows[slot] for slot in slots]
            starts = self._tensor([row.extended for row in group])
            self.drafter.extend(
                self.state,
                self._tensor([row.tokens[row.extended : row.cached] for row in group]),
                torch.stack([torch.cat(row.pending) for row in group]),
                starts.unsqueeze(1) + torch.arange(count, device=self.device),
                self._tensor(slots),
            )
            for row in group:
                row.extended, row.pending = row.cached, []

    def keep(
        self,
        rows: Sequence[Running],
        features: Tensor,
        counts: list[int],
        kept: list[int],
    ) -> None:
        """Leave with each row, which had so many ``counts`` of the flattened tokens, the features
        of the first ``kept`` of them: where they lie, if a captured draft can take them there."""
        in_buffer = features is self._features
        for row, start, count in zip(rows, accumulate(counts, initial=0), kept, strict=False):
            if in_buffer:
                row.kept = start, count
            else:
                row.pending.append(features[start : start + count])
        if in_buffer:
            taken = self.gamma + 1 if self.captures else 0
            self.set_aside([row for row in rows if row.pending or row.kept[1] > taken])

    def set_aside(self, rows: Sequence[Running]) -> None:
        """Move what the last pass's buffer still holds of rows to where it stays, in one copy."""
        held = [row for row in rows if row.kept[1]]
        if not held:
            return
        lines = [line for row in held for line in range(row.kept[0], sum(row.kept))]
        parts = self._features[self._tensor(lines)].split([row.kept[1] for row in held])
        for row, part in zip(held, parts, strict=True):
            row.pending.append(part)
            row.kept = 0, 0

    def move(self, source: int, destination: int, row: Running) -> None:
        """Copy what is kept of ``row`` from one slot over another."""
        self.state.move(source, destination, row.extended)

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
