"""Shapes to time ``silu_mul`` at, and the work that no implementation can avoid."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor

CASES: dict[str, dict[str, Any]] = {
    f"f={features} T={tokens}": {"features": features, "tokens": tokens}
    for features, tokens in ((1536, 8), (1536, 1024), (12288, 1024))
}


def inputs(device: torch.device, features: int, tokens: int) -> tuple[Any, ...]:
    """bf16 arguments."""
    return (torch.randn(tokens, 2 * features, device=device, dtype=torch.bfloat16),)


def floor(joint: torch.Tensor) -> Floor:
    """Both halves in, one out."""
    return Floor(joint.numel() * joint.itemsize * 3 // 2, 0)
