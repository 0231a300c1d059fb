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
    LOG2_E,
    NEGATIVE_INFINITY,
    add_product,
    finite,
    interpreted,
    inverse_temperature,
    is_greedy,
    latent_tile,
    log_mass,
    log_sum_exp,
    low_rank,
    tiling,
    weight_tile,
)
from drafters.kernels.types import DraftLaw, Verdict
from drafters.kernels.verify.draws import draw, draw_residual, most_likely, row_part

BLOCK_V = 128
"""Vocabulary entries per number that is kept of a target row."""
TILE_BLOCKS = 64
ROW_WARPS = 4
"""Each thread of ``_row_values`` has eight loads of 16 bytes in flight where logits are bf16."""


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
    accepted, next_tokens = torch.empty((2, requests), dtype=torch.int64, device=device)
    if requests == 0:
        return Verdict(accepted, next_tokens)
    target = (target_logits, target_logits.stride(0), cu_rows, temperatures, values)
    draft = _draft_arguments(law, target_logits, temperatures)
    rank = 0 if law is None or law.latents is None else law.latents.shape[-1]
    read = () if law is None else (law.logits.dtype,)
    tile = tiling(requests, rank, draft[4].dtype, target_logits.dtype, *read)
    sums = triton.cdiv(vocab, tile.block_v)
    masses = torch.empty((requests, sums), dtype=torch.float32, device=device)
    tail = {
        "GAMMA": triton.next_power_of_2(gamma + 1),
        "HAS_LAW": law is not None,
        "RANK": rank,
    }
    _row_values[(requests, gamma + 1, triton.cdiv(blocks, TILE_BLOCKS))](
        *target,
        gamma,
        vocab,
        blocks,
        BLOCK_V=BLOCK_V,
        TILE_BLOCKS=TILE_BLOCKS,
        num_warps=ROW_WARPS,
    )
    _judge[(requests, gamma + 1)](
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
        BLOCKS=triton.next_power_of_2(blocks),
        BLOCK_V=BLOCK_V,
        num_warps=judge_warps(blocks),
    )
    if gamma:
        _residual_masses[tile.programs(requests, vocab, device)](
            *target[:-1],
            draft_tokens,
            *draft[:-1],
            normalizers,
            stands,
            masses,
            requests,
            gamma,
            vocab,
            sums,
            BLOCK_R=tile.block_r,
            BLOCK_V=tile.block_v,
            BLOCK_K=tile.block_k,
            STAGES=tile.stages,
            WIDE=interpreted(),
            num_warps=tile.warps,
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
        sums,
        BLOCKS=triton.next_power_of_2(blocks),
        BLOCK_V=BLOCK_V,
        SUMS=triton.next_power_of_2(sums),
        SUM_V=tile.block_v,
        BLOCK_K=min(64, tile.block_k),
        num_warps=choose_warps(sums),
        **tail,
    )
    return Verdict(accepted, next_tokens)


def judge_warps(blocks: int) -> int:
    """Warps that reduce the numbers of one row, a few in each thread."""
    return 2 if blocks <= 512 else 4


def choose_warps(sums: int) -> int:
    """Warps that draw for one request, in fp64."""
    return 4 if sums <= 1024 else 8


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
    """values[row, block] for TILE_BLOCKS vocabulary blocks of one row.

    The halves of a block lie in the same threads, so that less of the maxima and sums is left to do
    between threads.
    """
    request, position = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + request)
    row = tl.load(cu_rows + request).to(tl.int64) + position
    if row < tl.load(cu_rows + request + 1):
        block = tl.program_id(2) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
        column = block[:, None] * BLOCK_V + tl.arange(0, BLOCK_V // 2)[None, :]
        left = row_part(target + row * target_stride, column, vocab)
        right = row_part(target + row * target_stride, column + BLOCK_V // 2, vocab)
        value = tl.max(tl.maximum(left, right), 1)
        if ~is_greedy(temperature):
            rate = inverse_temperature(temperature) * LOG2_E
            shift = finite(value) * rate
            mass = tl.exp2(left * rate - shift[:, None]) + tl.exp2(right * rate - shift[:, None])
            value = log_mass(tl.sum(mass, 1), shift)
        tl.store(values + row * blocks + block, value, mask=block < blocks)


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
    """Normaliser of one sampled row, and whether its draft token stands."""
    request, position = tl.program_id(0), tl.program_id(1)
    row = tl.load(cu_rows + request).to(tl.int64) + position
    end = tl.load(cu_rows + request + 1)
    temperature = tl.load(temperatures + request)
    greedy = is_greedy(temperature)
    drafted = row + 1 < end
    if drafted | ((row < end) & ~greedy):
        index = tl.arange(0, BLOCKS)
        value = tl.load(values + row * blocks + index, mask=index < blocks, other=NEGATIVE_INFINITY)
        cell = request.to(tl.int64) * gamma + position
        token = tl.load(draft_tokens + cell, mask=drafted, other=0)
        logit = tl.load(target + row * target_stride + token).to(tl.float32)
        if greedy:
            column = token // BLOCK_V * BLOCK_V + tl.arange(0, BLOCK_V)
            block = row_part(target + row * target_stride, column, vocab)
            before = (index < token // BLOCK_V) & (value >= logit)
            ahead = (column < token) & (block == logit)
            larger = tl.sum((before | (value > logit)).to(tl.int32), 0)
            stand = larger + tl.sum(ahead.to(tl.int32), 0) == 0
        else:
            normalizer = log_sum_exp(value, 0)
            tl.store(normalizers + row, normalizer)
            log_ratio = logit * inverse_temperature(temperature) - normalizer
            if HAS_LAW:
                log_ratio -= tl.load(log_probs + cell, mask=drafted, other=0.0)
            uniform = tl.load(
                uniforms + request.to(tl.int64) * uniforms_stride + position,
                mask=drafted,
                other=0.0,
            )
            stand = uniform < tl.exp(log_ratio)  # false of NaN
        stand_at = stands + request * (gamma + 1) + position
        tl.store(stand_at, stand.to(tl.int32), mask=drafted)


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
    sums,
    GAMMA: tl.constexpr,
    HAS_LAW: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """masses[r, block]: sum of max(0, p_t - p_d) over every n-th block, where a sampled r rejects.

    Cut and walked over as in ``markov_sample``, in the same arithmetic.
    """
    request = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    live = request < requests
    temperature = tl.load(temperatures + request, mask=live, other=0.0)
    live = live & ~is_greedy(temperature)
    first = tl.load(cu_rows + request, mask=live, other=0).to(tl.int64)
    drafts = tl.load(cu_rows + request + 1, mask=live, other=0) - first - 1
    at = _accepted(stands, request, drafts, gamma, GAMMA)
    live = live & (at < drafts)
    if tl.max(live.to(tl.int32), 0) > 0:
        rate = inverse_temperature(temperature)[:, None] * LOG2_E
        normalizer = tl.load(normalizers + first + at, mask=live, other=0.0)[:, None] * LOG2_E
        cell = request * gamma + at
        row = target + ((first + at) * target_stride)[:, None]
        depth = tl.arange(0, BLOCK_K)
        if HAS_LAW:
            draft_row = draft_logits + (request * draft_stride_r + at * draft_stride_k)[:, None]
            draft_normalizer = tl.load(draft_normalizers + cell, mask=live, other=0.0)
            draft_normalizer = draft_normalizer[:, None] * LOG2_E
            if RANK > 0 and RANK <= BLOCK_K:
                z = latent_tile(latents, cell * RANK, live, depth, RANK)
        else:
            token = tl.load(draft_tokens + cell, mask=live, other=0)[:, None]
        for block in tl.range(tl.program_id(1), sums, tl.num_programs(1), num_stages=STAGES):
            column = block * BLOCK_V + tl.arange(0, BLOCK_V)
            real = column < vocab
            mask = live[:, None] & real[None, :]
            logits = tl.load(row + column[None, :], mask=mask, other=0.0).to(tl.float32)
            mass = tl.exp2(logits * rate - normalizer)
            if HAS_LAW:
                draft = tl.load(draft_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
                if RANK > BLOCK_K:
                    draft += low_rank(
                        latents, cell * RANK, live, w2, column, real, RANK, BLOCK_K, WIDE
                    )
                elif RANK > 0:
                    w = weight_tile(w2, column, real, depth, RANK)
                    draft += add_product(tl.zeros((BLOCK_R, BLOCK_V), tl.float32), z, w, WIDE)
                mass -= tl.exp2(draft * rate - draft_normalizer)
            else:
                mass = tl.where(column[None, :] == token, 0.0, mass)
            mass = tl.sum(tl.where(mask, tl.maximum(mass, 0.0), 0.0), 1)
            tl.store(masses + request * sums + block, mass, mask=live)


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
    sums,
    GAMMA: tl.constexpr,
    HAS_LAW: tl.constexpr,
    RANK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SUMS: tl.constexpr,
    SUM_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Accepted length and next token of one request."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(cu_rows + request).to(tl.int64)
    drafts = tl.load(cu_rows + request + 1) - first - 1
    temperature = tl.load(temperatures + request)
    uniform = tl.load(uniforms + request).to(tl.float64)
    if drafts < 0:
        tl.store(accepted + request, 0)
        tl.store(next_tokens + request, -1)
    else:
        lane = tl.arange(0, 1)
        at = tl.sum(_accepted(stands, request + lane, drafts + lane, gamma, GAMMA), 0)
        tl.store(accepted + request, at)
        row = first + at
        value = values + row * blocks
        logits = target + row * target_stride
        if is_greedy(temperature):
            token = most_likely(value, blocks, logits, vocab, BLOCKS, BLOCK_V)
        else:
            inverse = inverse_temperature(temperature)
            normalizer = tl.load(normalizers + row)
            if at == drafts:
                token = draw(
                    value, blocks, logits, vocab, inverse, normalizer, uniform, BLOCKS, BLOCK_V
                )
            else:
                cell = request * gamma + at
                token = draw_residual(
                    masses + request * sums,
                    sums,
                    logits,
                    draft_tokens + cell,
                    draft_logits + request * draft_stride_r + at * draft_stride_k,
                    latents + cell * RANK,
                    w2,
                    draft_normalizers + cell,
                    vocab,
                    inverse,
                    normalizer,
                    uniform,
                    HAS_LAW,
                    RANK,
                    SUMS,
                    SUM_V,
                    BLOCK_K,
                )
                if token < 0:  # rounding can leave a rejected row without any residual
                    token = most_likely(value, blocks, logits, vocab, BLOCKS, BLOCK_V)
        tl.store(next_tokens + request, tl.minimum(token, vocab - 1))  # of NaN some token
