"""``draft_loss`` in Triton: one program a row, which stays in the L2 cache between its passes.

Pass 1 makes both normalisers (running maximum and sum), pass 2 the two losses and sum s p, pass 3
writes the gradient over the logits. From device memory that is one read of the two rows and one
write; rows of the target that several draft rows share are mostly cached as well.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drafters.kernels.tiles import NEGATIVE_INFINITY

BLOCK_V = 4096


def draft_loss(
    logits: Tensor,
    target_logits: Tensor,
    target_rows: Tensor,
    labels: Tensor,
    weights: Tensor,
    a_ce: float,
    a_l1: float,
    soft: bool,
) -> tuple[Tensor, Tensor]:
    """See ``drafters.kernels.draft_loss``."""
    rows, vocab = logits.shape
    ce, l1 = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    if rows:
        _row[(rows,)](
            logits,
            logits.stride(0),
            target_logits,
            target_logits.stride(0),
            target_rows,
            labels,
            weights,
            ce,
            l1,
            float(a_ce),
            float(a_l1),
            vocab,
            SOFT=soft,
            BLOCK_V=min(BLOCK_V, triton.next_power_of_2(vocab)),
            num_warps=8,
        )
    return ce, l1


@triton.jit
def _widened(top, total, x):
    """Running maximum and sum of exponentials after block ``x``."""
    higher = tl.maximum(top, tl.max(x, 0))
    return higher, total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)


@triton.jit
def _block(row, column, vocab):
    return tl.load(row + column, mask=column < vocab, other=NEGATIVE_INFINITY).to(tl.float32)


@triton.jit
def _row(
    logits,
    stride,
    target,
    target_stride,
    target_rows,
    labels,
    weights,
    ce_out,
    l1_out,
    a_ce,
    a_l1,
    vocab,
    SOFT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Losses and gradient of one row."""
    index = tl.program_id(0).to(tl.int64)
    draft = logits + index * stride
    told = target + tl.load(target_rows + index).to(tl.int64) * target_stride
    label, weight = tl.load(labels + index), tl.load(weights + index)

    top, total, told_top, told_total = -1e38, 0.0, -1e38, 0.0
    for start in range(0, vocab, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        top, total = _widened(top, total, _block(draft, column, vocab))
        told_top, told_total = _widened(told_top, told_total, _block(told, column, vocab))
    normalizer, told_normalizer = top + tl.log(total), told_top + tl.log(told_total)

    l1, signed, ce = 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        x = _block(draft, column, vocab)
        p, q = tl.exp(x - normalizer), tl.exp(_block(told, column, vocab) - told_normalizer)
        l1 += tl.sum(tl.abs(p - q), 0)
        signed += tl.sum(tl.where(p > q, p, tl.where(p < q, -p, 0.0)), 0)
        goal = q if SOFT else tl.where(column == label, 1.0, 0.0)
        ce += tl.sum(goal * tl.where(goal > 0, normalizer - x, 0.0), 0)
    tl.store(ce_out + index, ce)
    tl.store(l1_out + index, l1)

    for start in range(0, vocab, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        p = tl.exp(_block(draft, column, vocab) - normalizer)
        q = tl.exp(_block(told, column, vocab) - told_normalizer)
        sign = tl.where(p > q, 1.0, tl.where(p < q, -1.0, 0.0))
        goal = q if SOFT else tl.where(column == label, 1.0, 0.0)
        slope = a_ce * (p - goal) + a_l1 * p * (sign - signed)
        tl.store(draft + column, slope * weight, mask=column < vocab)
