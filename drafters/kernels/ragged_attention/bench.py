"""Shapes to time ``ragged_attention`` at, and the work that no implementation can avoid."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor

CASES: dict[str, dict[str, Any]] = {
    f"{name} R={requests} q={rows} context={context}": {
        "heads": heads,
        "requests": requests,
        "rows": rows,
        "context": context,
    }
    for name, heads in (("smollm2-135m", (9, 3, 64)), ("qwen3-8b", (32, 8, 128)))
    for requests, rows, context in ((1, 8, 1024), (1, 8, 16_384), (128, 8, 1024), (128, 1, 1024))
}
CASES["qwen3-8b R=128 q=8 context=1024 fp32"] = {
    **CASES["qwen3-8b R=128 q=8 context=1024"],
    "dtype": torch.float32,
}

BLOCK_SIZE = 16


def inputs(
    device: torch.device,
    heads: tuple[int, int, int],
    requests: int,
    rows: int,
    context: int,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Any, ...]:
    """Arguments with a shuffled cache, every request of the same length."""
    query_heads, kv_heads, size = heads
    make: dict[str, Any] = {"device": device, "dtype": dtype}
    blocks = context // BLOCK_SIZE
    cache = requests * blocks, BLOCK_SIZE, kv_heads, size
    return (
        torch.randn(requests * rows, query_heads, size, **make),
        torch.randn(*cache, **make),
        torch.randn(*cache, **make),
        torch.randperm(requests * blocks, device=device).view(requests, blocks),
        torch.arange(requests + 1, device=device) * rows,
        torch.full((requests,), context, device=device),
        rows,
    )


def floor(queries: torch.Tensor, keys: torch.Tensor, *arguments: Any) -> Floor:
    """Keys and values once, queries and outputs once; two products per query and key."""
    contexts, rows = arguments[3], arguments[4]
    tokens = int(contexts.sum())
    cache = 2 * tokens * keys.shape[2] * keys.shape[3] * keys.itemsize
    products = 4 * tokens * rows * queries.shape[1] * queries.shape[2]
    return Floor(cache + 2 * queries.numel() * queries.itemsize, products)
