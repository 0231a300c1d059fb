"""The counter-based uniforms: uniform, independent along every axis, and a function of the key."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from drafters.kernels.noise import uniforms


@pytest.fixture
def table() -> torch.Tensor:
    """[seed, round, column] for small consecutive keys, the worst case for a weak mix."""
    seeds, rounds = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    return uniforms(seeds.flatten(), rounds.flatten(), 40).view(40, 40, 40)


def test_uniform(table):
    """Kolmogorov-Smirnov on 64,000 values at 1e-3 (one fixed set of keys)."""
    assert (table >= 0).all()
    assert (table < 1).all()
    assert kstest(table.flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_uncorrelated(table, axis):
    """Correlation of 62,400 pairs has standard deviation 0.004: 4.5 of them is the bound."""
    left, right = table.narrow(axis, 0, 39).flatten(), table.narrow(axis, 1, 39).flatten()
    assert abs(torch.corrcoef(torch.stack((left, right)))[0, 1]) < 0.018


def test_a_request_draws_the_same_in_any_batch(table):
    alone = uniforms(torch.tensor([7]), torch.tensor([31]), 5)
    assert torch.equal(alone[0], table[7, 31, :5])


def test_known_values():
    """SplitMix64 of seed 0 starts with 0xE220A8397B1DCDAF (Vigna's reference code)."""
    from drafters.kernels.noise import _GOLDEN, _mix

    assert _mix(torch.tensor([_GOLDEN])).item() == 0xE220A8397B1DCDAF - 2**64
