"""Pieces that several kernels share, called from inside a kernel on one tile.

Everything is fp32 from the load on: the interpreter's bf16 arithmetic is wrong without a word, and
on a GPU the sums want fp32 anyway. Only ``low_rank`` keeps bf16 operands, for the tensor cores,
unless WIDE (products of bf16 are exact in fp32, so both ways agree up to the order of summation).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from drafters.kernels.types import COLDEST as _COLDEST

NEGATIVE_INFINITY: tl.constexpr = tl.constexpr(float("-inf"))
COLDEST: tl.constexpr = tl.constexpr(_COLDEST)
LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (decided when they were decorated)."""
    return not isinstance(log_sum_exp, triton.JITFunction)


class Tiling(NamedTuple):
    """How a kernel that adds the transition bias cuts requests x vocabulary into tiles."""

    block_r: int
    block_v: int
    block_k: int
    """Depth of one step of the product; the padded rank where a latent fits one step."""
    stages: int
    """3: the next tile is on its way while one is worked on. 2: never more than one."""
    warps: int
    per_processor: int
    """Programs per multiprocessor, each walking over the vocabulary; 0 for one tile a program."""

    def programs(self, requests: int, vocab: int, device: torch.device) -> tuple[int, int]:
        """Grid: tiles of requests x programs that share out the vocabulary."""
        rows, blocks = triton.cdiv(requests, self.block_r), triton.cdiv(vocab, self.block_v)
        most = max(1, self.per_processor * processors(device) // rows)
        return rows, min(blocks, most) if self.per_processor else blocks


def tiling(requests: int, rank: int, dtype: torch.dtype, *logits: torch.dtype) -> Tiling:
    """Tiles for ``requests`` latents of ``rank`` in ``dtype`` beside such ``logits``, which fill
    227 KB of shared memory at most.

    A short rank leaves little to load per tile, so all tiles go at once. Else the latents weigh as
    much as W2's tile: a program reads them once and walks over vocabulary blocks of 64, two of
    which fit beside them.
    """
    wide = dtype.itemsize > 2  # products of fp32 run in registers
    widest = max(t.itemsize for t in (dtype, *logits))
    block_r = min(128 if widest <= 2 else 64, max(16, triton.next_power_of_2(requests)))
    depth = max(16, triton.next_power_of_2(rank))
    block_k = depth if depth <= (64 if wide else 256) else 64
    if rank <= 64:
        return Tiling(block_r, 128, block_k, 2, 8 if block_r >= 64 else 4, 0)
    warps = 8 if block_r == 128 or (wide and block_r == 64) else 4
    return Tiling(block_r, 64, block_k, 3, warps, 1 if block_r >= 64 else 2)


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an H200's where there is none."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def log_sum_exp(x, axis: tl.constexpr):
    """log(sum(exp(x))) along the last axis; -inf where all of it is -inf."""
    top = tl.max(x, axis)
    shift = tl.where(top > NEGATIVE_INFINITY, top, 0.0)
    total = tl.sum(tl.exp(x - tl.expand_dims(shift, axis)), axis)
    return tl.where(total > 0, shift + tl.log(tl.maximum(total, 1e-37)), NEGATIVE_INFINITY)


@triton.jit
def is_greedy(temperature):
    """Whether a temperature acts as 0; ``types.is_sampled`` turned round."""
    return temperature < COLDEST


@triton.jit
def inverse_temperature(temperature):
    """1 / T, or 1 where greedy: one division a row instead of one an entry."""
    return 1.0 / tl.where(is_greedy(temperature), 1.0, temperature)


@triton.jit
def finite(top):
    """``top``, or 0 where it is -inf: what to subtract from entries of which it is the largest."""
    return tl.where(top > NEGATIVE_INFINITY, top, 0.0)


@triton.jit
def log_mass(total, shift):
    """Natural log of ``total`` * 2 ** ``shift``, -inf where ``total`` is 0."""
    log = (tl.log2(tl.maximum(total, 1e-37)) + shift) * LOG_2
    return tl.where(total > 0, log, NEGATIVE_INFINITY)


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
def latent_tile(latents, latent_rows, row_mask, depth, RANK: tl.constexpr):
    """Latents [rows, depth] at offsets ``latent_rows``, 0 where masked."""
    return tl.load(
        latents + latent_rows[:, None] + depth[None, :],
        mask=row_mask[:, None] & (depth < RANK)[None, :],
        other=0.0,
    )


@triton.jit
def weight_tile(w2, columns, column_mask, depth, RANK: tl.constexpr):
    """W2's rows ``columns`` as the right factor of a product, [depth, columns], 0 where masked."""
    return tl.load(
        w2 + columns.to(tl.int64)[None, :] * RANK + depth[:, None],
        mask=column_mask[None, :] & (depth < RANK)[:, None],
        other=0.0,
    )


@triton.jit
def add_product(bias, z, w, WIDE: tl.constexpr):
    """``bias`` + z w in fp32."""
    if WIDE:
        z, w = z.to(tl.float32), w.to(tl.float32)
    return tl.dot(z, w, bias, input_precision="ieee")


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
        z = latent_tile(latents, latent_rows, row_mask, depth, RANK)
        w = weight_tile(w2, columns, column_mask, depth, RANK)
        bias = add_product(bias, z, w, WIDE)
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
    """Transition bias [columns] fp32 of the one latent at pointer ``latent``.

    Unrolled, so that all of W2's rows are on their way at once, and summed across threads once.
    """
    bias = tl.zeros((columns.shape[0], BLOCK_K), tl.float32)
    for k in tl.static_range(0, RANK, BLOCK_K):
        depth = k + tl.arange(0, BLOCK_K)
        z = tl.load(latent + depth, mask=depth < RANK, other=0.0).to(tl.float32)
        w = tl.load(
            w2 + columns.to(tl.int64)[:, None] * RANK + depth[None, :],
            mask=column_mask[:, None] & (depth < RANK)[None, :],
            other=0.0,
        ).to(tl.float32)
        bias += w * z[None, :]
    return tl.sum(bias, 1)
