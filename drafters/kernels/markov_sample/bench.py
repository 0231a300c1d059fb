"""Shapes to time ``markov_sample`` at, and the work that no implementation can avoid."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor
from drafters.kernels.types import SequentialHead

SHAPES = [
    (16, 49_152, torch.float32),
    (1, 49_152, torch.bfloat16),
    (16, 49_152, torch.bfloat16),
    (128, 49_152, torch.bfloat16),
    (1, 151_936, torch.bfloat16),
    (16, 151_936, torch.bfloat16),
    (128, 151_936, torch.bfloat16),
]
CASES: dict[str, dict[str, Any]] = {
    f"R={requests} V={vocab} {str(dtype)[6:]}": {
        "requests": requests,
        "vocab": vocab,
        "dtype": dtype,
    }
    for requests, vocab, dtype in SHAPES
}

GAMMA, RANK, HIDDEN = 7, 256, 2560


def inputs(device: torch.device, requests: int, vocab: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of the operation, half of the requests greedy."""
    make: dict[str, Any] = {"device": device, "dtype": dtype}
    head = SequentialHead(
        torch.randn(vocab, RANK, **make),
        torch.randn(vocab, RANK, **make) / 16,
        torch.randn(HIDDEN + RANK, **make) / 50,
        torch.zeros(1, **make),
    )
    return (
        torch.randn(requests, GAMMA, vocab, **make) * 3,
        torch.randint(vocab, (requests,), device=device),
        torch.randn(requests, GAMMA, HIDDEN, **make),
        head,
        torch.arange(requests, device=device).remainder(2).float(),
        torch.rand(requests, GAMMA, device=device, dtype=torch.float64),
    )


def floor(logits: torch.Tensor, *arguments: Any) -> Floor:
    """Per position: the base logits and W2 once, and the product of latents with W2."""
    requests, gamma, vocab = logits.shape
    w2 = arguments[2].w2
    return Floor(
        gamma * (requests * vocab * logits.itemsize + w2.numel() * w2.itemsize),
        2 * gamma * requests * w2.numel(),
    )
