"""``verify`` in Triton: the target logits are read once, plus one row per request that rejects.

1. ``_row_values`` streams the rows and keeps one fp32 number per vocabulary block of 128: the log
   of its mass, or its maximum for a greedy request.
2. ``_judge`` makes the row's normaliser of them and tests its draft token.
3. ``_residual_masses`` computes max(0, p_t - p_d) at each request's first rejected row, with p_d
   made again from the base logits and the low-rank bias, in the sampler's own arithmetic; only the
   sum of each block is written.
4. ``_choose`` counts the accepted prefix, draws a block and computes it again to draw in it. A
   bonus token needs no third step: it draws from the numbers of the first.

The first rejected row is read twice because the residual needs the row's normaliser.
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
    log_sum_exp,
    low_rank,
    low_rank_row,
)
from drafters.kernels.types import DraftLaw, Verdict

BLOCK_V = 128
BLOCK_K = 64
TILE_BLOCKS = 32


def verify(
    target_logits: Tensor,
    cu_rows: Tensor,
    draft_tokens: Tensor,
    law: DraftLaw | None,
    temperatures: Tensor,
    accept_uniforms: Tensor,
    next_uniforms: Tensor,
) -> Verdict:
    """See ``drafters.kernels.verify``."""
    (requests, gamma), (rows, vocab) = draft_tokens.shape, target_logits.shape
    blocks, device = triton.cdiv(vocab, BLOCK_V), target_logits.device
    values = torch.empty((rows, blocks), dtype=torch.float32, device=device)
    normalizers = torch.empty((rows,), dtype=torch.float32, device=device)
    stands = torch.empty((requests, gamma + 1), dtype=torch.int32, device=device)
    masses = torch.empty((requests, blocks), dtype=torch.float32, device=device)
    accepted, next_tokens = torch.empty((2, requests), dtype=torch.int64, device=device)
    if requests == 0:
        return Verdict(accepted, next_tokens)
    target = (target_logits, target_logits.stride(0), cu_rows, temperatures, values)
    draft = _draft_arguments(law, target_logits, temperatures)
    block_r = min(64, max(16, triton.next_power_of_2(requests)))
    shape = {"BLOCKS": triton.next_power_of_2(blocks), "BLOCK_V": BLOCK_V}
    tail = {
        "GAMMA": triton.next_power_of_2(gamma + 1),
        "HAS_LAW": law is not None,
        "RANK": 0 if law is None or law.latents is None else law.latents.shape[-1],
        "BLOCK_V": BLOCK_V,
        "BLOCK_K": BLOCK_K,
    }
    _row_values[(requests * (gamma + 1), triton.cdiv(blocks, TILE_BLOCKS))](
        *target, gamma, vocab, blocks, BLOCK_V=BLOCK_V, TILE_BLOCKS=TILE_BLOCKS
    )
    _judge[(requests * (gamma + 1),)](
        *target,
        draft_tokens,
        draft[-1],
        accept_uniforms,
        accept_uniforms.stride(0),
        normalizers,
        stands,
        gamma,
        vocab,
        blocks,
        HAS_LAW=law is not None,
        **shape,
    )
    if gamma:
        _residual_masses[(triton.cdiv(requests, block_r), blocks)](
            *target,
            draft_tokens,
            *draft[:-1],
            normalizers,
            stands,
            masses,
            requests,
            gamma,
            vocab,
            BLOCK_R=block_r,
            WIDE=interpreted(),
            num_warps=8 if block_r >= 64 else 4,
            **tail,
        )
    _choose[(requests,)](
        *target,
        draft_tokens,
        *draft[:-1],
        normalizers,
        stands,
        masses,
        next_uniforms,
        accepted,
        next_tokens,
        gamma,
        vocab,
        blocks,
        BLOCKS=shape["BLOCKS"],
        **tail,
    )
    return Verdict(accepted, next_tokens)


def _draft_arguments(law: DraftLaw | None, like: Tensor, temperatures: Tensor) -> tuple:
    """Kernel arguments of the law; unread stand-ins where there is none."""
    if law is None:
        return like, 0, 0, like, like, temperatures, temperatures
    strides = law.logits.stride()[:2]
    latents, w2 = (like, like) if law.latents is None else (law.latents, law.w2)
    return law.logits, *strides, latents, w2, law.log_normalizer, law.log_probs


@triton.jit
def _row_values(
    target,
    target_stride,
    cu_rows,
    temperatures,
    values,
    gamma,
    vocab,
    blocks,
    BLOCK_V: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
):
    """values[row, block] for TILE_BLOCKS vocabulary blocks of one row."""
    request, position = tl.program_id(0) // (gamma + 1), tl.program_id(0) % (gamma + 1)
    row = tl.load(cu_rows + request).to(tl.int64) + position
    if row < tl.load(cu_rows + request + 1):
        block = tl.program_id(1) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
        column = block[:, None] * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
        scaled, greedy = _scaled_target(
            target + row * target_stride, column, vocab, temperatures + request
        )
        value = block_values(scaled, greedy)
        tl.store(values + row * blocks + block, value, mask=block < blocks)


@triton.jit
def _scaled_target(row, column, vocab, temperature):
    """Logits over temperature at pointer ``row``, -inf past the vocabulary; and whether greedy."""
    temperature = tl.load(temperature)
    logits = tl.load(row + column, mask=column < vocab, other=NEGATIVE_INFINITY).to(tl.float32)
    return logits * inverse_temperature(temperature), is_greedy(temperature)


@triton.jit
def _judge(
    target,
    target_stride,
    cu_rows,
    temperatures,
    values,
    draft_tokens,
    log_probs,
    uniforms,
    uniforms_stride,
    normalizers,
    stands,
    gamma,
    vocab,
    blocks,
    HAS_LAW: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Normaliser of one row, and whether its draft token stands."""
    request, position = tl.program_id(0) // (gamma + 1), tl.program_id(0) % (gamma + 1)
    row = tl.load(cu_rows + request).to(tl.int64) + position
    end = tl.load(cu_rows + request + 1)
    if row < end:
        index = tl.arange(0, BLOCKS)
        value = tl.load(values + row * blocks + index, mask=index < blocks, other=NEGATIVE_INFINITY)
        normalizer = log_sum_exp(value, 0)
        tl.store(normalizers + row, normalizer)
        if row + 1 < end:
            token = tl.load(draft_tokens + request.to(tl.int64) * gamma + position)
            column = token // BLOCK_V * BLOCK_V + tl.arange(0, BLOCK_V)
            scaled, greedy = _scaled_target(
                target + row * target_stride, column, vocab, temperatures + request
            )
            logit = tl.sum(tl.where(column == token, scaled, 0.0), 0)
            before = (index < token // BLOCK_V) & (value >= logit)
            ahead = tl.max(tl.where((column < token) & (scaled == logit), 1, 0), 0)
            is_argmax = (
                (tl.max(value, 0) == logit) & (tl.max(before.to(tl.int32), 0) == 0) & (ahead == 0)
            )
            log_ratio = logit - normalizer
            if HAS_LAW:
                log_ratio -= tl.load(log_probs + request.to(tl.int64) * gamma + position)
            uniform = tl.load(uniforms + request.to(tl.int64) * uniforms_stride + position)
            stand = uniform < tl.exp(tl.minimum(log_ratio, 0.0))
            stand = tl.where(greedy, is_argmax, stand)
            tl.store(stands + request * (gamma + 1) + position, stand.to(tl.int32))


@triton.jit
def _accepted(stands, request, drafts, gamma, GAMMA: tl.constexpr):
    """Length of the accepted prefix of each request [n] with ``drafts`` [n] judged tokens."""
    position = tl.arange(0, GAMMA)[None, :]
    judged = position < drafts[:, None]
    stand = tl.load(stands + request[:, None] * (gamma + 1) + position, mask=judged, other=1)
    return tl.min(tl.where(stand == 0, position, drafts[:, None]), 1)


@triton.jit
def _residual_masses(
    target,
    target_stride,
    cu_rows,
    temperatures,
    values,
    draft_tokens,
    draft_logits,
    draft_stride_r,
    draft_stride_k,
    latents,
    w2,
    draft_normalizers,
    normalizers,
    stands,
    masses,
    requests,
    gamma,
    vocab,
    GAMMA: tl.constexpr,
    HAS_LAW: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """masses[r, block]: sum of max(0, p_t - p_d) over one block, where a sampled r rejects."""
    request = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    block = tl.program_id(1)
    live = request < requests
    first = tl.load(cu_rows + request, mask=live, other=0).to(tl.int64)
    drafts = tl.load(cu_rows + request + 1, mask=live, other=0) - first - 1
    at = _accepted(stands, request, drafts, gamma, GAMMA)
    temperature = tl.load(temperatures + request, mask=live, other=0.0)
    live = live & (at < drafts) & ~is_greedy(temperature)
    if tl.max(live.to(tl.int32), 0) > 0:
        scale = inverse_temperature(temperature)[:, None]
        column = block * BLOCK_V + tl.arange(0, BLOCK_V)
        real = column < vocab
        mask = live[:, None] & real[None, :]
        logits = target + ((first + at) * target_stride)[:, None] + column[None, :]
        logits = tl.load(logits, mask=mask, other=0.0).to(tl.float32) * scale
        normalizer = tl.load(normalizers + first + at, mask=live, other=0.0)
        mass = tl.exp(logits - normalizer[:, None])
        cell = request * gamma + at
        if HAS_LAW:
            draft = request * draft_stride_r + at * draft_stride_k
            draft = tl.load(draft_logits + draft[:, None] + column[None, :], mask=mask, other=0.0)
            draft = draft.to(tl.float32)
            if RANK > 0:
                draft += low_rank(latents, cell * RANK, live, w2, column, real, RANK, BLOCK_K, WIDE)
            normalizer = tl.load(draft_normalizers + cell, mask=live, other=0.0)
            mass -= tl.exp(draft * scale - normalizer[:, None])
        else:
            token = tl.load(draft_tokens + cell, mask=live, other=0)
            mass = tl.where(column[None, :] == token[:, None], 0.0, mass)
        mass = tl.sum(tl.where(mask, tl.maximum(mass, 0.0), 0.0), 1)
        tl.store(masses + request * tl.num_programs(1) + block, mass, mask=live)


@triton.jit
def _choose(
    target,
    target_stride,
    cu_rows,
    temperatures,
    values,
    draft_tokens,
    draft_logits,
    draft_stride_r,
    draft_stride_k,
    latents,
    w2,
    draft_normalizers,
    normalizers,
    stands,
    masses,
    uniforms,
    accepted,
    next_tokens,
    gamma,
    vocab,
    blocks,
    GAMMA: tl.constexpr,
    HAS_LAW: tl.constexpr,
    RANK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Accepted length and next token of one request."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(cu_rows + request).to(tl.int64)
    drafts = tl.load(cu_rows + request + 1) - first - 1
    if drafts < 0:
        tl.store(accepted + request, 0)
        tl.store(next_tokens + request, -1)
    else:
        lane = tl.arange(0, 1)
        at = tl.sum(_accepted(stands, request + lane, drafts + lane, gamma, GAMMA), 0)
        tl.store(accepted + request, at)
        row = first + at
        index = tl.arange(0, BLOCKS)
        value = tl.load(values + row * blocks + index, mask=index < blocks, other=NEGATIVE_INFINITY)
        temperature = tl.load(temperatures + request)
        rejected = (at < drafts) & ~is_greedy(temperature)
        normalizer = tl.load(normalizers + row)
        weight = tl.exp(value - normalizer)
        if rejected:
            weight = tl.load(masses + request * blocks + index, mask=index < blocks, other=0.0)
        weight = weight.to(tl.float64)
        goal = tl.load(uniforms + request).to(tl.float64) * tl.sum(weight, 0)
        # Rounding can leave a rejected row without any residual: then the argmax, as when greedy.
        point = is_greedy(temperature) | (tl.sum(weight, 0) <= 0)
        drawn, before = inverse_cdf(weight, goal)
        block = tl.where(point, tl.argmax(value, 0), drawn)

        column = block * BLOCK_V + tl.arange(0, BLOCK_V)
        scaled, greedy = _scaled_target(
            target + row * target_stride, column, vocab, temperatures + request
        )
        mass = tl.exp(scaled - normalizer)
        if rejected:
            cell = request * gamma + at
            if HAS_LAW:
                draft = draft_logits + request * draft_stride_r + at * draft_stride_k
                draft = tl.load(draft + column, mask=column < vocab, other=NEGATIVE_INFINITY)
                draft = draft.to(tl.float32)
                if RANK > 0:
                    draft += low_rank_row(
                        latents + cell * RANK, w2, column, column < vocab, RANK, BLOCK_K
                    )
                draft_normalizer = tl.load(draft_normalizers + cell)
                mass = tl.maximum(
                    mass - tl.exp(draft * inverse_temperature(temperature) - draft_normalizer), 0.0
                )
            else:
                mass = tl.where(column == tl.load(draft_tokens + cell), 0.0, mass)
        drawn, before = inverse_cdf(mass.to(tl.float64), goal - before)
        drawn = tl.where(point, tl.argmax(scaled, 0), drawn)
        tl.store(next_tokens + request, block * BLOCK_V + drawn)
