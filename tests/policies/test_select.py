"""Selection primitives against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.lookahead import first_shape, lookahead_budget
from policies.order import best_budget, early_stop_budget, kth_largest, sort_falling
from policies.select import draft_counts, prefix_above, survivals, top_budget

QUICK = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 1 << 30)


def batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences with ties, drafted lengths, and a cost curve that may have stairs."""
    rng = np.random.default_rng(seed)
    rows, gamma = int(rng.integers(1, 9)), int(rng.integers(1, 8))
    confidences = rng.choice([0.0, 0.25, 0.5, 0.9, 1.0], (rows, gamma))
    drafted = rng.integers(0, gamma + 1, rows)
    curve = 1.0 + np.cumsum(rng.random(drafted.sum() + 1) * rng.integers(0, 2, drafted.sum() + 1))
    return confidences, drafted, curve


@QUICK
@given(seed=seeds, kind=st.sampled_from([np.float32, np.float64]))
def test_survivals_are_masked_cumulative_products(seed: int, kind: type) -> None:
    """numpy's cumprod, with 0 beyond what was drafted, for both float types."""
    confidences, drafted, _ = batch(seed)
    confidences = confidences.astype(kind)
    reference = np.cumprod(confidences.astype(np.float64), axis=1)
    reference[np.arange(confidences.shape[1]) >= drafted[:, None]] = 0.0
    np.testing.assert_allclose(survivals(confidences, drafted), reference)
    assert draft_counts(drafted) == ((drafted > 0).sum(), drafted.max(), drafted.sum())


@QUICK
@given(seed=seeds)
def test_top_budget_is_the_sorted_prefix(seed: int) -> None:
    """Every budget admits what a full sort by (survival, position, row) admits."""
    confidences, drafted, _ = batch(seed)
    survival = survivals(confidences, drafted)
    slots = [(-survival[r, j], j, r) for r in range(len(drafted)) for j in range(drafted[r])]
    slots.sort()
    for budget in range(len(slots) + 2):
        expected = np.zeros(len(drafted), dtype=int)
        for _, _, row in slots[:budget]:
            expected[row] += 1
        np.testing.assert_array_equal(top_budget(survival, drafted, budget), expected)


@QUICK
@given(seed=seeds)
def test_budgets_match_their_definitions(seed: int) -> None:
    """Global argmax (smallest on ties) and first descent, by trying every B."""
    confidences, drafted, curve = batch(seed)
    survival = survivals(confidences, drafted)
    best_first = np.sort(survival, axis=None)[::-1][: drafted.sum()]
    rates = (3.0 + np.concatenate(([0.0], np.cumsum(best_first)))) / (0.5 + curve)
    budget, rate = best_budget(survival, 3.0, 0.5, curve)
    assert rate == pytest.approx(rates.max())
    assert rates[budget] == pytest.approx(rates.max())
    stop, _ = early_stop_budget(survival, 3.0, 0.5, curve)
    falls = np.flatnonzero(np.diff(rates) <= 1e-15)
    if not np.any(np.abs(np.diff(rates)) < 1e-12):  # rounding decides exact ties
        assert budget == int(np.argmax(rates))
        assert stop == (int(falls[0]) if falls.size else len(rates) - 1)


@QUICK
@given(
    seed=seeds,
    rows=st.integers(5, 300),
    power=st.sampled_from([0.05, 1.0, 20.0, 400.0]),
    grid=st.sampled_from([0, 3, 50]),
    stair=st.sampled_from([1, 8, 100]),
    price=st.sampled_from([0.0, 1e-4, 1e-2]),
)
def test_large_batches_agree_with_a_full_sort(
    seed: int, rows: int, power: float, grid: int, stair: int, price: float
) -> None:
    """Values crowded at 0 or 1, tied on a grid, smooth and stepped costs: the same answers."""
    rng = np.random.default_rng(seed)
    values = rng.random((rows, 7)) ** power
    values = np.round(values * grid) / grid if grid else values
    falling = np.sort(values, axis=None)[::-1]
    ordered = values.ravel().copy()
    sort_falling(ordered)
    np.testing.assert_array_equal(ordered, falling)
    for k in (1, rows, 7 * rows):
        assert kth_largest(values, k) == falling[k - 1]
    curve = 1.0 + price * (np.arange(rng.integers(1, 7 * rows + 2)) // stair)
    most = curve.size - 1
    rates = (rows + np.concatenate(([0.0], np.cumsum(falling[:most])))) / (0.1 + curve)
    budget, rate = best_budget(values, float(rows), 0.1, curve)
    assert rate == pytest.approx(rates.max(), rel=1e-12)
    assert rates[budget] == pytest.approx(rates.max(), rel=1e-12)
    stop, _ = early_stop_budget(values, float(rows), 0.1, curve)
    rises = np.diff(rates) / rates[:-1]
    assert np.all(rises[:stop] > -1e-12)
    assert stop == most or rises[stop] < 1e-12


def test_threshold_prefixes_by_hand() -> None:
    """Survivals 0.9, 0.45, 0.4 pass a bar of 0.45 twice; 0.5 fails a conditional 0.6."""
    confidences, drafted = np.array([[0.9, 0.5, 0.9]] * 2), np.array([3, 1])
    assert prefix_above(confidences, drafted, 0.45, True).tolist() == [2, 1]
    assert prefix_above(confidences, drafted, 0.6, False).tolist() == [1, 1]
    assert prefix_above(confidences, drafted, 0.0, True).tolist() == [3, 1]


@QUICK
@given(seed=seeds)
def test_lookahead_with_the_true_shape_finds_the_argmax(seed: int) -> None:
    """When the remembered shape is this step's own, replanning is the global argmax."""
    rng = np.random.default_rng(seed)
    rows, gamma = 8, 7
    shape = np.sort(rng.random(8 * gamma))[::-1].copy()
    falling = shape.copy()  # one point of the shape per rank
    curve = 1.0 + np.cumsum(rng.random(rows * gamma + 1) * (rng.random(rows * gamma + 1) < 0.3))
    rates = (8.0 + np.concatenate(([0.0], np.cumsum(falling)))) / (0.1 + curve)
    budget = lookahead_budget(falling, 8.0, 0.1, curve, shape, rows)
    assert rates[budget] == pytest.approx(rates.max())


def test_lookahead_climbs_a_stair_that_early_stop_does_not() -> None:
    """A stair of 8 tokens costs 10 %; each draft adds 6 %: the first alone never pays."""
    values, curve = np.full(8, 0.5), np.array([1.0] + [1.1] * 8)
    assert early_stop_budget(values[None, :], 8.0, 0.0, curve)[0] == 0
    budget = lookahead_budget(values, 8.0, 0.0, curve, first_shape(1) * 0 + 0.5, 8)
    assert budget == 8
