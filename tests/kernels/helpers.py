"""Inputs and comparisons that the kernel tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from drafters.kernels.types import DraftLaw, SequentialHead

RATIO = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""Largest error, RMS over the reference's RMS: fp32 sums in another order; one bf16 rounding."""

BOUNDARY = 1e-5
"""How far a uniform may lie outside its token's interval of the fp64 CDF: fp32 rounding."""


def assert_close(name: str, reference: Tensor, got: Tensor, ratio: float) -> None:
    """Relative RMS error below ``ratio`` and nothing non-finite."""
    assert torch.isfinite(got).all(), f"{name}: not finite"
    error = (got.double() - reference.double()).pow(2).mean().sqrt()
    scale = reference.double().pow(2).mean().sqrt() + 1e-12
    assert error / scale < ratio, f"{name}: relative error {error / scale:.2e} over {ratio:.0e}"


def assert_drawn(probs: Tensor, uniforms: Tensor, tokens: Tensor) -> None:
    """Each token's interval of the CDF holds its uniform, up to BOUNDARY; its weight is positive.

    ``probs`` [n, V] need no normalisation. Comparing tokens directly would fail where a uniform
    lies within rounding of a boundary.
    """
    weights = probs.double()
    cdf = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
    index, u = tokens.unsqueeze(-1), uniforms.double()
    upper = cdf.gather(-1, index).squeeze(-1)
    lower = upper - weights.gather(-1, index).squeeze(-1) / weights.sum(-1)
    assert (weights.gather(-1, index) > 0).all(), "a token of probability 0 was drawn"
    assert ((lower - BOUNDARY <= u) & (u < upper + BOUNDARY)).all()


def random_logits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Logits with the spread of a language model's (standard deviation 3)."""
    return (torch.randn(shape, generator=generator) * 3).to(dtype)


def random_head(
    vocab: int, rank: int, hidden: int, dtype: torch.dtype, generator: torch.Generator
) -> SequentialHead:
    """Transition bias of standard deviation about 1, confidences spread over (0, 1)."""
    w1, w2 = torch.randn((2, vocab, rank), generator=generator)
    weight = torch.randn(hidden + rank, generator=generator) / (hidden + rank) ** 0.5
    return SequentialHead(
        w1.to(dtype), (w2 / rank**0.5).to(dtype), weight.to(dtype), torch.tensor([0.1]).to(dtype)
    )


def move(value: object, device: torch.device) -> object:
    """Tensors inside NamedTuples and lists put on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (SequentialHead, DraftLaw)):
        return type(value)(*(move(part, device) for part in value))
    return value


def far_along(near: Tensor, axis: int = 0) -> Tensor:
    """A copy of ``near`` in which the end of ``axis`` lies beyond what 32 bits can address.

    On the CPU the untouched pages of such an array cost no memory.
    """
    moved = near.movedim(axis, 0)
    size, width = moved.shape[0], moved[0].numel()
    stride = 2**31 // (size - 1) + 16
    count = (size - 1) * stride + width
    if near.device.type == "cuda":
        flat = torch.zeros(count, dtype=near.dtype, device=near.device)
    else:
        kind = np.uint16 if near.dtype == torch.bfloat16 else np.uint32
        flat = torch.from_numpy(np.zeros(count, kind)).view(near.dtype)
    far = flat.as_strided((size, width), (stride, 1)).unflatten(1, moved.shape[1:])
    return far.movedim(0, axis).copy_(near)
