"""The two captured functions of a step: a target pass of T tokens, a draft for n requests.

Sizes are captured ahead or on first use; work is padded up to the next one. Everything that the
host knows goes in with one copy (``drafters.graphs.Inputs``), what it needs comes back with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drafters.base import Proposal, Sampler
from drafters.beliefs import told
from drafters.block import BlockDrafter
from drafters.block_rows import BlockFeed, RowCache
from drafters.graphs import Arrays, Inputs, Pool, Replay
from drafters.judging import Uniforms, best_tokens
from drafters.module import DraftModule
from drafters.paging import PagedCache, PassInputs
from drafters.request import Running
from drafters.target import Target
from policies.base import Ints


class CapturedPass:
    """Target pass, output head and argmax over ``tokens`` flattened tokens."""

    def __init__(
        self,
        target: Target,
        cache: PagedCache,
        tokens: int,
        sequences: int,
        widest: int,
        feature_layers: tuple[int, ...],
        features: Tensor,
        drawn: Tensor | None,
        pool: Pool | None,
    ) -> None:
        """``features`` [at least tokens, m * d] receives the features of each pass. ``drawn``: the
        last draft's tokens behind a zero, where drafts are captured."""
        device = features.device
        self.inputs = inputs = PassInputs(tokens, sequences, widest, cache, device)

        def forward() -> tuple[Tensor, Tensor]:
            batch = inputs.batch if drawn is None else inputs.batch_with(drawn)
            out = target.ragged(batch, cache, feature_layers)
            if out.features is not None:
                features[:tokens].copy_(out.features)
            logits = target.lm_head(out.hidden)
            return logits, best_tokens(logits)

        self._replay = Replay(forward, pool)

    def run(
        self,
        rows: Sequence[Running],
        parts: Sequence[Sequence[int]],
        sources: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Logits [T, V] and their ``best_tokens`` [T], both still to be waited for; rows past the
        given tokens are padding. ``sources`` as in ``PassInputs.fill``."""
        self.inputs.fill(rows, parts, sources)
        return self._replay()


class Feed(Protocol):
    """What a captured draft of a family reads beside ``CapturedDraft``'s own inputs."""

    shapes: dict[str, tuple[int, ...]]

    def fill(self, host: Arrays, rows: Sequence[Running], positions: Ints, places: Ints) -> None:
        """Fill the arrays of ``shapes`` for slots 0 .. count - 1, of which ``rows`` hold the first.

        ``positions`` [count] of the anchors, which are in ``host`` already; ``places`` [count,
        gamma + 1] of the tokens whose features are taken in.
        """

    def draft(
        self, at: dict[str, Tensor], features: Tensor, length: int, sampler: Sampler
    ) -> Proposal:
        """Take in ``features`` [count, gamma + 1, m * d], then draft ``length`` tokens each."""


class TokenFeed:
    """The arguments of ``Drafter.extend`` and ``propose``, which any family takes."""

    def __init__(
        self, drafter: DraftModule, state: object, requests: int, device: torch.device
    ) -> None:
        self._drafter, self._state = drafter, state
        self._slots = torch.arange(requests, device=device)
        wide = (requests, drafter.gamma + 1)
        self.shapes = {"positions": (requests,), "places": wide, "tokens": wide}

    def fill(self, host: Arrays, rows: Sequence[Running], positions: Ints, places: Ints) -> None:
        """See ``Feed``."""
        host["positions"][:], host["places"][:] = positions, places
        host["tokens"][len(rows) :] = 0
        for tokens, row, line in zip(host["tokens"], rows, places.tolist(), strict=False):
            tokens[:] = [row.tokens[place] for place in line]

    def draft(
        self, at: dict[str, Tensor], features: Tensor, length: int, sampler: Sampler
    ) -> Proposal:
        """See ``Feed``."""
        self._drafter.extend(self._state, at["tokens"], features, at["places"], self._slots)
        anchors, positions = at["anchors"], at["positions"]
        return self._drafter.propose(self._state, anchors, positions, length, sampler)


def _feed(drafter: DraftModule, state: object, requests: int, device: torch.device) -> Feed:
    if isinstance(drafter, BlockDrafter) and isinstance(state, RowCache):
        return BlockFeed(drafter, state, requests)
    return TokenFeed(drafter, state, requests, device)


class CapturedDraft:
    """Taking in a round's features and drafting ``length`` tokens, for ``requests`` slots."""

    def __init__(
        self,
        drafter: DraftModule,
        state: object,
        features: Tensor,
        drawn: Tensor,
        requests: int,
        length: int,
        hot: bool,
        spare: int,
        pool: Pool | None,
    ) -> None:
        """``features``: the buffer of the passes; ``drawn`` receives the tokens, behind its zero.
        ``hot``: whether to serve temperatures > 0.
        ``spare``: a position past what any request uses, for the runs before the capture."""
        n, width, device = requests, drafter.gamma + 1, features.device
        self.count, self.length, self._offsets = n, length, np.arange(width)
        self._feed = feed = _feed(drafter, state, n, device)
        self.inputs = Inputs(
            {
                "anchors": (n,),
                "lines": (n, width),
                "uniforms": (n, length),
                "temperatures": ((n + 1) // 2,),
                **feed.shapes,
            },
            device,
        )
        at, host = self.inputs.at, self.inputs.host
        self._uniforms = host["uniforms"].view(np.float64)
        self._temperatures = host["temperatures"].view(np.float32)
        self._positions, self._places = np.full(n, spare), np.full((n, width), spare)
        feed.fill(host, [], self._positions, self._places)
        self.inputs.send()
        heat = at["temperatures"].view(torch.float32)[:n]
        uniforms = at["uniforms"].view(torch.float64)

        def draft() -> tuple[Proposal, Tensor]:
            sampler = Sampler(heat, uniforms, any_hot=hot, fused=True)
            proposal = feed.draft(at, features[at["lines"]], length, sampler)
            drawn[1 : 1 + n * length].view(n, length).copy_(proposal.tokens)
            return proposal, told(proposal, heat)

        self._replay = Replay(draft, pool)

    def run(
        self, rows: Sequence[Running], temperatures: list[float], uniforms: Uniforms
    ) -> tuple[Proposal, Tensor]:
        """The proposal, and what is ``beliefs.told`` of it, both still to be waited for.

        Rows are in slots 0 .. n - 1; those that draft have no features but ``Running.kept``. The
        rest of a row's lines repeats its last one, or lands at its anchor, where the block goes.
        """
        n = len(rows)
        self._fill(rows, temperatures, uniforms)
        proposal, known = self._replay()
        return _first(proposal, n), known[:n]

    def last(self, n: int) -> Proposal:
        """What the last run left for the first ``n`` slots."""
        return _first(self._replay.result[0], n)

    def _fill(self, rows: Sequence[Running], temperatures: list[float], uniforms: Uniforms) -> None:
        host, n = self.inputs.host, len(rows)
        kept = np.array([row.kept if row.drafted else (0, 0) for row in rows])
        index = np.minimum(self._offsets, np.maximum(kept[:, 1:] - 1, 0))
        self._positions[:n] = [row.cached for row in rows]
        self._places[:n] = self._positions[:n, None] - kept[:, 1:] + index
        host["anchors"][:n] = [row.tokens[-1] for row in rows]
        host["lines"][:n] = kept[:, :1] + index
        self._uniforms[:n] = uniforms[:, : self.length]
        self._temperatures[:n] = temperatures
        if n < self.count:
            for part in (host["anchors"], host["lines"], self._uniforms, self._temperatures):
                part[n:] = 0
            for part in (self._positions, self._places):
                part[n:] = 1
        self._feed.fill(host, rows, self._positions, self._places)
        self.inputs.send()


def _first(proposal: Proposal, n: int) -> Proposal:
    """The proposal of the first ``n`` rows."""
    law = proposal.law
    if law is not None:
        law = law._replace(
            logits=law.logits[:n],
            latents=None if law.latents is None else law.latents[:n],
            log_normalizer=law.log_normalizer[:n],
            log_probs=law.log_probs[:n],
        )
    cut = lambda part: None if part is None else part[:n]  # noqa: E731
    return Proposal(
        proposal.tokens[:n],
        cut(proposal.logits),
        cut(proposal.confidences),
        cut(proposal.hidden),
        law=law,
    )
