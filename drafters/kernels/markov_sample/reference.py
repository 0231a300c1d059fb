"""``markov_sample`` in plain torch: writes the [R, V] logits of each position, for reading."""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.kernels.types import DraftLaw, Drafts, SequentialHead, complete_law, is_sampled
from drafters.sampling import sample


def markov_sample(
    logits: Tensor,
    anchors: Tensor,
    hidden: Tensor,
    head: SequentialHead,
    temperatures: Tensor,
    uniforms: Tensor,
) -> Drafts:
    """See ``drafters.kernels.markov_sample``."""
    previous, w2 = anchors.long(), head.w2.float()
    steps = []
    for k in range(logits.shape[1]):
        latent = head.w1[previous]
        biased = logits[:, k].float() + latent.float() @ w2.T
        previous = draw(biased, temperatures, uniforms[:, k])
        law = complete_law(biased.unsqueeze(1), previous.unsqueeze(1), temperatures)
        confidence = _confidence(hidden[:, k], latent, head)
        steps.append((previous, confidence, latent, law.log_normalizer[:, 0], law.log_probs[:, 0]))
    if not steps:
        return _no_drafts(logits, head)
    tokens, confidences, latents, normalizers, log_probs = (
        torch.stack(parts, 1) for parts in zip(*steps, strict=True)
    )
    return Drafts(tokens, confidences, DraftLaw(logits, latents, head.w2, normalizers, log_probs))


def _no_drafts(logits: Tensor, head: SequentialHead) -> Drafts:
    """What gamma = 0 gives: every tensor [R, 0] or [R, 0, r]."""
    empty = logits.new_empty(logits.shape[:2], dtype=torch.float32)
    latents = head.w1.new_empty((*empty.shape, head.w1.shape[1]))
    return Drafts(empty.long(), empty, DraftLaw(logits, latents, head.w2, empty, empty))


def draw(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row of fp32 ``logits`` [n, V]: argmax at temperature 0, else inverse CDF."""
    hot = is_sampled(temperatures)
    scaled = logits / torch.where(hot, temperatures, 1.0).unsqueeze(-1)
    return torch.where(hot, sample(scaled.softmax(-1), uniforms), logits.argmax(-1))


def _confidence(hidden: Tensor, latent: Tensor, head: SequentialHead) -> Tensor:
    """sigmoid(w [h ; W1[prev]] + b) of one position, [R] fp32."""
    size = hidden.shape[-1]
    weight = head.confidence_weight.float()
    score = hidden.float() @ weight[:size] + head.confidence_bias.float()
    if weight.numel() > size:
        score = score + latent.float() @ weight[size:]
    return score.sigmoid()
