"""Budgeted prefix selection against its definition; integers, so compared exactly.

Regimes and what each catches: budgets of 0, some and more than there are (bounds), requests that
drafted nothing, equal and zero survivals (tie-break), gamma = 0, one request, more requests than a
tile. The captured-graph use is a budget that changes in place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from drafters.kernels.prefix_schedule import reference
from drafters.kernels.prefix_schedule import triton as kernel

RUNS = {"torch": reference.prefix_schedule, "triton": kernel.prefix_schedule}


def definition(confidences: Tensor, drafted: Tensor, budget: int) -> list[int]:
    """Sort (-survival, position, row) in plain Python and count each row's winners."""
    survival = np.multiply.accumulate(confidences.float().cpu().numpy(), axis=1, dtype=np.float32)
    tokens = [
        (-float(survival[r, j]), j, r)
        for r in range(confidences.shape[0])
        for j in range(int(drafted[r]))
    ]
    lengths = [0] * confidences.shape[0]
    for _, _, r in sorted(tokens)[:budget]:
        lengths[r] += 1
    return lengths


def check(run: str, confidences: Tensor, drafted: Tensor, budget: int, device: torch.device):
    """Run on ``device``, compare with the definition and check the offsets."""
    b = torch.tensor([budget], device=device)
    lengths, cu_rows = RUNS[run](confidences.to(device), drafted.to(device), b)
    assert lengths.tolist() == definition(confidences, drafted, budget)
    assert cu_rows.tolist() == [0, *(lengths + 1).cumsum(0).tolist()]


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("requests", "gamma"), [(1, 1), (1, 7), (13, 5)])
def test_selection(run, dtype, requests, gamma, device):
    g = torch.Generator().manual_seed(requests)
    confidences = torch.rand((requests, gamma), generator=g).to(dtype)
    drafted = torch.randint(gamma + 1, (requests,), generator=g)
    for budget in (0, 1, requests * gamma // 3, int(drafted.sum()), requests * gamma + 9):
        check(run, confidences, drafted, budget, device)


@pytest.mark.parametrize("run", list(RUNS))
def test_more_requests_than_a_tile(run, device):
    confidences = torch.rand((140, 5), generator=torch.Generator().manual_seed(0))
    check(run, confidences, torch.arange(140) % 6, 200, device)


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("value", [-0.0, 0.0, 0.5, 1.0])
def test_ties_go_by_position_then_row(run, value, device):
    """Equal confidences 1: the budget fills position 0 of all rows, then position 1, ..."""
    confidences = torch.full((5, 4), value)
    for budget in (3, 5, 7, 19):
        check(run, confidences, torch.full((5,), 4), budget, device)


@pytest.mark.parametrize("run", list(RUNS))
def test_seven_of_ones(run, device):
    ones, all_drafted = torch.ones((5, 4), device=device), torch.full((5,), 4, device=device)
    lengths = RUNS[run](ones, all_drafted, torch.tensor([7], device=device)).lengths
    assert lengths.tolist() == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize(("requests", "gamma"), [(0, 4), (3, 0)])
def test_nothing_to_schedule(run, requests, gamma, device):
    check(run, torch.zeros((requests, gamma)), torch.zeros(requests, dtype=torch.int64), 5, device)


@pytest.mark.parametrize("run", list(RUNS))
def test_negative_zero_ranks_as_zero(run, device):
    confidences = torch.tensor([[0.5, -0.0], [0.0, 0.3], [-0.0, 1.0]])
    for budget in (2, 4, 6):
        check(run, confidences, torch.full((3,), 2), budget, device)
