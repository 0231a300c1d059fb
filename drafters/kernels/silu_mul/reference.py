"""``silu_mul`` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(joint: Tensor) -> Tensor:
    """See ``drafters.kernels.silu_mul``."""
    gate, up = joint.chunk(2, -1)
    return F.silu(gate) * up
