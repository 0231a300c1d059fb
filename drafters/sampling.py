"""Drawing tokens from distributions, with uniforms that belong to a request, not to a batch."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def request_uniforms(seed: int, name: str, count: int) -> np.ndarray:
    """``count`` uniforms in [0, 1) fixed by (seed, name) alone, whatever runs beside it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    return np.random.Generator(np.random.Philox(key)).random(count)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in fp32; temperature 0 gives a one-hot at the argmax."""
    if temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(logits.float() / temperature, dim=-1)


def sample(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw [n]: first token whose cumulative probability (rows [n, V]) exceeds u."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    threshold = uniforms.to(cumulative).unsqueeze(-1) * cumulative[..., -1:]
    return (
        torch.searchsorted(cumulative, threshold, right=True)
        .squeeze(-1)
        .clamp_max(probs.shape[-1] - 1)
    )
