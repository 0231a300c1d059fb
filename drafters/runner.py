"""The device half of the live loop: drafting, the ragged target pass, acceptance.

Row i of every call is the sequence in cache slot i, of the target's cache as of the drafter's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from drafters.acceptance import Drafts, verify
from drafters.base import Drafter, Proposal, Sampler
from drafters.batch import make_batch
from drafters.kernels.noise import uniforms
from drafters.paging import BlockPool, PagedCache
from drafters.request import Running
from drafters.target import KVCache, Target, TargetOutput


class Runner:
    """Target, drafter and their caches for ``slots`` sequences of up to ``capacity`` tokens.

    With ``paged`` the target's keys lie in the blocks of that pool, not in slots.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        gamma: int,
        slots: int,
        capacity: int,
        paged: BlockPool | None = None,
    ) -> None:
        self.target, self.drafter, self.gamma = target, drafter, gamma
        self.device = target.norm.weight.device
        self.cache: KVCache | PagedCache = (
            target.new_cache(slots, capacity) if paged is None else _paged_cache(target, paged)
        )
        self.state = drafter.new_state(slots, capacity) if drafter else None

    def draft(self, rows: Sequence[Running]) -> Proposal | None:
        """A block for each row, as long as the longest one wanted; None if none is."""
        longest = max((row.drafted for row in rows), default=0)
        if self.drafter is None or not longest:
            return None
        self.extend(rows)
        anchors = self._tensor([row.tokens[-1] for row in rows])
        positions = self._tensor([row.cached for row in rows])
        sampler = Sampler(self._temperatures(rows), self._uniforms(rows)[:, :longest])
        proposal = self.drafter.propose(self.state, anchors, positions, longest, sampler)
        if proposal.drafted is not None:
            for row, real in zip(rows, proposal.drafted.tolist(), strict=True):
                row.drafted = min(row.drafted, real)
        return proposal

    def extend(self, rows: Sequence[Running]) -> None:
        """Give the drafter what its state lacks of the rows that draft; equally long parts share
        a call, so that none is padded."""
        alike: dict[int, list[int]] = {}
        for slot, row in enumerate(rows):
            if row.drafted and row.cached > row.extended:
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

    def verify(
        self,
        rows: Sequence[Running],
        chunks: list[int],
        proposal: Proposal | None,
        lengths: list[int],
    ) -> tuple[list[int], list[int]]:
        """One target pass; accepted drafts and next token of each row that gets one.

        The first ``len(lengths)`` rows decode and verify so many drafts; the others prefill
        ``chunks`` tokens, and of those only the ones whose prompt ends here get a token. Features
        of what was processed are left with the rows: chunks whole, verified blocks up to the
        rejection.
        """
        decoding = len(lengths)
        drafts = proposal.tokens.tolist() if proposal else [[]] * decoding
        parts = [
            [row.tokens[-1], *drafts[i][: lengths[i]]] for i, row in enumerate(rows[:decoding])
        ]
        joining = list(zip(rows[decoding:], chunks, strict=True))
        parts += [row.tokens[row.cached : row.cached + chunk] for row, chunk in joining]
        counts = [len(part) for part in parts]
        flat = self._tensor([token for part in parts for token in part])
        batch = make_batch(flat, [row.cached for row in rows], counts, decoding)
        if isinstance(self.cache, PagedCache):
            self.cache.show(list(rows))
        out = self.target.ragged(batch, self.cache, self.feature_layers)
        ends = list(accumulate(counts))
        heads = [
            (row, end - 1)
            for (row, chunk), end in zip(joining, ends[decoding:], strict=True)
            if row.ends_prefill(chunk)
        ]
        verified = sum(counts[:decoding])
        accepted, following = self._judge(rows[:decoding], lengths, out.hidden[:verified], proposal)
        following += self._first_tokens(heads, out.hidden)
        if self.drafter is not None:
            kept = [1 + a for a in accepted] + chunks
            self._keep_features(rows, out, counts, kept)
        return accepted, following

    def _keep_features(
        self, rows: Sequence[Running], out: TargetOutput, counts: list[int], kept: list[int]
    ) -> None:
        """Leave with each row the features of the first ``kept`` of its tokens."""
        features = out.hidden[:, :0] if out.features is None else out.features
        for row, part, keep in zip(rows, features.split(counts), kept, strict=True):
            row.pending.append(part[:keep])

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.drafter.feature_layers if self.drafter else ()

    def _judge(
        self,
        rows: Sequence[Running],
        lengths: list[int],
        hidden: Tensor,
        proposal: Proposal | None,
    ) -> tuple[list[int], list[int]]:
        """Accepted drafts and next token of each decoding row."""
        if not rows:
            return [], []
        logits = self.target.lm_head(hidden)
        cu_rows = self._tensor([0, *accumulate(1 + length for length in lengths)])
        drawn = self._uniforms(rows)
        if proposal is None:
            tokens = cu_rows.new_empty((len(rows), 0))
            draft_logits = logits.new_empty((len(rows), 0, logits.shape[1]))
        else:
            tokens, draft_logits = proposal.tokens, proposal.logits
        accept = drawn[:, self.gamma : self.gamma + tokens.shape[1]]
        drafts = Drafts(tokens, draft_logits, accept, drawn[:, -1])
        verdict = verify(logits, cu_rows, drafts, self._temperatures(rows))
        return verdict.accepted.tolist(), verdict.next_tokens.tolist()

    def _first_tokens(self, heads: list[tuple[Running, int]], hidden: Tensor) -> list[int]:
        """What follows each finished prompt; ``heads`` pairs a row with its last token's index."""
        if not heads:
            return []
        rows = [row for row, _ in heads]
        logits = self.target.lm_head(hidden[self._tensor([end for _, end in heads])]).float()
        sampler = Sampler(self._temperatures(rows), self._uniforms(rows)[:, -1:])
        return sampler(0, logits).tolist()

    def move(self, source: int, destination: int, row: Running) -> None:
        """Copy what is cached of ``row`` from one slot over another."""
        self.cache.move(source, destination, row.cached)
        if self.drafter is not None:
            self.state.move(source, destination, row.extended)

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _temperatures(self, rows: Sequence[Running]) -> Tensor:
        heat = [row.request.temperature for row in rows]
        return torch.tensor(heat, dtype=torch.float32, device=self.device)

    def _uniforms(self, rows: Sequence[Running]) -> Tensor:
        """[n, 2 gamma + 1] of each row's own next round: drafts, acceptances, next token."""
        rounds = [row.rounds + bool(row.generated) for row in rows]
        streams = self._tensor([row.stream for row in rows])
        return uniforms(streams, self._tensor(rounds), 2 * self.gamma + 1)


def _paged_cache(target: Target, pool: BlockPool) -> PagedCache:
    like = target.norm.weight.detach()
    return PagedCache(target.num_layers, target.shape, pool.blocks, pool.block_tokens, like)
