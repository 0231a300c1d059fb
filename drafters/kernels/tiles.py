"""Pieces that several kernels share, called from inside a kernel on one tile.

Everything is fp32 from the load on: the interpreter's bf16 arithmetic is wrong without a word, and
on a GPU the sums want fp32 anyway. Only ``low_rank`` keeps bf16 operands, for the tensor cores,
unless WIDE (products of bf16 are exact in fp32, so both ways agree up to the order of summation).
"""

from __future__ import annotations

import triton
import triton.language as tl

from drafters.kernels.types import COLDEST as _COLDEST

NEGATIVE_INFINITY: tl.constexpr = tl.constexpr(float("-inf"))
COLDEST: tl.constexpr = tl.constexpr(_COLDEST)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (decided when they were decorated)."""
    return not isinstance(log_sum_exp, triton.JITFunction)


@triton.jit
def log_sum_exp(x, axis: tl.constexpr):
    """log(sum(exp(x))) along the last axis; -inf where all of it is -inf."""
    top = tl.max(x, axis)
    shift = tl.where(top > NEGATIVE_INFINITY, top, 0.0)
    total = tl.sum(tl.exp(x - tl.expand_dims(shift, axis)), axis)
    return tl.where(total > 0, shift + tl.log(tl.maximum(total, 1e-38)), NEGATIVE_INFINITY)


@triton.jit
def is_greedy(temperature):
    """Whether a temperature acts as 0; ``types.is_sampled`` turned round."""
    return temperature < COLDEST


@triton.jit
def inverse_temperature(temperature):
    """1 / T, or 1 where greedy: one division a row instead of one an entry."""
    return 1.0 / tl.where(is_greedy(temperature), 1.0, temperature)


@triton.jit
def block_values(scaled, greedy):
    """What a vocabulary block [n, BLOCK] is worth to each row: its largest logit where ``greedy``
    [n], else the log of its mass."""
    return tl.where(greedy, tl.max(scaled, 1), log_sum_exp(scaled, 1))


@triton.jit
def inverse_cdf(weights, target):
    """First index at which the running sum of ``weights`` [n] fp64 exceeds ``target``, and the sum
    before it. A target past the end gives the last positive weight, never a zero one."""
    index = tl.arange(0, weights.shape[0])
    past = tl.sum((tl.cumsum(weights, 0) <= target).to(tl.int32), 0)
    last = tl.max(tl.where(weights > 0, index, 0), 0)
    chosen = tl.minimum(past, last)
    return chosen, tl.sum(tl.where(index < chosen, weights, 0.0), 0)


@triton.jit
def low_rank(
    latents,
    latent_rows,
    row_mask,
    w2,
    columns,
    column_mask,
    RANK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Transition bias [rows, columns] fp32: latents at offsets ``latent_rows`` times W2's rows."""
    bias = tl.zeros((latent_rows.shape[0], columns.shape[0]), tl.float32)
    for k in range(0, RANK, BLOCK_K):
        depth = k + tl.arange(0, BLOCK_K)
        z = tl.load(
            latents + latent_rows[:, None] + depth[None, :],
            mask=row_mask[:, None] & (depth < RANK)[None, :],
            other=0.0,
        )
        w = tl.load(
            w2 + columns.to(tl.int64)[None, :] * RANK + depth[:, None],
            mask=column_mask[None, :] & (depth < RANK)[:, None],
            other=0.0,
        )
        if WIDE:
            z, w = z.to(tl.float32), w.to(tl.float32)
        bias = tl.dot(z, w, bias, input_precision="ieee")
    return bias


@triton.jit
def low_rank_row(
    latent,
    w2,
    columns,
    column_mask,
    RANK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Transition bias [columns] fp32 of the one latent at pointer ``latent``."""
    bias = tl.zeros((columns.shape[0],), tl.float32)
    for k in range(0, RANK, BLOCK_K):
        depth = k + tl.arange(0, BLOCK_K)
        z = tl.load(latent + depth, mask=depth < RANK, other=0.0).to(tl.float32)
        w = tl.load(
            w2 + columns.to(tl.int64)[:, None] * RANK + depth[None, :],
            mask=column_mask[:, None] & (depth < RANK)[None, :],
            other=0.0,
        ).to(tl.float32)
        bias += tl.sum(w * z[None, :], 1)
    return bias
