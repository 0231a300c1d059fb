"""``draft_loss`` in plain torch: whole [n, V] probability tables, for reading."""

from __future__ import annotations

import torch
from torch import Tensor


def draft_loss(
    logits: Tensor,
    target_logits: Tensor,
    target_rows: Tensor,
    labels: Tensor,
    weights: Tensor,
    a_ce: float,
    a_l1: float,
    soft: bool,
) -> tuple[Tensor, Tensor]:
    """See ``drafters.kernels.draft_loss``."""
    log_p = torch.log_softmax(logits.float(), -1)
    p, q = log_p.exp(), torch.softmax(target_logits.float(), -1)[target_rows]
    goal = q if soft else torch.zeros_like(p).scatter_(1, labels.unsqueeze(1), 1.0)
    ce, l1 = -(goal * log_p).sum(-1), (p - q).abs().sum(-1)
    sign = (p - q).sign()
    gradient = a_ce * (p - goal) + a_l1 * p * (sign - (sign * p).sum(-1, keepdim=True))
    logits.copy_(gradient * weights.unsqueeze(1))
    return ce, l1
