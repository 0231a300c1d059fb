"""One token of one target row, from a number per block of the vocabulary: called inside a kernel.

A block is chosen from those numbers and its entries are computed again, to choose within it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from drafters.kernels.tiles import NEGATIVE_INFINITY, inverse_cdf, low_rank_row


@triton.jit
def row_part(row, column, vocab):
    """fp32 logits at pointer ``row``, -inf past the vocabulary."""
    return tl.load(row + column, mask=column < vocab, other=NEGATIVE_INFINITY).to(tl.float32)


@triton.jit
def draw(
    value,
    blocks,
    logits,
    vocab,
    inverse,
    normalizer,
    uniform,
    BLOCKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Token drawn from a target row, given the log masses of its blocks."""
    index = tl.arange(0, BLOCKS)
    weight = tl.load(value + index, mask=index < blocks, other=NEGATIVE_INFINITY)
    weight = tl.exp(weight - normalizer).to(tl.float64)
    goal = uniform * tl.sum(weight, 0)
    block, before = inverse_cdf(weight, goal)
    column = block * BLOCK_V + tl.arange(0, BLOCK_V)
    mass = tl.exp(row_part(logits, column, vocab) * inverse - normalizer)
    drawn, before = inverse_cdf(mass.to(tl.float64), goal - before)
    return block * BLOCK_V + drawn


@triton.jit
def draw_residual(
    masses,
    sums,
    logits,
    draft_token,
    draft,
    latent,
    w2,
    draft_normalizer,
    vocab,
    inverse,
    normalizer,
    uniform,
    HAS_LAW: tl.constexpr,
    RANK: tl.constexpr,
    SUMS: tl.constexpr,
    SUM_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Token drawn from max(0, p_t - p_d), given its sum over each block; -1 where all are 0."""
    index = tl.arange(0, SUMS)
    weight = tl.load(masses + index, mask=index < sums, other=0.0).to(tl.float64)
    total = tl.sum(weight, 0)
    goal = uniform * total
    block, before = inverse_cdf(weight, goal)
    column = block * SUM_V + tl.arange(0, SUM_V)
    mass = tl.exp(row_part(logits, column, vocab) * inverse - normalizer)
    if HAS_LAW:
        logit = row_part(draft, column, vocab)
        if RANK > 0:
            logit += low_rank_row(latent, w2, column, column < vocab, RANK, BLOCK_K)
        mass = tl.maximum(mass - tl.exp(logit * inverse - tl.load(draft_normalizer)), 0.0)
    else:
        mass = tl.where(column == tl.load(draft_token), 0.0, mass)
    drawn, before = inverse_cdf(mass.to(tl.float64), goal - before)
    return tl.where(total > 0, block * SUM_V + drawn, -1)


@triton.jit
def most_likely(value, blocks, logits, vocab, BLOCKS: tl.constexpr, BLOCK_V: tl.constexpr):
    """Lowest token of the largest logit in the block that is worth the most."""
    index = tl.arange(0, BLOCKS)
    value = tl.load(value + index, mask=index < blocks, other=NEGATIVE_INFINITY)
    block = tl.argmax(value, 0)
    column = block * BLOCK_V + tl.arange(0, BLOCK_V)
    return block * BLOCK_V + tl.argmax(row_part(logits, column, vocab), 0)
