"""Best laws of a draft position against linear programming and cases that can be solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from drafters.laws import ceilings, markov_law, overlap, parallel_law


def some_laws(count: int, size: int, seed: int, sharpness: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(count, size, generator=generator), -1)


def best_by_program(laws: Tensor) -> float:
    """max over q of the mean of sum_v min(q_v, p_iv), as a linear program in q and the minima."""
    count, size = laws.shape
    p = laws.double().numpy()
    goal = np.concatenate([np.zeros(size), -np.ones(count * size) / count])
    q_limits = np.kron(np.ones((count, 1)), -np.eye(size))
    limits = np.hstack([q_limits, np.eye(count * size)])
    total = np.concatenate([np.ones(size), np.zeros(count * size)])[None]
    bounds = [(0, None)] * size + [(0, x) for x in p.ravel()]
    found = linprog(goal, limits, np.zeros(count * size), total, [1.0], bounds)
    assert found.success
    return -float(found.fun)


@pytest.mark.parametrize(("count", "size", "seed"), [(2, 5, 0), (5, 4, 1), (8, 12, 2), (7, 30, 3)])
def test_the_parallel_law_is_the_best_there_is(count: int, size: int, seed: int) -> None:
    laws = some_laws(count, size, seed)
    q = parallel_law(laws)
    assert float(q.sum()) == pytest.approx(1, abs=1e-4)
    assert float(overlap(q, laws).mean()) == pytest.approx(best_by_program(laws), abs=1e-4)
    assert float(overlap(laws.mean(0), laws).mean()) <= float(overlap(q, laws).mean()) + 1e-6


def test_a_law_that_never_changes_is_met_wholly() -> None:
    law = some_laws(1, 9, 0)
    assert float(overlap(parallel_law(law.expand(6, -1)), law).mean()) == pytest.approx(1, abs=1e-4)


def test_of_certain_tokens_the_most_frequent_is_drafted() -> None:
    laws = torch.eye(4)[[0, 0, 0, 1, 1, 2]]
    q = parallel_law(laws)
    assert float(overlap(q, laws).mean()) == pytest.approx(3 / 6, abs=1e-4)


def test_a_markov_head_meets_laws_that_its_table_makes() -> None:
    generator = torch.Generator().manual_seed(0)
    base, shifts = torch.randn(20, generator=generator), torch.randn(32, 20, generator=generator)
    laws = torch.softmax(base + 1.3 * shifts, -1)
    made, share = markov_law(laws, shifts)
    assert float(share) == pytest.approx(1.3, abs=0.05)
    assert float(overlap(torch.softmax(made + share * shifts, -1), laws).min()) > 0.97
    assert float(overlap(parallel_law(laws), laws).mean()) < 0.7


def test_a_table_of_nothing_leaves_the_parallel_law() -> None:
    laws = some_laws(24, 16, 4)
    made, share = markov_law(laws, torch.zeros_like(laws))
    reached = overlap(torch.softmax(made + share * 0, -1), laws).mean()
    best = overlap(parallel_law(laws), laws).mean()
    assert float(reached) == pytest.approx(float(best), abs=5e-3)


def test_the_ceiling_lies_between_what_is_fitted_and_what_is_not() -> None:
    """8 samples of a mixture of four laws, whose best single law is known from all four; the means
    of 60 trials stand further than three standard errors from it, on the right sides."""
    kinds = some_laws(4, 12, 5, 2.5)
    truth = float(overlap(parallel_law(kinds), kinds).mean())
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(60):
        laws = kinds[torch.randint(4, (8,), generator=generator)]
        bounds = ceilings(laws, torch.zeros_like(laws))
        found.append((bounds["parallel_low"], bounds["parallel_high"]))
    low, high = np.array(found).T
    margins = np.stack((truth - low, high - truth), 1)
    assert (margins.mean(0) > 3 * margins.std(0, ddof=1) / len(found) ** 0.5).all()
