"""The one interface of all drafter families, and what a proposal is.

A drafter keeps its own state per cache slot. After the target has processed tokens, ``extend``
gives the drafter their features; ``propose`` drafts a block for the sequences in slots 0..n-1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drafters.kernels.types import DraftLaw
from drafters.sampling import greedy, sample

Draw = Callable[[int, Tensor], Tensor]
"""Picks one token per row: ``draw(k, logits)`` with fp32 logits [n, V] of block position k."""

CONFIDENCE_DTYPE = torch.float16
"""Confidences live on this grid everywhere (live loop, traces), so that a policy fed from a trace
sees bit for bit what the live loop's policy saw, whatever rounding noise lies below it."""


class Proposal(NamedTuple):
    """A drafted block for n requests."""

    tokens: Tensor
    """[n, gamma] draft tokens."""
    logits: Tensor | None
    """[n, gamma, V] fp32 logits that the tokens were drawn from (before temperature); None where
    ``law`` says it."""
    confidences: Tensor | None
    """[n, gamma] raw conditional confidences in [0, 1], or None without a confidence head."""
    hidden: Tensor | None = None
    """[n, gamma, d] what the output head read, or None without one."""
    drafted: Tensor | None = None
    """[n] leading tokens that are real proposals, 0..gamma; None: all. The rest only fills up:
    verifying it is harmless and useless."""
    law: DraftLaw | None = None
    """What the tokens were drawn from, in the arithmetic of ``kernels.markov_sample``."""


class Drafter(Protocol):
    """What training, evaluation, recording and the live loop need of any family."""

    gamma: int
    feature_layers: tuple[int, ...]

    def new_state(self, slots: int, capacity: int) -> object:
        """Empty per-slot state for sequences of up to ``capacity`` tokens."""

    def extend(
        self, state: object, tokens: Tensor, features: Tensor, positions: Tensor, slots: Tensor
    ) -> None:
        """Take in committed tokens [n, q] with their target features [n, q, m * d]."""

    def propose(
        self,
        state: object,
        anchors: Tensor,
        positions: Tensor,
        gamma: int,
        draw: Draw,
    ) -> Proposal:
        """Draft ``gamma`` tokens after ``anchors`` [n] at absolute ``positions`` [n].

        Rows are slots 0..n-1; ``draw(k, logits)`` picks the token of block position k.
        """


class Sampler:
    """The live loop's draw: argmax where temperature is 0, else inverse-CDF at a given uniform."""

    def __init__(
        self,
        temperatures: Tensor,
        uniforms: Tensor,
        any_hot: bool | None = None,
        fused: bool = False,
    ) -> None:
        """``temperatures`` [n] fp32; ``uniforms`` [n, gamma] in [0, 1). ``any_hot``: whether a
        temperature is above 0 (None: look). ``fused`` lets a drafter draw its whole block by
        ``kernels.markov_sample``, which never writes the logits."""
        self.temperatures, self.uniforms = temperatures, uniforms
        self.fused = fused
        self.any_hot = bool(self.hot.any()) if any_hot is None else any_hot

    @cached_property
    def hot(self) -> Tensor:
        """[n] whether each temperature is above 0."""
        return self.temperatures > 0

    def __call__(self, k: int, logits: Tensor) -> Tensor:
        largest = greedy(logits)
        if not self.any_hot:
            return largest
        scaled = logits / torch.where(self.hot, self.temperatures, 1.0).unsqueeze(-1)
        drawn = sample(torch.softmax(scaled, -1), self.uniforms[:, k])
        return torch.where(self.hot, drawn, largest)
