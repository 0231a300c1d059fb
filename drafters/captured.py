"""The two captured functions of a step: a target pass of T tokens, a draft for n requests.

Sizes are captured ahead or on first use; work is padded up to the next one. Everything that the
host knows goes in with one copy (``drafters.graphs.Inputs``), what it needs comes back with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drafters.base import Proposal, Sampler
from drafters.beliefs import told
from drafters.graphs import Inputs, Replay
from drafters.judging import Uniforms
from drafters.module import DraftModule
from drafters.paging import PagedCache, PassInputs
from drafters.request import Running
from drafters.sampling import greedy
from drafters.target import Target


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
        pool: Any,
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
            return logits, greedy(logits)

        self._replay = Replay(forward, device, pool)

    def run(
        self,
        rows: Sequence[Running],
        parts: Sequence[Sequence[int]],
        sources: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Logits [T, V] and their argmax [T], both still to be waited for; rows past the given
        tokens are padding. ``sources`` as in ``PassInputs.fill``."""
        self.inputs.fill(rows, parts, sources)
        return self._replay()


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
        pool: Any,
    ) -> None:
        """``features``: the buffer of the passes; ``drawn`` receives the tokens, behind its zero.
        ``hot``: whether to serve temperatures > 0.
        ``spare``: a position past what any request uses, for the runs before the capture."""
        n, width, device = requests, drafter.gamma + 1, features.device
        self.width, self.length = width, length
        self.inputs = Inputs(
            {
                "anchors": (n,),
                "positions": (n,),
                "tokens": (n, width),
                "lines": (n, width),
                "places": (n, width),
                "uniforms": (n, length),
                "temperatures": (n,),
            },
            device,
        )
        for name in ("positions", "places"):
            self.inputs.host[name][:] = spare
        self.inputs.send()
        at, slots = self.inputs.at, torch.arange(n, device=device)

        def draft() -> tuple[Proposal, Tensor]:
            drafter.extend(state, at["tokens"], features[at["lines"]], at["places"], slots)
            heat = at["temperatures"].view(torch.float64).float()
            sampler = Sampler(heat, at["uniforms"].view(torch.float64), any_hot=hot, fused=True)
            proposal = drafter.propose(state, at["anchors"], at["positions"], length, sampler)
            drawn[1 : 1 + n * length].view(n, length).copy_(proposal.tokens)
            return proposal, told(proposal, heat)

        self._replay = Replay(draft, device, pool)

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

    def _fill(self, rows: Sequence[Running], temperatures: list[float], uniforms: Uniforms) -> None:
        host, n = self.inputs.host, len(rows)
        cached = np.array([row.cached for row in rows])
        kept = np.array([row.kept if row.drafted else (0, 0) for row in rows])
        index = np.minimum(np.arange(self.width), np.maximum(kept[:, 1:] - 1, 0))
        extended = np.where(kept[:, 1] > 0, cached - kept[:, 1], cached)
        for name in ("anchors", "tokens", "lines", "uniforms", "temperatures"):
            host[name][n:] = 0
        for name in ("positions", "places"):
            host[name][n:] = 1
        host["anchors"][:n] = [row.tokens[-1] for row in rows]
        host["positions"][:n] = cached
        host["lines"][:n] = kept[:, :1] + index
        host["places"][:n] = extended[:, None] + index
        host["tokens"][:n] = [
            _padded(row.tokens[start : start + count], self.width)
            for row, start, count in zip(rows, extended.tolist(), kept[:, 1].tolist(), strict=True)
        ]
        host["uniforms"].view(np.float64)[:n] = uniforms[:, : self.length]
        host["temperatures"].view(np.float64)[:n] = temperatures
        self.inputs.send()


def _padded(tokens: list[int], width: int) -> list[int]:
    """``tokens`` with the last one repeated; zeros where there are none."""
    return tokens + tokens[-1:] * (width - len(tokens)) if tokens else [0] * width


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
