"""What every registered policy owes its engine, on random states and after random histories."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base import Policy, VerifyState
from policies.cost import CostTable
from policies.harness import check_plan
from policies.registry import create, get, names, parse
from tests.policies.states import (
    cliff_state,
    gammas,
    history,
    lag_rule,
    make_state,
    outcome_of,
    row_counts,
    seeds,
)

EVERY = pytest.mark.parametrize("name", names())
EXAMPLES = settings(max_examples=25, deadline=None)
ARRAYS = [k for k, v in make_state(3, 2, 0)._asdict().items() if isinstance(v, np.ndarray)]


def lived(name: str, gamma: int, seed: int, **parameters: object) -> Policy:
    """A policy that has seen up to 7 steps."""
    policy = create(name, gamma, **parameters)
    history(policy, gamma, seed, steps=seed % 8, rows=8)
    return policy


@EVERY
@EXAMPLES
@given(gamma=gammas, rows=row_counts, seed=seeds)
def test_plans_keep_their_contract(name: str, gamma: int, rows: int, seed: int) -> None:
    """Lengths within 0..drafted, drafts within 0..gamma, plain only when all is verified."""
    policy = lived(name, gamma, seed)
    state = lag_rule(policy, make_state(gamma, rows, seed))
    plan = policy.plan(state)
    check_plan(policy, state, plan)
    assert np.issubdtype(plan.lengths.dtype, np.integer)
    if plan.draft is not None:
        assert plan.draft.shape == (rows,)
        assert ((plan.draft >= 0) & (plan.draft <= gamma)).all()
    first = gamma if policy.first_draft is None else policy.first_draft
    assert 0 <= first <= gamma


@EVERY
@EXAMPLES
@given(gamma=gammas, rows=row_counts, seed=seeds)
def test_state_is_not_written_to(name: str, gamma: int, rows: int, seed: int) -> None:
    """Plans are made from read-only arrays, which keep their values."""
    policy = lived(name, gamma, seed)
    state = lag_rule(policy, make_state(gamma, rows, seed))
    before = {field: getattr(state, field).copy() for field in ARRAYS}
    for field in ARRAYS:
        getattr(state, field).setflags(write=False)
    plan = policy.plan(state)
    assert not any(np.shares_memory(plan.lengths, getattr(state, field)) for field in ARRAYS)
    policy.observe(outcome_of(state, plan.lengths, seed))
    for field in ARRAYS:
        np.testing.assert_array_equal(getattr(state, field), before[field])


@EVERY
@EXAMPLES
@given(gamma=gammas, seed=seeds)
def test_same_history_same_plans(name: str, gamma: int, seed: int) -> None:
    """Two objects with the same past answer alike: nothing is random, nothing is shared."""
    first, second = lived(name, gamma, seed), lived(name, gamma, seed)
    for step in range(3):
        state = lag_rule(first, make_state(gamma, 6, seed + step))
        mine, yours = first.plan(state), second.plan(state)
        np.testing.assert_array_equal(mine.lengths, yours.lengths)
        np.testing.assert_array_equal(mine.draft, yours.draft)
        assert mine.adaptive == yours.adaptive


@EVERY
@EXAMPLES
@given(gamma=gammas, rows=st.integers(1, 12), seed=seeds)
def test_order_of_rows_does_not_matter(name: str, gamma: int, rows: int, seed: int) -> None:
    """A permuted batch gets the permuted plan; the oracle's survivals tie, so only its budget."""
    state = make_state(gamma, rows, seed)
    order = np.random.default_rng(seed).permutation(rows)
    shuffled = state._replace(**{field: getattr(state, field)[order] for field in ARRAYS})
    plans = []
    for version in (state, shuffled):
        policy = lived(name, gamma, seed)
        plans.append(policy.plan(lag_rule(policy, version)).lengths)
    assert plans[0].sum() == plans[1].sum()
    if name != "oracle":
        np.testing.assert_array_equal(plans[0][order], plans[1])


SIZED = [n for n in names() if create(n, 7).size(make_state(7, 3, 0)) is not None]


@pytest.mark.parametrize("name", SIZED)
@EXAMPLES
@given(gamma=gammas, rows=st.integers(1, 12), seed=seeds)
def test_a_size_comes_before_the_drafts(name: str, gamma: int, rows: int, seed: int) -> None:
    """What is sized while drafts are being made is what ``plan`` would have sized: no size reads
    current values, and asking for it leaves no mark."""
    policy = lived(name, gamma, seed)
    state = make_state(gamma, rows, seed)
    budget = policy.size(state._replace(current=np.full((rows, gamma), np.nan)))
    assert budget is not None
    assert policy.lag >= 1
    plans = [policy.plan(s) for s in (state, state._replace(budget=budget))]
    np.testing.assert_array_equal(plans[0].lengths, plans[1].lengths)
    assert plans[0].adaptive == plans[1].adaptive
    assert plans[0].lengths.sum() == min(budget, state.drafted.sum()) or not plans[0].adaptive


def test_every_policy_that_sizes_by_the_past_says_so_ahead() -> None:
    """All with a lag but ``ascend``, which counts once in 16 steps."""
    assert sorted(SIZED) == sorted({n for n in names() if create(n, 7).lag} - {"ascend"})


BLIND = [n for n in names() if not get(n).needs_confidences]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BLIND)
@EXAMPLES
@given(gamma=gammas, rows=row_counts, seed=seeds)
def test_who_needs_no_confidences_reads_none(name: str, gamma: int, rows: int, seed: int) -> None:
    state = make_state(gamma, rows, seed)
    unknown = np.full((rows, gamma), np.nan)
    hidden = state._replace(current=unknown, lagged=unknown)
    plans = [lived(name, gamma, seed).plan(s) for s in (state, hidden)]
    np.testing.assert_array_equal(plans[0].lengths, plans[1].lengths)
    np.testing.assert_array_equal(plans[0].draft, plans[1].draft)


def test_every_policy_that_reads_no_confidences_says_so() -> None:
    """Of the others each plans otherwise somewhere when it is shown other confidences."""
    for name in [n for n in names() if n not in BLIND and not get(n).analysis_only]:  # type: ignore[attr-defined]
        differs = False
        for seed in range(60):
            state = make_state(7, 6, seed)
            turned = state._replace(current=1 - state.current, lagged=1 - state.lagged)
            plans = [lived(name, 7, seed).plan(s) for s in (state, turned)]
            differs |= not np.array_equal(plans[0].lengths, plans[1].lengths)
            differs |= not np.array_equal(plans[0].draft, plans[1].draft)
        assert differs, name


@EVERY
@EXAMPLES
@given(gamma=gammas, rows=row_counts, seed=seeds)
def test_no_other_draft_lengths_than_announced(name: str, gamma: int, rows: int, seed: int) -> None:
    policy = lived(name, gamma, seed)
    allowed = {0, *((gamma,) if policy.draft_lengths is None else policy.draft_lengths)}
    assert max(allowed) <= gamma
    for step in range(6):
        state = make_state(gamma, rows, seed + step)
        plan = policy.plan(state)
        wanted = [gamma] if plan.draft is None else plan.draft.tolist()
        first = gamma if policy.first_draft is None else policy.first_draft
        assert {first, *wanted} <= allowed
        policy.observe(outcome_of(state, plan.lengths, seed + step))


THRIFTY = [n for n in names() if not get(n).needs_cost]  # type: ignore[attr-defined]


def dearer(cost: CostTable) -> CostTable:
    """The same table where drafting costs thirty times as much, and a token twenty times."""
    first = cost.verify_s[0]
    return replace(cost, verify_s=first + 20 * (cost.verify_s - first), draft_s=30 * cost.draft_s)


@pytest.mark.parametrize("name", THRIFTY)
@EXAMPLES
@given(gamma=gammas, rows=row_counts, seed=seeds)
def test_who_needs_no_cost_reads_none(name: str, gamma: int, rows: int, seed: int) -> None:
    state = make_state(gamma, rows, seed)
    plans = [lived(name, gamma, seed).plan(s) for s in (state, state._replace(cost=None))]
    np.testing.assert_array_equal(plans[0].lengths, plans[1].lengths)
    np.testing.assert_array_equal(plans[0].draft, plans[1].draft)


def test_every_policy_that_reads_no_cost_says_so() -> None:
    """Of the others each plans otherwise somewhere when steps get dearer."""
    for name in [n for n in names() if n not in THRIFTY and not get(n).analysis_only]:  # type: ignore[attr-defined]
        differs = False
        for seed in range(60):
            state = make_state(7, 6, seed)
            turned = state._replace(cost=dearer(state.cost))
            plans = [lived(name, 7, seed).plan(s) for s in (state, turned)]
            differs |= not np.array_equal(plans[0].lengths, plans[1].lengths)
            differs |= not np.array_equal(plans[0].draft, plans[1].draft)
        assert differs, name


def change_later(state: VerifyState, row: int, position: int) -> VerifyState:
    """The same step with the confidences of ``row`` after its first ``position`` ones turned over.

    c[j] is known before token j is drawn, so these are what depends on token ``position`` or a
    later one: had another token been drawn there, they would have been others.
    """
    current = state.current.copy()
    later = np.arange(current.shape[1]) >= position
    later &= np.arange(current.shape[1]) < state.drafted[row]
    current[row, later] = 1.0 - current[row, later]
    return state._replace(current=current)


def admissions_that_move(name: str, gamma: int, seed: int, **parameters: object) -> bool:
    """Whether later confidences change the admission of an earlier draft of the same request."""
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([1, 1, 2, 3]))
    state = cliff_state(gamma, rows, seed)
    row, position = int(rng.integers(rows)), int(rng.integers(1, gamma))
    admitted = []
    for version in (state, change_later(state, row, position)):
        policy = lived(name, gamma, seed, **parameters)
        lengths = policy.plan(lag_rule(policy, version)).lengths
        admitted.append(min(int(lengths[row]), position))
    return admitted[0] != admitted[1]


HONEST = [n for n in names() if not create(n, 7).anticipating]


@pytest.mark.parametrize("spec", [*HONEST, "goodput:plain_path=false"])
@settings(max_examples=60, deadline=None)
@given(gamma=gammas, seed=seeds)
def test_later_tokens_do_not_move_admission(spec: str, gamma: int, seed: int) -> None:
    """Draft j of a request is verified or not whatever token j and the ones after it are.

    With c[1..j] of a request and everything else fixed, c[j+1..] (which the drawn tokens j and
    later decide) must not change min(length, j). For policies that claim non-anticipation.
    """
    name, parameters = parse(spec)
    assert not admissions_that_move(name, gamma, seed, **parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hardware-aware", {"lag": 0}),
        ("vllm", {"lag": 0}),
        ("sglang", {"lag": 0}),
        ("tensorrt-llm", {"lag": 0}),
        ("dcut", {}),
        ("adaspec", {}),
    ],
)
def test_the_property_catches_anticipation(name: str, parameters: dict[str, int]) -> None:
    """Schedulers that search the whole current curve do fail it, and say so about themselves."""
    assert create(name, 7, **parameters).anticipating
    assert any(admissions_that_move(name, 7, seed, **parameters) for seed in range(300))


def test_a_score_of_the_drawn_token_anticipates() -> None:
    """TETRIS ranks by the drawn token's own probability: changing token j moves draft j itself.

    Its budget is fixed, so confidences alone don't show it; as a token score, c[j] belongs to
    token j and the change starts one position earlier.
    """
    assert create("tetris", 7).anticipating
    moved = False
    for seed in range(200):
        state = make_state(7, 4, seed, drafted=np.full(4, 5))
        other = change_later(state, 0, 1)  # token 2 and later drawn otherwise
        lengths = [int(create("tetris", 7).plan(s).lengths[0]) for s in (state, other)]
        moved |= min(lengths[0], 2) != min(lengths[1], 2)
    assert moved
    assert get("tetris").signal == "token_prob"


@EVERY
def test_config_is_a_frozen_dataclass(name: str) -> None:
    """Parameters are plain values with defaults, fit for a command line and for JSON."""
    config = get(name).Config()
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert isinstance(getattr(config, field.name), (bool, int, float, str))


@EVERY
def test_docstring_names_its_source(name: str) -> None:
    """Each policy's module says where it comes from and whether it is lossless or biased."""
    module = __import__(get(name).__module__, fromlist=["__doc__"]).__doc__
    assert module
    assert any(word in module.lower() for word in ("lossless", "anticipating", "analysis only"))
