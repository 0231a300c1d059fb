"""``markov_sample`` in Triton: two launches per position, and no [R, V] tensor written.

``_block_values`` streams the base logits and W2 once and keeps one fp32 number per request and
vocabulary block (64 or 128 entries): the log of its mass, or its maximum for a greedy request.
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
    LOG2_E,
    NEGATIVE_INFINITY,
    add_product,
    finite,
    interpreted,
    inverse_cdf,
    inverse_temperature,
    is_greedy,
    latent_tile,
    log_mass,
    low_rank,
    low_rank_row,
    tiling,
    weight_tile,
)
from drafters.kernels.types import DraftLaw, Drafts, SequentialHead


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
    rank, device = head.w1.shape[1], logits.device
    tile = tiling(requests, rank, head.w2.dtype, logits.dtype)
    blocks = triton.cdiv(vocab, tile.block_v)
    latents = torch.empty((requests, gamma, rank), dtype=head.w1.dtype, device=device)
    if gamma:
        torch.index_select(head.w1.detach(), 0, anchors, out=latents[:, 0])
    values = torch.empty((requests, blocks), dtype=torch.float32, device=device)
    tokens = torch.empty((requests, gamma), dtype=torch.int64, device=device)
    confidences, normalizers, log_probs = torch.empty(
        (3, requests, gamma), dtype=torch.float32, device=device
    )
    size = hidden.shape[-1]
    for k in range(gamma if requests else 0):
        _block_values[tile.programs(requests, vocab, device)](
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
            blocks,
            RANK=rank,
            BLOCK_R=tile.block_r,
            BLOCK_V=tile.block_v,
            BLOCK_K=tile.block_k,
            STAGES=tile.stages,
            WIDE=interpreted(),
            num_warps=tile.warps,
        )
        _pick[(requests, 2)](
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
            size,
            blocks,
            SEES_LATENT=head.confidence_weight.numel() > size,
            DEPTH=triton.next_power_of_2(rank),
            RANK=rank,
            BLOCKS=triton.next_power_of_2(blocks),
            BLOCK_V=tile.block_v,
            BLOCK_K=min(64, triton.next_power_of_2(rank)),
            BLOCK_D=min(4096, triton.next_power_of_2(size)),
            num_warps=pick_warps(blocks, rank),
        )
    law = DraftLaw(logits, latents, head.w2, normalizers, log_probs)
    return Drafts(tokens, confidences, law)


def pick_warps(blocks: int, rank: int) -> int:
    """Few where the numbers to draw from are few: reductions across warps cost time."""
    if blocks <= 512 and rank <= 64:
        return 2
    return 4 if blocks <= 1024 else 8


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
    blocks,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """values[r, block] of position k for a tile of requests and every n-th vocabulary block.

    Where a latent fits one step of the product (RANK <= BLOCK_K), the latents are read once and
    the logits and weights of the next block are on their way while this one is worked on.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    live = row < requests
    base = logits + row * logits_stride_r + k.to(tl.int64) * logits_stride_k
    depth = tl.arange(0, BLOCK_K)
    latent = (row * gamma + k) * RANK
    temperature = tl.load(temperatures + row, mask=live, other=0.0)
    greedy, rate = is_greedy(temperature), inverse_temperature(temperature) * LOG2_E
    if RANK <= BLOCK_K:
        z = latent_tile(latents, latent, live, depth, RANK)
    for block in tl.range(tl.program_id(1), blocks, tl.num_programs(1), num_stages=STAGES):
        column = block * BLOCK_V + tl.arange(0, BLOCK_V)
        real = column < vocab
        mask = live[:, None] & real[None, :]
        logit = tl.load(base[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if RANK <= BLOCK_K:
            w = weight_tile(w2, column, real, depth, RANK)
            logit += add_product(tl.zeros((BLOCK_R, BLOCK_V), tl.float32), z, w, WIDE)
        else:
            logit += low_rank(latents, latent, live, w2, column, real, RANK, BLOCK_K, WIDE)
        logit = tl.where(real[None, :], logit, NEGATIVE_INFINITY)
        top = tl.max(logit, 1)
        shift = finite(top) * rate
        mass = tl.sum(tl.exp2(logit * rate[:, None] - shift[:, None]), 1)
        value = tl.where(greedy, top, log_mass(mass, shift))
        tl.store(values + row * blocks + block, value, mask=live)


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
    """One request at position k. Program 0: token, law and the latent of position k + 1; program 1,
    beside it because the next position does not wait for it: the confidence."""
    row = tl.program_id(0).to(tl.int64)
    out = row * gamma + k
    latent = latents + out * RANK
    depth = tl.arange(0, DEPTH)
    if tl.program_id(1) == 1:
        score = tl.load(confidence_bias).to(tl.float32)
        hidden += row * hidden_stride_r + k.to(tl.int64) * hidden_stride_k
        score += _weighted_sum(hidden, confidence_weight, hidden_size, BLOCK_D)
        if SEES_LATENT:
            score += _weighted_sum(latent, confidence_weight + hidden_size, RANK, DEPTH)
        tl.store(confidences + out, 1.0 / (1.0 + tl.exp(-score)))
    else:
        temperature = tl.load(temperatures + row)
        uniform = tl.load(uniforms + row * uniforms_stride_r + k).to(tl.float64)
        index = tl.arange(0, BLOCKS)
        value = tl.load(values + row * blocks + index, mask=index < blocks, other=NEGATIVE_INFINITY)
        base = logits + row * logits_stride_r + k.to(tl.int64) * logits_stride_k
        top = tl.max(value, 0)
        inverse = inverse_temperature(temperature)
        if is_greedy(temperature):
            block = tl.argmax(value, 0)
            scaled = _block_logits(base, latent, w2, block, vocab, 1.0, RANK, BLOCK_V, BLOCK_K)
            lane = tl.argmax(scaled, 0)
            normalizer = top
        else:
            weight = tl.exp(value - top).to(tl.float64)
            total = tl.sum(weight, 0)
            block, before = inverse_cdf(weight, uniform * total)
            scaled = _block_logits(base, latent, w2, block, vocab, inverse, RANK, BLOCK_V, BLOCK_K)
            inside = tl.exp(scaled - top).to(tl.float64)
            lane, before = inverse_cdf(inside, uniform * total - before)
            normalizer = top + tl.log(total.to(tl.float32))
        token = tl.minimum(block * BLOCK_V + lane, vocab - 1).to(tl.int64)  # of NaN some token
        if k + 1 < gamma:
            following = tl.load(w1 + token * RANK + depth, mask=depth < RANK, other=0.0)
            tl.store(latent + RANK + depth, following, mask=depth < RANK)
        logit = tl.sum(tl.where(tl.arange(0, BLOCK_V) == lane, scaled, 0.0), 0)
        tl.store(tokens + out, token)
        tl.store(normalizers + out, normalizer)
        tl.store(log_probs + out, tl.where(is_greedy(temperature), 0.0, logit - normalizer))


@triton.jit
def _block_logits(
    base,
    latent,
    w2,
    block,
    vocab,
    inverse,
    RANK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Biased logits over temperature of one block of the row at pointer ``base``."""
    column = block * BLOCK_V + tl.arange(0, BLOCK_V)
    real = column < vocab
    logit = tl.load(base + column, mask=real, other=NEGATIVE_INFINITY).to(tl.float32)
    return (logit + low_rank_row(latent, w2, column, real, RANK, BLOCK_K)) * inverse


@triton.jit
def _weighted_sum(x, weight, size, BLOCK: tl.constexpr):
    """Sum of x * weight over ``size`` entries at two pointers."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        part = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
        total += part * tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32)
    return tl.sum(total, 0)
