"""Shapes to time ``verify`` at, and the work that no implementation can avoid."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor
from drafters.kernels.types import DraftLaw

CASES: dict[str, dict[str, Any]] = {
    f"R={requests} l={length} V={vocab} T={temperature}": {
        "requests": requests,
        "length": length,
        "vocab": vocab,
        "temperature": temperature,
    }
    for vocab in (49_152, 151_936)
    for requests, length, temperature in (
        (1, 7, 1.0),
        (16, 7, 1.0),
        (128, 0, 1.0),
        (128, 7, 0.0),
        (128, 7, 1.0),
    )
}

GAMMA, RANK = 7, 256


def inputs(
    device: torch.device, requests: int, length: int, vocab: int, temperature: float
) -> tuple[Any, ...]:
    """bf16 arguments whose drafts all fail at the first position: the most work there can be."""
    make: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    rows = requests * (length + 1)
    law = DraftLaw(
        torch.randn(requests, GAMMA, vocab, **make) * 3,
        torch.randn(requests, GAMMA, RANK, **make),
        torch.randn(vocab, RANK, **make) / 16,
        torch.full((requests, GAMMA), 17.0, device=device),
        torch.zeros(requests, GAMMA, device=device),
    )
    return (
        torch.randn(rows, vocab, **make) * 3,
        torch.arange(requests + 1, device=device, dtype=torch.int32) * (length + 1),
        torch.randint(vocab, (requests, GAMMA), device=device),
        law,
        torch.full((requests,), temperature, device=device),
        torch.rand(requests, GAMMA, device=device, dtype=torch.float64),
        torch.rand(requests, device=device, dtype=torch.float64),
    )


def floor(target: torch.Tensor, *arguments: Any) -> Floor:
    """The target's logits once; where drafts are sampled, one draft row per request and W2 once."""
    law, temperatures = arguments[2], arguments[3]
    rows_per_request = target.shape[0] // temperatures.shape[0]
    needed = target.numel() * target.itemsize
    if rows_per_request == 1 or not bool(temperatures.any()):
        return Floor(needed, 0)
    requests, _, vocab = law.logits.shape
    needed += requests * vocab * law.logits.itemsize + law.w2.numel() * law.w2.itemsize
    return Floor(needed, 2 * requests * law.w2.numel())
