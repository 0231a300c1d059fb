"""What the operations exchange. R requests, gamma draft positions, V vocabulary, r rank, d hidden.

Temperature 0 makes a distribution a point mass at its argmax (the lowest index among equals), and
so does any below ``COLDEST``; a draw at any other is the first token whose cumulative probability
exceeds a uniform in [0, 1), as in ``drafters.sampling.sample``. One uniform per draw, and not one
Gumbel variate per vocabulary entry: counter-based noise costs about 25 integer instructions per
entry, several times what a GPU can afford while it streams two bytes of logit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

COLDEST = 1e-6
"""Temperatures below act as 0, in every operation: logits over them could overflow fp32."""


class SequentialHead(NamedTuple):
    """DSpark's vanilla head: bias W2 W1[prev], confidence sigmoid(w [h ; W1[prev]] + b)."""

    w1: Tensor
    """[V, r] transition rows, read at the previous token."""
    w2: Tensor
    """[V, r] output weights, same type as ``w1``."""
    confidence_weight: Tensor
    """[d + r], or [d] for a head that does not see W1[prev]."""
    confidence_bias: Tensor
    """[1]."""


class DraftLaw(NamedTuple):
    """The distribution that each draft token was drawn from, as its sampler computed it.

    p_d(v) = exp((logits[v] + w2[v] . latents) / temperature - log_normalizer), in fp32.
    """

    logits: Tensor
    """[R, gamma, V] base logits, without the transition bias."""
    latents: Tensor | None
    """[R, gamma, r] z of the transition bias W2 z; None where ``logits`` are complete."""
    w2: Tensor | None
    """[V, r], same type as ``latents``."""
    log_normalizer: Tensor
    """[R, gamma] fp32 log of the sum over V of exp(logit / temperature); not read, and whatever a
    sampler left, at temperature 0."""
    log_probs: Tensor
    """[R, gamma] fp32 log p_d of the drawn token; 0 at temperature 0."""


class Drafts(NamedTuple):
    """What ``markov_sample`` returns."""

    tokens: Tensor
    """[R, gamma] int64."""
    confidences: Tensor
    """[R, gamma] fp32, raw conditional confidences."""
    law: DraftLaw


class Verdict(NamedTuple):
    """What ``verify`` returns."""

    accepted: Tensor
    """[R] int64 draft tokens accepted, 0..l[r]; 0 for a request without rows."""
    next_tokens: Tensor
    """[R] int64 token after the accepted ones; -1 for a request without rows."""


class Schedule(NamedTuple):
    """What ``prefix_schedule`` returns."""

    lengths: Tensor
    """[R] int64 draft tokens to verify, 0..drafted[r]."""
    cu_rows: Tensor
    """[R + 1] int64 first of each request's l + 1 flattened rows; the last entry is their sum."""


def is_sampled(temperatures: Tensor) -> Tensor:
    """Whether draws at ``temperatures`` are random, i.e. do not act as 0; bool, same shape."""
    return temperatures >= COLDEST


def complete_law(logits: Tensor, tokens: Tensor, temperatures: Tensor) -> DraftLaw:
    """Law of ``tokens`` [R, gamma] drawn from complete ``logits`` [R, gamma, V] (no bias)."""
    hot = is_sampled(temperatures).unsqueeze(-1)
    scaled = logits.float() / torch.where(hot, temperatures.unsqueeze(-1), 1.0).unsqueeze(-1)
    log_normalizer = scaled.logsumexp(-1)
    drawn = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - log_normalizer
    return DraftLaw(logits, None, None, log_normalizer, torch.where(hot, drawn, 0.0))
