"""The target's half of the live loop on the device: the ragged pass and acceptance.

Row i of every call is the sequence in cache slot i, unless the cache is paged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from drafters.base import Drafter
from drafters.batch import make_batch
from drafters.cache import KVCache
from drafters.captured import CapturedPass
from drafters.drafting import Block, Drafting, DraftRunner
from drafters.graphs import captured_sizes, memory_pool, next_size
from drafters.judging import best_tokens, first_tokens, judge, rehearse
from drafters.paging import BlockPool, PagedCache, PassInputs
from drafters.request import Running
from drafters.target import Target

LEAST_CAPTURED_TOKENS, MOST_CAPTURED_TOKENS = 512, 2048  # where the largest graph lies


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
    """[rows] ``judging.best_tokens`` of each."""
    features: Tensor
    """[at least tokens, m * d] features of the flattened tokens."""
    last: list[int]
    """Row in ``logits`` of the last token of each sequence that joins."""
    tokens_padded: int
    counts: list[int]
    """Flattened tokens of each sequence."""


class Runner:
    """A target and its cache for ``slots`` sequences of up to ``capacity`` tokens; ``drafts`` is
    the drafter's half, if there is one.

    With ``paged`` the keys lie in the blocks of that pool, not in slots. ``graphs``, for paged
    keys, runs passes and drafts as captured graphs (off CUDA: their replays in eager form).
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
        self.target, self.gamma, self.slots, self.graphs = target, gamma, slots, graphs
        self.feature_layers = drafter.feature_layers if drafter else ()
        self.device = target.norm.weight.device
        like = target.norm.weight.detach()
        self.cache: KVCache | PagedCache = (
            target.new_cache(slots, capacity)
            if paged is None
            else PagedCache(target.num_layers, target.shape, paged, slots, capacity, like)
        )
        # Half as much again as full blocks take: prompts are prefilled beside them.
        most = max(slots * (1 + gamma) * 3 // 2, LEAST_CAPTURED_TOKENS)
        self.sizes = captured_sizes(min(most, MOST_CAPTURED_TOKENS))
        self._pool = memory_pool(self.device) if graphs else None
        self._passes: dict[int, CapturedPass] = {}
        width = len(self.feature_layers) * target.shape.hidden_size
        self._features = like.new_zeros(self.sizes[-1] if graphs else 0, width)
        self.drafts: DraftRunner | None = None
        if drafter:
            self.drafts = DraftRunner(drafter, gamma, slots, capacity, self._features, graphs)

    @torch.no_grad()
    def capture(self, hot: bool, lengths: Sequence[int]) -> None:
        """Capture every size ahead, and drafts of these ``lengths``; ``hot``: also for temperatures
        above 0, and compile what judges those."""
        if not self.graphs:
            return
        for size in reversed(self.sizes):
            self._captured_pass(size)
        if self.drafts is not None:
            self.drafts.capture(hot, lengths)
        if hot:
            left = self.drafts.left() if self.drafts else ()
            for n, proposal in [(1, None), (2, None), *((len(p.tokens), p) for p in left)]:
                logits = self._features.new_zeros(n, self.target.vocab_size)
                rehearse(proposal, logits, self.gamma)

    def _captured_pass(self, size: int) -> CapturedPass:
        if size not in self._passes:
            assert isinstance(self.cache, PagedCache)
            widest = self.gamma + 1
            self._passes[size] = CapturedPass(
                self.target, self.cache, size, min(size, self.slots + size // widest), widest,
                self.feature_layers, self._features, self._drawn, self._pool,
            )  # fmt: skip
        return self._passes[size]

    @property
    def _drawn(self) -> Tensor | None:
        return self.drafts.drawn if self.drafts and self.drafts.captures else None

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
        drafts = block.tokens if block else [[]] * len(lengths)
        known = [drafts[i][:length] for i, length in enumerate(lengths)]
        return self.judge(self._begin(rows, chunks, known), rows, chunks, block, lengths)

    def begin(
        self, rows: Sequence[Running], chunks: list[int], drafting: Drafting, lengths: list[int]
    ) -> Pass | None:
        """Begin the pass of ``verify`` on drafts that the host does not know yet, for ``judge`` to
        wait for; None, and nothing done, where draft or pass is not captured."""
        total = len(lengths) + sum(lengths) + sum(chunks)
        if not (drafting.captured and self.graphs and next_size(self.sizes, total)):
            return None
        width, sources = drafting.proposal.tokens.shape[1], []
        for slot, length in enumerate(lengths):
            first = 1 + slot * width
            sources += [0, *range(first, first + length)]
        return self._begin(rows, chunks, [[0] * length for length in lengths], sources)

    def judge(
        self,
        done: Pass,
        rows: Sequence[Running],
        chunks: list[int],
        block: Block | None,
        lengths: list[int],
    ) -> Outcome:
        """What came of a pass; arguments as in ``verify``."""
        decoding = len(lengths)
        accepted, following = judge(
            rows[:decoding], block.tokens if block else [[]] * decoding,
            block.proposal if block else None, lengths, done.logits, done.choices, self.gamma,
        )  # fmt: skip
        heads = [
            (row, last)
            for row, chunk, last in zip(rows[decoding:], chunks, done.last, strict=True)
            if row.ends_prefill(chunk)
        ]
        following += first_tokens(heads, done.logits, done.choices, self.gamma)
        if self.drafts is not None:
            kept = [1 + a for a in accepted] + chunks
            self.drafts.keep(rows, done.features, done.counts, kept)
        return Outcome(accepted, following, done.tokens_padded)

    def _begin(
        self,
        rows: Sequence[Running],
        chunks: list[int],
        drafts: list[list[int]],
        sources: Sequence[int] = (),
    ) -> Pass:
        """Launch the pass; ``drafts`` of each decoding row are verified whole."""
        decoding = len(drafts)
        parts = [
            [row.tokens[-1], *draft] for row, draft in zip(rows[:decoding], drafts, strict=True)
        ]
        joining = zip(rows[decoding:], chunks, strict=True)
        parts += [row.tokens[row.cached : row.cached + chunk] for row, chunk in joining]
        if self.drafts is not None:
            self.drafts.set_aside(rows)
        return self._pass(rows, parts, decoding, sources)

    def _pass(
        self,
        rows: Sequence[Running],
        parts: list[list[int]],
        decoding: int,
        sources: Sequence[int],
    ) -> Pass:
        counts = [len(part) for part in parts]
        ends, total = list(accumulate(counts)), sum(counts)
        size = next_size(self.sizes, total) if self.graphs else 0
        if size:
            logits, choices = self._captured_pass(size).run(rows, parts, sources)
            last = [end - 1 for end in ends[decoding:]]
            return Pass(logits, choices, self._features, last, size, counts)
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
        return Pass(logits, best_tokens(logits), features, last, total, counts)

    def move(self, source: int, destination: int, row: Running) -> None:
        """Copy what is cached of ``row`` from one slot over another."""
        self.cache.move(source, destination, row.cached)
        if self.drafts is not None:
            self.drafts.move(source, destination, row)

    def wipe(self, slot: int) -> None:
        """Leave nothing in a slot that may hold NaN: masked attention multiplies what it does not
        look at by zero."""
        self.cache.wipe(slot)
        if self.drafts is not None:
            self.drafts.state.wipe(slot)

    def forget(self) -> None:
        """Be ready for another engine's requests."""
        if isinstance(self.cache, PagedCache):
            self.cache.forget()

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
