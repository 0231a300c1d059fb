"""Shapes to time ``rotate_store`` at, and the work that no implementation can avoid."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor

CASES: dict[str, dict[str, Any]] = {
    f"{name} T={tokens}": {"heads": heads, "tokens": tokens}
    for name, heads in (("smollm2-135m", (9, 3, 64)), ("qwen3-8b", (32, 8, 128)))
    for tokens in (8, 1024)
}

BLOCK_SIZE = 16


def inputs(device: torch.device, heads: tuple[int, int, int], tokens: int) -> tuple[Any, ...]:
    """bf16 arguments: slices of one projection, and cache rows in any order."""
    query_heads, kv_heads, size = heads
    make: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    joined = torch.randn(tokens, query_heads + 2 * kv_heads, size, **make)
    blocks = 1 + tokens // BLOCK_SIZE
    angles = torch.rand(tokens, size // 2, device=device).repeat(1, 2)
    return (
        *joined.split((query_heads, kv_heads, kv_heads), 1),
        angles.cos(),
        angles.sin(),
        torch.randperm(blocks * BLOCK_SIZE, device=device)[:tokens],
        torch.zeros(blocks, BLOCK_SIZE, kv_heads, size, **make),
        torch.zeros(blocks, BLOCK_SIZE, kv_heads, size, **make),
    )


def floor(queries: torch.Tensor, keys: torch.Tensor, *arguments: Any) -> Floor:
    """Queries, keys and values in and out, half of the angles in."""
    moved = queries.numel() + 2 * keys.numel()
    return Floor(2 * moved * queries.itemsize + arguments[1].numel() * 4, 0)
