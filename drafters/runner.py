"""The device half of the live loop: drafting, the ragged target pass, acceptance.

Row i of every call is the sequence in cache slot i of the drafter's state, and of the target's
cache unless that one is paged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drafters.base import Drafter, Proposal, Sampler
from drafters.batch import make_batch
from drafters.beliefs import heard, told
from drafters.block import BlockDrafter
from drafters.captured import CapturedDraft, CapturedPass
from drafters.graphs import captured_sizes, memory_pool, next_size, powers_of_two, say_once
from drafters.judging import Uniforms, first_tokens, judge, temperatures_of, uniforms_of
from drafters.module import DraftModule
from drafters.paging import BlockPool, PagedCache, PassInputs
from drafters.request import Running
from drafters.sampling import greedy
from drafters.target import KVCache, Target

LEAST_CAPTURED_TOKENS, MOST_CAPTURED_TOKENS = 512, 2048  # where the largest graph lies
ALIGNED = 16  # positions: masks of attention want rows of whole vectors


class Block(NamedTuple):
    """What was drafted, on the host."""

    tokens: list[list[int]]
    """[n][k] draft tokens."""
    raw: Uniforms
    """[n, k] raw confidences on their grid (``drafters.beliefs``)."""
    proposal: Proposal
    """The same on the device."""


class Drafting(NamedTuple):
    """A block that the device may still be at work on."""

    proposal: Proposal
    told: Tensor
    """[n, 2 k], see ``drafters.beliefs``."""

    def block(self) -> Block:
        """The block, once it is there."""
        return Block(*heard(self.told), self.proposal)


class Outcome(NamedTuple):
    """What a target pass decided."""

    accepted: list[int]
    """Accepted drafts of each decoding row."""
    following: list[int]
    """Next token of each decoding row, then the first token of each prompt that ended."""
    tokens_padded: int
    """Tokens that the pass was computed for."""


class Pass(NamedTuple):
    """A target pass before anything is decided."""

    logits: Tensor
    """[rows, V]; those of the decoding rows come first."""
    choices: Tensor
    """[rows] argmax of each."""
    features: Tensor
    """[at least tokens, m * d] features of the flattened tokens."""
    last: list[int]
    """Row in ``logits`` of the last token of each sequence that joins."""
    tokens_padded: int


class Runner:
    """Target, drafter and their caches for ``slots`` sequences of up to ``capacity`` tokens.

    With ``paged`` the target's keys lie in the blocks of that pool, not in slots. ``graphs``, for
    paged keys, runs passes and drafts as captured graphs (off CUDA: their replays in eager form).
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        gamma: int,
        slots: int,
        capacity: int,
        paged: BlockPool | None = None,
        graphs: bool = False,
    ) -> None:
        self.target, self.drafter, self.gamma = target, drafter, gamma
        self.slots, self.capacity, self.graphs = slots, capacity, graphs
        self.device = target.norm.weight.device
        like = target.norm.weight.detach()
        self.cache: KVCache | PagedCache = (
            target.new_cache(slots, capacity)
            if paged is None
            else PagedCache(target.num_layers, target.shape, paged, slots, capacity, like)
        )
        self.counts = powers_of_two(slots)
        most = max(slots * (1 + gamma), LEAST_CAPTURED_TOKENS)
        self.sizes = captured_sizes(min(most, MOST_CAPTURED_TOKENS))
        self.state = self._new_state() if drafter else None
        self._pool = memory_pool(self.device) if graphs else None
        self._passes: dict[int, CapturedPass] = {}
        self._drafts: dict[tuple[int, int, bool], CapturedDraft] = {}
        width = len(self.feature_layers) * target.shape.hidden_size
        self._features = like.new_zeros(self.sizes[-1] if graphs else 0, width)
        self.captures_drafts = graphs and isinstance(drafter, DraftModule)
        self._draws_apart = not getattr(drafter, "drawn_in_one", False)
        if graphs and drafter is not None and not self.captures_drafts:
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

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.drafter.feature_layers if self.drafter else ()

    @torch.no_grad()
    def capture(self, hot: bool) -> None:
        """Capture every size ahead; ``hot``: also for drafts at temperatures above 0."""
        if not self.graphs:
            return
        for size in reversed(self.sizes):
            self._captured_pass(size)
        for count in reversed(self.counts) if self.captures_drafts else ():
            for heat in {False, hot and self._draws_apart}:
                self._captured_draft(count, self.gamma, heat)

    def _captured_pass(self, size: int) -> CapturedPass:
        if size not in self._passes:
            assert isinstance(self.cache, PagedCache)
            widest = self.gamma + 1
            self._passes[size] = CapturedPass(
                self.target, self.cache, size, min(size, self.slots + size // widest), widest,
                self.feature_layers, self._features, self._pool,
            )  # fmt: skip
        return self._passes[size]

    def _captured_draft(self, count: int, length: int, hot: bool) -> CapturedDraft:
        key = count, length, hot
        if key not in self._drafts:
            self._drafts[key] = CapturedDraft(
                self.drafter,
                self.state,
                self._features,
                count,
                length,
                hot,
                self.capacity - 1,
                self._pool,
            )
        return self._drafts[key]

    # --- drafting ---

    def draft(self, rows: Sequence[Running]) -> Drafting | None:
        """Begin a block for each row, as long as the longest one wanted; None if none is."""
        longest = max((row.drafted for row in rows), default=0)
        if self.drafter is None or not longest:
            return None
        self.extend(rows)
        heat = [row.request.temperature for row in rows]
        hot = any(heat)
        uniforms = (
            uniforms_of(rows, self.gamma)[:, :longest] if hot else np.zeros((len(rows), longest))
        )
        if self.captures_drafts:
            count = next_size(self.counts, len(rows))
            captured = self._captured_draft(count, longest, hot and self._draws_apart)
            drafting = Drafting(*captured.run(rows, heat, uniforms))
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
        return Drafting(proposal, told(proposal, heat))

    def extend(self, rows: Sequence[Running]) -> None:
        """Give the drafter the ``pending`` features of the rows that draft; equally long parts
        share a call, so that none is padded."""
        alike: dict[int, list[int]] = {}
        for slot, row in enumerate(rows):
            if row.drafted and row.pending:
                if row.kept[1]:
                    self._set_aside(row)
                alike.setdefault(row.cached - row.extended, []).append(slot)
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

    # --- verification ---

    def verify(
        self,
        rows: Sequence[Running],
        chunks: list[int],
        block: Block | None,
        lengths: list[int],
    ) -> Outcome:
        """One target pass; accepted drafts and next token of each row that gets one.

        The first ``len(lengths)`` rows decode and verify so many drafts; the others prefill
        ``chunks`` tokens, and of those only the ones whose prompt ends here get a token. Features
        of what was processed are left with the rows: chunks whole, verified blocks up to the
        rejection.
        """
        decoding = len(lengths)
        drafts = block.tokens if block else [[]] * decoding
        parts = [
            [row.tokens[-1], *drafts[i][: lengths[i]]] for i, row in enumerate(rows[:decoding])
        ]
        joining = list(zip(rows[decoding:], chunks, strict=True))
        parts += [row.tokens[row.cached : row.cached + chunk] for row, chunk in joining]
        for row in rows:
            if row.kept[1]:
                self._set_aside(row)
        done = self._pass(rows, parts, decoding)
        accepted, following = judge(
            rows[:decoding], drafts, block.proposal if block else None, lengths,
            done.logits, done.choices, self.gamma,
        )  # fmt: skip
        heads = [
            (row, last)
            for (row, chunk), last in zip(joining, done.last, strict=True)
            if row.ends_prefill(chunk)
        ]
        following += first_tokens(heads, done.logits, done.choices, self.gamma)
        if self.drafter is not None:
            kept = [1 + a for a in accepted] + chunks
            self._keep_features(rows, done.features, parts, kept)
        return Outcome(accepted, following, done.tokens_padded)

    def _pass(self, rows: Sequence[Running], parts: list[list[int]], decoding: int) -> Pass:
        counts = [len(part) for part in parts]
        ends, total = list(accumulate(counts)), sum(counts)
        size = next_size(self.sizes, total) if self.graphs else 0
        if size:
            logits, choices = self._captured_pass(size).run(rows, parts)
            last = [end - 1 for end in ends[decoding:]]
            return Pass(logits, choices, self._features, last, size)
        if isinstance(self.cache, PagedCache):
            inputs = PassInputs(total, len(rows), max(counts), self.cache, self.device)
            inputs.fill(rows, parts)
            out = self.target.ragged(inputs.batch, self.cache, self.feature_layers)
        else:
            flat = self._tensor([token for part in parts for token in part])
            batch = make_batch(flat, [row.cached for row in rows], counts, decoding)
            out = self.target.ragged(batch, self.cache, self.feature_layers)
        verified = sum(counts[:decoding])
        wanted = [*range(verified), *(end - 1 for end in ends[decoding:])]
        all_wanted = wanted == list(range(total))
        hidden = out.hidden if all_wanted else out.hidden[self._tensor(wanted)]
        logits = self.target.lm_head(hidden)
        features = out.hidden[:, :0] if out.features is None else out.features
        last = list(range(verified, len(wanted)))
        return Pass(logits, greedy(logits), features, last, total)

    def _keep_features(
        self,
        rows: Sequence[Running],
        features: Tensor,
        parts: list[list[int]],
        kept: list[int],
    ) -> None:
        """Leave with each row the features of the first ``kept`` of its tokens: where they lie, if
        a captured draft can take them from there."""
        starts = accumulate((len(part) for part in parts), initial=0)
        in_place = features is self._features and self.captures_drafts
        for row, start, count in zip(rows, starts, kept, strict=False):
            if in_place and count <= self.gamma + 1 and not row.pending:
                row.kept = start, count
            else:
                part = features[start : start + count]
                row.pending.append(part.clone() if features is self._features else part)

    def _set_aside(self, row: Running) -> None:
        """Move what the last pass's buffer still holds of a row to where it stays."""
        start, count = row.kept
        row.pending.append(self._features[start : start + count].clone())
        row.kept = 0, 0

    # --- rest ---

    def move(self, source: int, destination: int, row: Running) -> None:
        """Copy what is cached of ``row`` from one slot over another."""
        self.cache.move(source, destination, row.cached)
        if self.drafter is not None:
            self.state.move(source, destination, row.extended)

    def forget(self) -> None:
        """Be ready for another engine's requests."""
        if isinstance(self.cache, PagedCache):
            self.cache.forget()

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
