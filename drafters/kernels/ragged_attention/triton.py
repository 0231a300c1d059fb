"""``ragged_attention`` in Triton: one program per request, key head and tile of its query rows.

The query heads that share a key head are folded into the tile's rows, so a key is read once for
all of them; the softmax is online, in fp32. For few requests with long contexts the cache is cut
into ``splits`` parts that run side by side, and a second kernel joins their results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drafters.kernels.tiles import NEGATIVE_INFINITY, interpreted

BLOCK_N, WARPS = 64, 4
BLOCK_N_WIDE, WARPS_WIDE = 32, 8
"""Keys of a tile and warps where queries are fp32, whose products run in registers."""
ENOUGH_PROGRAMS = 256
MIN_SPLIT_TOKENS = 512


def ragged_attention(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_rows: Tensor,
    context_tokens: Tensor,
    max_rows: int,
    causal: bool = True,
) -> Tensor:
    """See ``drafters.kernels.ragged_attention``."""
    rows, heads, size = queries.shape
    requests, block_size, kv_heads = block_tables.shape[0], *key_cache.shape[1:3]
    if requests == 0 or rows == 0 or max_rows == 0:
        return torch.zeros(queries.shape, dtype=queries.dtype, device=queries.device)
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    group, wide = heads // kv_heads, queries.dtype.itemsize > 2
    block_m = min(64, max(16, triton.next_power_of_2(max_rows * group)))
    grid = (requests, kv_heads, triton.cdiv(max_rows * group, block_m))
    splits = _splits(grid[0] * grid[1] * grid[2], block_tables.shape[1] * block_size)
    parts = out
    if splits > 1:
        parts = torch.empty((splits, rows, heads, size), dtype=torch.float32, device=out.device)
    normalizers = torch.empty((splits, rows, heads), dtype=torch.float32, device=out.device)
    _attend[(grid[0] * splits, *grid[1:])](
        queries,
        *queries.stride()[:2],
        key_cache,
        *key_cache.stride()[:3],
        value_cache,
        *value_cache.stride()[:3],
        block_tables,
        block_tables.stride(0),
        cu_rows,
        context_tokens,
        parts,
        normalizers,
        requests,
        rows,
        heads,
        size**-0.5,
        block_size,
        SPLITS=splits,
        GROUP=group,
        CAUSAL=causal,
        SIZE=size,
        BLOCK_E=max(16, triton.next_power_of_2(size)),
        BLOCK_M=block_m,
        BLOCK_N=BLOCK_N_WIDE if wide else BLOCK_N,
        WIDE=interpreted(),
        num_warps=WARPS_WIDE if wide else WARPS,
    )
    if splits > 1:
        _join[(rows, heads)](
            parts,
            normalizers,
            cu_rows,
            out,
            requests,
            SPLITS=splits,
            SIZE=size,
            BLOCK_E=triton.next_power_of_2(size),
        )
    return out


def _splits(programs: int, capacity_tokens: int) -> int:
    """Parts to cut each context into: a power of two, 1 where there are programs enough."""
    wanted = min(ENOUGH_PROGRAMS // programs, capacity_tokens // MIN_SPLIT_TOKENS, 64)
    return 1 if wanted < 2 else 2 ** (wanted.bit_length() - 1)


@triton.jit
def _attend(
    queries,
    query_stride_n,
    query_stride_h,
    key_cache,
    key_stride_b,
    key_stride_o,
    key_stride_h,
    value_cache,
    value_stride_b,
    value_stride_o,
    value_stride_h,
    block_tables,
    table_stride,
    cu_rows,
    context_tokens,
    parts,
    normalizers,
    requests,
    rows,
    heads,
    scale,
    block_size,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One split of the context for one request, key head and tile of (row, query head) pairs."""
    request, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    kv_head = tl.program_id(1).to(tl.int64)
    first = tl.load(cu_rows + request).to(tl.int64)
    count = (tl.load(cu_rows + request + 1) - first).to(tl.int32)
    pair = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(2) * BLOCK_M < count * GROUP:
        context = tl.load(context_tokens + request).to(tl.int32)
        live = pair < count * GROUP
        row = first + pair // GROUP
        head = kv_head * GROUP + pair % GROUP
        # Last position that each pair sees.
        position = context - count + pair // GROUP if CAUSAL else context - 1 + 0 * pair
        lane = tl.arange(0, BLOCK_E)
        used = lane < SIZE
        query = tl.load(
            queries + (row * query_stride_n + head * query_stride_h)[:, None] + lane[None, :],
            mask=live[:, None] & used[None, :],
            other=0.0,
        )
        if WIDE:
            query = query.to(tl.float32)

        part = tl.cdiv(tl.cdiv(context, SPLITS), BLOCK_N) * BLOCK_N
        last = tl.max(tl.where(live, position, 0), 0) + 1
        end = tl.minimum(tl.minimum((split + 1) * part, context), last)
        top = tl.full((BLOCK_M,), NEGATIVE_INFINITY, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        mixed = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
        for start in range(split * part, end, BLOCK_N):
            key_position = start + tl.arange(0, BLOCK_N)
            inside = key_position < context
            block = tl.load(
                block_tables + request.to(tl.int64) * table_stride + key_position // block_size,
                mask=inside,
                other=0,
            ).to(tl.int64)
            offset = (key_position % block_size).to(tl.int64)
            key_row = block * key_stride_b + offset * key_stride_o + kv_head * key_stride_h
            key = tl.load(
                key_cache + key_row[None, :] + lane[:, None],
                mask=inside[None, :] & used[:, None],
                other=0.0,
            )
            value_row = block * value_stride_b + offset * value_stride_o + kv_head * value_stride_h
            value = tl.load(
                value_cache + value_row[:, None] + lane[None, :],
                mask=inside[:, None] & used[None, :],
                other=0.0,
            )
            if WIDE:
                key, value = key.to(tl.float32), value.to(tl.float32)
            score = tl.dot(query, key, input_precision="ieee") * scale
            seen = inside[None, :] & (key_position[None, :] <= position[:, None])
            score = tl.where(seen, score, NEGATIVE_INFINITY)
            new_top = tl.maximum(top, tl.max(score, 1))
            # A row may see nothing yet of this split: shift by 0, not by -inf.
            shift = tl.where(new_top > NEGATIVE_INFINITY, new_top, 0.0)
            weight = tl.exp(score - shift[:, None])
            fade = tl.exp(top - shift)
            total = total * fade + tl.sum(weight, 1)
            mixed = tl.dot(
                weight.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee"
            )
            top = new_top

        cell = (split.to(tl.int64) * rows + row) * heads + head
        divisor = tl.where(total > 0, total, 1.0)
        result = (mixed / divisor[:, None]).to(parts.dtype.element_ty)
        tl.store(
            parts + cell[:, None] * SIZE + lane[None, :],
            result,
            mask=live[:, None] & used[None, :],
        )
        if SPLITS > 1:
            normalizer = tl.where(total > 0, top + tl.log(divisor), NEGATIVE_INFINITY)
            tl.store(normalizers + cell, normalizer, mask=live)
    if SPLITS == 1 and request + tl.program_id(2) == 0:
        # Rows that no request owns.
        lane = tl.arange(0, BLOCK_E)
        for start in range(tl.load(cu_rows + requests).to(tl.int32) * GROUP, rows * GROUP, BLOCK_M):
            pair = start + tl.arange(0, BLOCK_M)
            cell = (pair // GROUP).to(tl.int64) * heads + kv_head * GROUP + pair % GROUP
            tl.store(
                parts + cell[:, None] * SIZE + lane[None, :],
                tl.zeros((BLOCK_M, BLOCK_E), parts.dtype.element_ty),
                mask=(pair < rows * GROUP)[:, None] & (lane < SIZE)[None, :],
            )


@triton.jit
def _join(
    parts,
    normalizers,
    cu_rows,
    out,
    requests,
    SPLITS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Mix the splits of one row and head by their share of the softmax mass; 0 for a row that no
    request owns."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, heads = tl.num_programs(0), tl.num_programs(1)
    split, lane = tl.arange(0, SPLITS).to(tl.int64), tl.arange(0, BLOCK_E)
    place = out + (row * heads + head) * SIZE + lane
    if row < tl.load(cu_rows + requests):
        cell = (split * rows + row) * heads + head
        normalizer = tl.load(normalizers + cell)
        weight = tl.exp(normalizer - tl.max(normalizer, 0))
        weight /= tl.sum(weight, 0)
        part = tl.load(
            parts + cell[:, None] * SIZE + lane[None, :], mask=(lane < SIZE)[None, :], other=0.0
        )
        mixed = tl.sum(part * weight[:, None], 0).to(out.dtype.element_ty)
        tl.store(place, mixed, mask=lane < SIZE)
    else:
        tl.store(place, tl.zeros((BLOCK_E,), out.dtype.element_ty), mask=lane < SIZE)
