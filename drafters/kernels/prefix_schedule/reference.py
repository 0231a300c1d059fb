"""``prefix_schedule`` in plain torch: one stable sort."""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.kernels.types import Schedule


def prefix_schedule(confidences: Tensor, drafted: Tensor, budget: Tensor) -> Schedule:
    """See ``drafters.kernels.prefix_schedule``."""
    requests, gamma = confidences.shape
    exists = torch.arange(gamma, device=drafted.device) < drafted.unsqueeze(-1)
    by_position = torch.where(exists, survivals(confidences), -1.0).T.flatten()
    order = by_position.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    chosen = (rank < budget).view(gamma, requests).T & exists
    lengths = chosen.sum(-1)
    return Schedule(lengths, cumulative_rows(lengths))


def survivals(confidences: Tensor) -> Tensor:
    """Running products [R, gamma] in fp32, multiplied in order: ``cumprod`` rounds as it likes."""
    steps, survival = [], confidences.new_ones(confidences.shape[0], dtype=torch.float32)
    for column in confidences.float().unbind(-1):
        survival = survival * column
        steps.append(survival)
    return torch.stack(steps, -1) if steps else confidences.float()


def cumulative_rows(lengths: Tensor) -> Tensor:
    """First flattened row of each request, [R + 1]: an anchor and lengths[r] drafts each."""
    cu_rows = lengths.new_zeros(lengths.shape[0] + 1)
    torch.cumsum(lengths + 1, 0, out=cu_rows[1:])
    return cu_rows
