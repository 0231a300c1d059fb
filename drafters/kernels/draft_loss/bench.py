"""Shapes to time ``draft_loss`` at, and the bytes that no implementation can avoid."""

from __future__ import annotations

from typing import Any

import torch

from drafters.kernels.measure import Floor

CASES: dict[str, dict[str, Any]] = {
    f"n={rows} V={vocab}": {"rows": rows, "vocab": vocab}
    for rows, vocab in ((1024, 49_152), (4096, 49_152), (2048, 151_936))
}


def inputs(device: torch.device, rows: int, vocab: int) -> tuple[Any, ...]:
    """bf16 logits; four draft rows to each of the target's, as packed anchors have them."""
    make: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    told = max(1, rows // 4)
    return (
        torch.randn(rows, vocab, **make) * 3,
        torch.randn(told, vocab, **make) * 3,
        torch.arange(rows, device=device) % told,
        torch.randint(vocab, (rows,), device=device),
        torch.rand(rows, device=device),
        0.1,
        0.9,
        False,
    )


def floor(logits: torch.Tensor, target_logits: torch.Tensor, *arguments: Any) -> Floor:
    """Draft logits in, their gradient out, and each of the target's rows once."""
    moved = 2 * logits.numel() * logits.itemsize
    return Floor(moved + target_logits.numel() * target_logits.itemsize, 0)
