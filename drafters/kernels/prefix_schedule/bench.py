"""Shapes to time ``prefix_schedule`` at; its floor in bytes is far below one launch."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor

CASES: dict[str, dict[str, Any]] = {
    f"R={requests} gamma={gamma}": {"requests": requests, "gamma": gamma}
    for requests, gamma in ((16, 7), (128, 7), (512, 7), (512, 15))
}


def inputs(device: torch.device, requests: int, gamma: int) -> tuple[Any, ...]:
    """Arguments of the operation: half of the tokens fit the budget."""
    return (
        torch.rand(requests, gamma, device=device),
        torch.full((requests,), gamma, device=device, dtype=torch.int64),
        torch.full((1,), requests * gamma // 2, device=device, dtype=torch.int64),
    )


def floor(confidences: torch.Tensor, *arguments: Any) -> Floor:
    """Confidences in, lengths and offsets out."""
    return Floor(confidences.numel() * confidences.itemsize + confidences.shape[0] * 24, 0)
