"""``rotate_store`` in Triton: one program per token and head, queries, keys, then values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rotate_store(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """See ``drafters.kernels.rotate_store``."""
    tokens, heads, size = queries.shape
    kv_heads = keys.shape[1]
    out = torch.empty((tokens, heads, size), dtype=queries.dtype, device=queries.device)
    if tokens:
        _rotate_store[(tokens, heads + 2 * kv_heads)](
            queries,
            *queries.stride()[:2],
            keys,
            *keys.stride()[:2],
            values,
            *values.stride()[:2],
            cos,
            sin,
            rows,
            out,
            key_cache,
            value_cache,
            HEADS=heads,
            KV_HEADS=kv_heads,
            HALF=size // 2,
            BLOCK=triton.next_power_of_2(size // 2),
            num_warps=1,
        )
    return out


@triton.jit
def _rotate_store(
    queries,
    query_stride_t,
    query_stride_h,
    keys,
    key_stride_t,
    key_stride_h,
    values,
    value_stride_t,
    value_stride_h,
    cos,
    sin,
    rows,
    out,
    key_cache,
    value_cache,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one token."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    used = lane < HALF
    if head < HEADS:
        source = queries + token * query_stride_t + head * query_stride_h
        target = out + (token * HEADS + head) * 2 * HALF
        _rotate(source, target, cos, sin, token, lane, used, HALF)
    else:
        row = tl.load(rows + token).to(tl.int64) * KV_HEADS
        if head < HEADS + KV_HEADS:
            source = keys + token * key_stride_t + (head - HEADS) * key_stride_h
            target = key_cache + (row + head - HEADS) * 2 * HALF
            _rotate(source, target, cos, sin, token, lane, used, HALF)
        else:
            kv_head = head - HEADS - KV_HEADS
            source = values + token * value_stride_t + kv_head * value_stride_h
            target = value_cache + (row + kv_head) * 2 * HALF
            tl.store(target + lane, tl.load(source + lane, mask=used), mask=used)
            tl.store(target + HALF + lane, tl.load(source + HALF + lane, mask=used), mask=used)


@triton.jit
def _rotate(source, target, cos, sin, token, lane, used, HALF: tl.constexpr):
    """Both halves of one head, from ``source`` to ``target``."""
    left = tl.load(source + lane, mask=used, other=0.0).to(tl.float32)
    right = tl.load(source + HALF + lane, mask=used, other=0.0).to(tl.float32)
    c = tl.load(cos + token * 2 * HALF + lane, mask=used, other=0.0)
    s = tl.load(sin + token * 2 * HALF + lane, mask=used, other=0.0)
    kind = target.dtype.element_ty
    tl.store(target + lane, (left * c - right * s).to(kind), mask=used)
    tl.store(target + HALF + lane, (right * c + left * s).to(kind), mask=used)
