"""``ragged_attention`` in plain torch: gathers each request's keys, fp32 softmax."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """See ``drafters.kernels.ragged_attention``; reads the lengths on the host."""
    out = torch.zeros_like(queries)
    block_size = key_cache.shape[1]
    bounds, contexts = cu_rows.tolist(), context_tokens.tolist()
    for request, context in enumerate(contexts):
        first, end = bounds[request : request + 2]
        if first == end:
            continue
        table = block_tables[request, : -(-context // block_size)].long()
        keys, values = (cache[table].flatten(0, 1)[:context] for cache in (key_cache, value_cache))
        out[first:end] = _attend(queries[first:end], keys, values, causal)
    return out


def _attend(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """Causal (or full) attention of the newest q tokens: [q, H, e] over [c, K, e] -> [q, H, e]."""
    rows, heads, size = queries.shape
    context, kv_heads, _ = keys.shape
    grouped = queries.float().reshape(rows, kv_heads, heads // kv_heads, size)
    scores = torch.einsum("qkge,cke->kgqc", grouped, keys.float()) * size**-0.5
    position = torch.arange(context - rows, context, device=keys.device).unsqueeze(-1)
    if causal:
        hidden = torch.arange(context, device=keys.device) > position
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(-1)
    mixed = torch.einsum("kgqc,cke->qkge", weights, values.float())
    return mixed.reshape(rows, heads, size).to(queries.dtype)
