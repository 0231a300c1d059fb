"""``silu_mul`` in Triton: one program per token and tile of 1024 features; fp32 inside."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def silu_mul(joint: Tensor) -> Tensor:
    """See ``drafters.kernels.silu_mul``."""
    tokens, features = joint.shape[0], joint.shape[1] // 2
    out = torch.empty((tokens, features), dtype=joint.dtype, device=joint.device)
    if tokens:
        _silu_mul[(tokens, triton.cdiv(features, BLOCK))](joint, out, features, BLOCK=BLOCK)
    return out


@triton.jit
def _silu_mul(joint, out, features, BLOCK: tl.constexpr):
    """One tile of one token."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = lane < features
    gate = tl.load(joint + token * 2 * features + lane, mask=used, other=0.0).to(tl.float32)
    up = tl.load(joint + token * 2 * features + features + lane, mask=used, other=0.0)
    small = tl.exp(-tl.abs(gate))  # never overflows
    sigmoid = tl.where(gate >= 0, 1.0, small) / (1.0 + small)
    made = gate * sigmoid * up.to(tl.float32)
    tl.store(out + token * features + lane, made.to(out.dtype.element_ty), mask=used)
