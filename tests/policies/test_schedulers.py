"""Each scheduler's own rule, by hand or against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from policies.base import StepOutcome, VerifyState
from policies.cost import CostTable, densify
from policies.estimate import AcceptanceEstimator
from policies.registry import create
from policies.turbospec import expected_tokens
from tests.policies.states import make_state


def step(confidences: list[list[float]], seconds: list[float], **changes: object) -> VerifyState:
    """A decode step; ``seconds[T]`` is the target pass over T tokens, drafting is free."""
    current = np.array(confidences)
    rows, gamma = current.shape
    cost = CostTable(np.zeros((gamma + 1, 16)), np.array(seconds))
    plain = {
        "current": current,
        "lagged": current,
        "drafted": np.full(rows, gamma),
        "slots": np.arange(rows),
        "fresh": np.zeros(rows, dtype=bool),
        "domain": np.zeros(rows, dtype=np.int64),
        "slack_s": np.full(rows, np.inf),
        "other_tokens": rows,
        "sampling_requests": rows,
        "cost": cost,
        "step": 1,
    }
    return make_state(gamma, rows, 0, **(plain | changes))


def outcome(
    state: VerifyState, lengths: list[int], accepted: list[int], step_time_s: float = 0.01
) -> StepOutcome:
    """What came of verifying ``lengths``."""
    finished = np.zeros(len(lengths), dtype=bool)
    return StepOutcome(
        state.step,
        state.slots,
        np.array(lengths),
        np.array(accepted),
        state.current,
        finished,
        step_time_s,
    )


CHEAP = [1.0] * 40


def test_cost_rules_between_and_beyond_points() -> None:
    """Points (2, 1 s), (4, 3 s): what each engine reads at 1, 3 and 6 tokens."""
    read = {
        rule: densify([2, 4], [1.0, 3.0], rule, 6)[[1, 3, 6]].tolist()
        for rule in ("linear", "clamp", "ceil", "floor", "rate")
    }
    assert read["linear"] == [1.0, 2.0, 5.0]
    assert read["clamp"] == [1.0, 2.0, 3.0]
    assert read["ceil"] == [1.0, 3.0, 5.0]
    assert read["floor"] == [1.0, 1.0, 3.0]
    assert read["rate"] == pytest.approx([1.0, 1.5, 3.0])  # steps/s: 1, 2/3, 1/3


def test_algorithm_1_stops_where_the_argmax_climbs_on() -> None:
    """R = 1, S = .9, .81, .73; the second draft costs a stair: 1.9/1, 2.71/1.6, 3.44/1.6."""
    state = step([[0.9, 0.9, 0.9]], [1.0, 1.0, 1.0, 1.6, 1.6])
    assert create("confidence", 3).plan(state).lengths.tolist() == [1]
    assert create("hardware-aware", 3).plan(state).lengths.tolist() == [3]


def test_lagged_size_and_current_order() -> None:
    """Two drafts looked good two steps ago; they go to whoever looks best now."""
    seconds = [1.0, 1.0, 1.0, 1.05, 1.1, 4.0, 4.0]
    lagged = np.array([[0.9, 0.8], [0.1, 0.1]])
    state = step([[0.2, 0.2], [0.9, 0.9]], seconds, lagged=lagged)
    assert create("hardware-aware", 2).plan(state).lengths.tolist() == [0, 2]


def test_vllm_counts_requests_that_finish_prefill() -> None:
    """With N = 1 the draft (S = 0.4) is worth 40 % more time; with N = 4 only 10 %."""
    seconds = [1.0] * 3 + [1.2] * 8
    alone = step([[0.4]], seconds, other_tokens=2)
    crowd = alone._replace(sampling_requests=4)
    assert create("vllm", 1).plan(alone).lengths.tolist() == [1]
    assert create("vllm", 1).plan(crowd).lengths.tolist() == [0]


def test_sglang_decides_nothing_on_prefill_steps_and_fills_tiers() -> None:
    """A prefill chunk in the step: full windows. Alignment: a tier of 4 has room for 3 drafts."""
    seconds = [1.0, 1.0, 1.0, 2.0, 2.0]
    state = step([[0.5, 0.5, 0.5]], seconds)
    assert create("sglang", 3).plan(state).lengths.tolist() == [1]
    prefill = state._replace(other_tokens=30)
    assert create("sglang", 3).plan(prefill).lengths.tolist() == [3]
    tiered = state._replace(cost=CostTable(np.zeros((4, 16)), np.array(seconds), tiers=(1, 4)))
    assert create("sglang", 3, align_tiers=True).plan(tiered).lengths.tolist() == [3]
    assert create("sglang", 3, min_length=2).plan(state).lengths.tolist() == [2]


def test_tensorrt_llm_trims_only_for_a_gain_and_stops_when_crowded() -> None:
    """Trimming the last draft (S = 0.25) gains 0.6 % here: below 1 % it isn't worth it."""
    state = step([[0.5, 0.5]], [1.0, 1.0, 1.0, 1.0 + 0.25 / 1.5 + 0.007])
    full = create("tensorrt-llm", 2).plan(state)
    assert (full.lengths.tolist(), full.adaptive) == ([2], False)
    assert create("tensorrt-llm", 2, min_gain=0.0).plan(state).lengths.tolist() == [1]
    crowded = create("tensorrt-llm", 1, max_concurrency=1)
    plan = crowded.plan(step([[0.9], [0.9]], CHEAP))
    assert plan.lengths.tolist() == plan.draft.tolist() == [0, 0]
    assert crowded.first_draft == 0


def test_dcut_knows_four_sizes() -> None:
    """Four drafts: a quarter is one, and each step of the menu costs what the table says."""
    state = step([[0.9, 0.9, 0.9, 0.9]], [1.0, 1.0, 1.0, 1.2, 3.0, 9.0])
    assert create("dcut", 4).plan(state).lengths.tolist() == [2]


def test_ascend_makes_windows_even() -> None:
    """S = .9 .81 .73 .66 | .59 ...: with a bar of 0.7 three pass, 0.62 four -> five drafts."""
    confidences = [[0.9] * 7]
    for bar, k in ((0.7, 3), (0.62, 5)):
        policy = create("ascend", 7, threshold=bar, interval=1)
        assert policy.plan(step(confidences, CHEAP)).lengths.tolist() == [k]


def test_tetris_spends_a_fixed_capacity() -> None:
    """k = 1 for two requests: both tokens go to the likelier one; below min_batch it is fixed-k."""
    policy = create("tetris", 3, k=1, extra=2)
    plan = policy.plan(step([[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]], CHEAP))
    assert plan.lengths.tolist() == [2, 0]
    assert plan.draft.tolist() == [3, 3]
    assert policy.plan(step([[0.9, 0.9, 0.9]], CHEAP)).lengths.tolist() == [1]


def test_turbospec_follows_acceptance() -> None:
    """Closed form of the chain; full length when all is accepted, none when nothing is."""
    assert expected_tokens(0.5, 3) == pytest.approx((1 - 0.5**4) / 0.5)
    state = step([[0.5] * 4] * 4, [1.0 + 0.05 * t for t in range(40)])
    for accepted, k in ((4, 4), (0, 0)):
        policy = create("turbospec", 4)
        for _ in range(60):
            lengths = policy.plan(state).lengths
            came = np.minimum(lengths, accepted).tolist()
            policy.observe(outcome(state, lengths.tolist(), came))
        assert policy.first_draft == k


def test_sglang_adaptive_moves_along_its_candidates() -> None:
    """From 7: a mean of 0 walks down to 1 (the first slot's smallest), a mean of 7 climbs back."""
    policy = create("sglang-adaptive", 7)
    state = step([[0.5] * 7], CHEAP)
    ks = []
    for accepted in [0] * 40 + [7] * 80:
        lengths = policy.plan(state).lengths
        policy.observe(outcome(state, lengths.tolist(), [min(accepted, int(lengths[0]))]))
        ks.append(int(policy.plan(state).draft[0]))
    assert ks[0] == 7
    assert ks[39] == 1
    assert ks[-1] == 7
    assert set(ks) <= {1, 3, 5, 7}


def test_bandit_learns_the_fast_arm() -> None:
    """Length 2 makes 3 tokens in 1 s, longer blocks the same in 2 s, shorter ones fewer."""
    policy = create("bandit", 4, hold=1)
    state = step([[0.9] * 4], CHEAP)
    chosen = []
    for _ in range(400):
        k = policy.first_draft
        now = state._replace(drafted=np.array([k]))
        lengths = policy.plan(now).lengths
        came = outcome(now, lengths.tolist(), [min(2, k)])
        policy.observe(came._replace(step_time_s=1.0 if k <= 2 else 2.0))
        chosen.append(k)
    assert np.bincount(chosen[200:], minlength=5).argmax() == 2


def test_per_batch_size_follows_vllms_table() -> None:
    """Gaps and the tail carry the previous K; K is clamped to gamma."""
    policy = create("per-batch-size", 3, table="1-2:5/5-6:1")
    for batch, k in ((1, 3), (2, 3), (4, 3), (5, 1), (9, 1)):
        state = step([[0.5] * 3] * batch, CHEAP)
        assert policy.plan(state).draft.tolist() == [k] * batch


@pytest.mark.parametrize("table", ["", "2-4:1", "1-4:1/3-5:2", "1-4:-1", "1-4", "a-b:c", "4-1:2"])
def test_tables_that_vllm_refuses(table: str) -> None:
    """Each is refused with a line that shows what was given."""
    with pytest.raises(ValueError, match="per-batch-size"):
        create("per-batch-size", 7, table=table)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fixed-k", {"k": 9}, r"policy 'fixed-k': k=9 must lie in 0\.\.7"),
        ("threshold", {"tau": float("nan")}, r"tau=nan must lie in 0\.\.1"),
        ("threshold", {"variant": "x"}, "must be survival or conditional"),
        ("sglang", {"table": "3d"}, "must be additive or 1d"),
        ("sglang-adaptive", {"slots": "2:1:0"}, "must start at batch 1"),
        ("sglang-adaptive", {"slots": "1:1"}, "must look like"),
        ("goodput", {"probe_every": 0}, "probe_every=0 must lie in 1"),
    ],
)
def test_parameters_out_of_range(name: str, parameters: dict, message: str) -> None:
    """One line: what was given, what is allowed."""
    with pytest.raises(ValueError, match=message):
        create(name, 7, **parameters)


def test_estimator_undoes_a_wrong_temperature() -> None:
    """Confidences sharpened by a factor 2 in logit: the estimate's error falls by over half.

    40,000 Bernoulli trials with a fixed seed; the bound is 10 standard errors away.
    """
    rng = np.random.default_rng(1)
    estimator, slots = AcceptanceEstimator(1), np.arange(100)
    one = np.ones(100, dtype=np.int64)
    errors = []
    for index in range(500):
        logit = rng.normal(0.0, 1.5, (100, 1))
        truth, shown = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-2 * logit))
        if index >= 400:
            guess = estimator.survivals(shown, one)
            errors.append([np.abs(guess - truth).mean(), np.abs(shown - truth).mean()])
        accepted = (rng.random(100) < truth[:, 0]).astype(np.int64)
        done = np.zeros(100, dtype=bool)
        estimator.learn(StepOutcome(index, slots, one, accepted, shown, done, 1.0))
    corrected, raw = np.mean(errors, axis=0)
    assert corrected < 0.5 * raw


def run_goodput(acceptance: float, draft_s: list[float], steps: int = 200) -> np.ndarray:
    """Draft lengths [steps] of a batch of 8 with one true confidence; a pass takes 1 s and more."""
    rng = np.random.default_rng(0)
    rows, gamma = 8, len(draft_s)
    confidences = np.full((rows, gamma), acceptance)
    seconds = np.array([0.0, *draft_s])[:, None] * np.ones(rows + 1)
    cost = CostTable(seconds, 1.0 + 1e-3 * np.arange(200.0))
    policy, drafted = create("goodput", gamma), np.full(rows, gamma)
    history = []
    for index in range(steps):
        exists = np.arange(gamma) < drafted[:, None]
        state = step(np.where(exists, confidences, 0.0).tolist(), [1.0], cost=cost)
        state = state._replace(step=index, drafted=drafted, fresh=np.full(rows, index == 0))
        plan = policy.plan(state)
        hits = np.cumprod(rng.random((rows, gamma)) < confidences, axis=1).sum(axis=1)
        accepted = np.minimum(hits, plan.lengths).tolist()
        policy.observe(outcome(state, plan.lengths.tolist(), accepted, step_time_s=0.0))
        history.append(int(drafted[0]))
        drafted = plan.draft
    return np.array(history)


def test_goodput_stops_drafting_when_it_never_pays_and_not_when_it_does() -> None:
    """All bad: only probing is left. Free drafting: all draft gamma, always."""
    assert np.mean(run_goodput(0.03, [0.4] * 4)[40:] > 0) < 0.1
    assert (run_goodput(0.6, [0.0] * 4) == 4).all()


def test_goodput_drafts_as_far_as_it_pays() -> None:
    """Where the first draft is cheap and later ones are not, one is drafted, probes apart."""
    rates = [(1 - 0.6 ** (k + 1)) / 0.4 / (1 + s) for k, s in enumerate([0.0, 0.1, 0.5, 0.9, 1.4])]
    assert int(np.argmax(rates)) == 1
    lengths = run_goodput(0.6, [0.1, 0.5, 0.9, 1.4])[40:]
    assert np.mean(lengths == 1) > 0.85
    assert set(lengths) <= {1, 4}
