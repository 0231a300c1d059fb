"""``markov_sample`` in Triton: two launches per position, and no [R, V] tensor written.

``_block_values`` streams the base logits and W2 once and keeps one fp32 number per request and
vocabulary block (128 entries): the log of its mass, or its maximum for a greedy request.
``_pick`` draws a block from those numbers, computes the logits of that one block again and draws
the token inside it, with the one uniform of the draw spent on both. It also writes the confidence
and the next position's latent W1[x]. Each position needs the token before it, hence the launches.

Bytes that must move per position: R V logits, V r weights (once if R <= 128, else from L2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drafters.kernels.tiles import (
    NEGATIVE_INFINITY,
    block_values,
    interpreted,
    inverse_cdf,
    inverse_temperature,
    is_greedy,
    low_rank,
    low_rank_row,
)
from drafters.kernels.types import DraftLaw, Drafts, SequentialHead

BLOCK_V = 128
BLOCK_K = 64


def markov_sample(
    logits: Tensor,
    anchors: Tensor,
    hidden: Tensor,
    head: SequentialHead,
    temperatures: Tensor,
    uniforms: Tensor,
) -> Drafts:
    """See ``drafters.kernels.markov_sample``."""
    requests, gamma, vocab = logits.shape
    rank, blocks = head.w1.shape[1], triton.cdiv(vocab, BLOCK_V)
    block_r = min(128, max(16, triton.next_power_of_2(requests)))
    latents = torch.empty((requests, gamma, rank), dtype=head.w1.dtype, device=logits.device)
    latents[:, :1] = head.w1[anchors].unsqueeze(1)
    values = torch.empty((requests, blocks), dtype=torch.float32, device=logits.device)
    tokens = torch.empty((requests, gamma), dtype=torch.int64, device=logits.device)
    confidences, normalizers, log_probs = torch.empty(
        (3, requests, gamma), dtype=torch.float32, device=logits.device
    )
    tiles = (triton.cdiv(requests, block_r), blocks)
    sizes = {"RANK": rank, "BLOCK_V": BLOCK_V, "BLOCK_K": BLOCK_K}
    for k in range(gamma if requests else 0):
        _block_values[tiles](
            logits,
            *logits.stride()[:2],
            latents,
            head.w2,
            temperatures,
            values,
            k,
            requests,
            gamma,
            vocab,
            BLOCK_R=block_r,
            WIDE=interpreted(),
            num_warps=8 if block_r >= 64 else 4,
            **sizes,
        )
        _pick[(requests,)](
            logits,
            *logits.stride()[:2],
            latents,
            *head,
            hidden,
            *hidden.stride()[:2],
            temperatures,
            uniforms,
            uniforms.stride(0),
            values,
            tokens,
            confidences,
            normalizers,
            log_probs,
            k,
            gamma,
            vocab,
            hidden.shape[-1],
            blocks,
            SEES_LATENT=head.confidence_weight.numel() > hidden.shape[-1],
            DEPTH=triton.next_power_of_2(rank),
            BLOCKS=triton.next_power_of_2(blocks),
            BLOCK_D=256,
            **sizes,
        )
    law = DraftLaw(logits, latents, head.w2, normalizers, log_probs)
    return Drafts(tokens, confidences, law)


@triton.jit(do_not_specialize=["k"])
def _block_values(
    logits,
    logits_stride_r,
    logits_stride_k,
    latents,
    w2,
    temperatures,
    values,
    k,
    requests,
    gamma,
    vocab,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """values[r, block] of position k for a tile of requests and one vocabulary block."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    block = tl.program_id(1)
    column = block * BLOCK_V + tl.arange(0, BLOCK_V)
    live, real = row < requests, column < vocab
    base = logits + row * logits_stride_r + k.to(tl.int64) * logits_stride_k
    base = tl.load(base[:, None] + column[None, :], mask=live[:, None] & real[None, :], other=0.0)
    bias = low_rank(latents, (row * gamma + k) * RANK, live, w2, column, real, RANK, BLOCK_K, WIDE)
    temperature = tl.load(temperatures + row, mask=live, other=0.0)
    greedy = is_greedy(temperature)
    scaled = (base.to(tl.float32) + bias) * inverse_temperature(temperature)[:, None]
    scaled = tl.where(real[None, :], scaled, NEGATIVE_INFINITY)
    blocks = tl.num_programs(1)
    tl.store(values + row * blocks + block, block_values(scaled, greedy), mask=live)


@triton.jit(do_not_specialize=["k"])
def _pick(
    logits,
    logits_stride_r,
    logits_stride_k,
    latents,
    w1,
    w2,
    confidence_weight,
    confidence_bias,
    hidden,
    hidden_stride_r,
    hidden_stride_k,
    temperatures,
    uniforms,
    uniforms_stride_r,
    values,
    tokens,
    confidences,
    normalizers,
    log_probs,
    k,
    gamma,
    vocab,
    hidden_size,
    blocks,
    SEES_LATENT: tl.constexpr,
    DEPTH: tl.constexpr,
    RANK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Token, confidence and law of one request at position k, and the latent of position k + 1."""
    row = tl.program_id(0).to(tl.int64)
    out = row * gamma + k
    latent = latents + out * RANK
    temperature = tl.load(temperatures + row)
    greedy = is_greedy(temperature)

    index = tl.arange(0, BLOCKS)
    value = tl.load(values + row * blocks + index, mask=index < blocks, other=NEGATIVE_INFINITY)
    top = tl.max(value, 0)
    weight = tl.exp(value - top).to(tl.float64)
    total = tl.sum(weight, 0)
    target = tl.load(uniforms + row * uniforms_stride_r + k).to(tl.float64) * total
    drawn, before = inverse_cdf(weight, target)
    block = tl.where(greedy, tl.argmax(value, 0), drawn)

    column = block * BLOCK_V + tl.arange(0, BLOCK_V)
    real = column < vocab
    base = logits + row * logits_stride_r + k.to(tl.int64) * logits_stride_k + column
    base = tl.load(base, mask=real, other=0.0).to(tl.float32)
    bias = low_rank_row(latent, w2, column, real, RANK, BLOCK_K)
    scaled = (base + bias) * inverse_temperature(temperature)
    scaled = tl.where(real, scaled, NEGATIVE_INFINITY)
    drawn, before = inverse_cdf(tl.exp(scaled - top).to(tl.float64), target - before)
    lane = tl.where(greedy, tl.argmax(scaled, 0), drawn)
    token = (block * BLOCK_V + lane).to(tl.int64)
    logit = tl.sum(tl.where(tl.arange(0, BLOCK_V) == lane, scaled, 0.0), 0)
    normalizer = top + tl.log(total.to(tl.float32))
    tl.store(tokens + out, token)
    tl.store(normalizers + out, normalizer)
    tl.store(log_probs + out, tl.where(greedy, 0.0, logit - normalizer))

    score = tl.load(confidence_bias).to(tl.float32)
    hidden += row * hidden_stride_r + k.to(tl.int64) * hidden_stride_k
    for d in range(0, hidden_size, BLOCK_D):
        at = d + tl.arange(0, BLOCK_D)
        h = tl.load(hidden + at, mask=at < hidden_size, other=0.0).to(tl.float32)
        w = tl.load(confidence_weight + at, mask=at < hidden_size, other=0.0).to(tl.float32)
        score += tl.sum(h * w, 0)
    depth = tl.arange(0, DEPTH)
    if SEES_LATENT:
        z = tl.load(latent + depth, mask=depth < RANK, other=0.0).to(tl.float32)
        w = tl.load(confidence_weight + hidden_size + depth, mask=depth < RANK, other=0.0)
        score += tl.sum(z * w.to(tl.float32), 0)
    tl.store(confidences + out, 1.0 / (1.0 + tl.exp(-score)))
    if k + 1 < gamma:
        following = tl.load(w1 + token * RANK + depth, mask=depth < RANK, other=0.0)
        tl.store(latent + RANK + depth, following, mask=depth < RANK)
