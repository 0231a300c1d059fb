"""``rotate_store`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_store(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """See ``drafters.kernels.rotate_store``."""
    key_cache.flatten(0, 1)[rows] = _rotated(keys, cos, sin)
    value_cache.flatten(0, 1)[rows] = values
    return _rotated(queries, cos, sin)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, heads, e], rounded once."""
    left, right = heads.float().chunk(2, -1)
    c, s = (table[:, None, : heads.shape[-1] // 2] for table in (cos, sin))
    return torch.cat((left * c - right * s, right * c + left * s), -1).to(heads.dtype)
