"""The engine: hand-worked timelines, a naive second implementation, and metamorphic relations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gpu_traces.latency import LatencyModel, constant, linear
from gpu_traces.published import published_latency, published_traces
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.synthetic import synthetic_traces
from sim.metrics import summarize
from sim.workload import at_once, from_bundle
from tests.sim import naive
from tests.sim.worlds import run, traces_of, workload_of

CHAT = synthetic_traces(responses=12, response_tokens=50)
WORLD = linear(2e-3, 2e-5, 4e-4, 1e-5)


def chat(n: int = 60, rate: float = 40.0, seed: int = 3, **columns):
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, n))
    output = rng.integers(1, 120, n)
    return workload_of(CHAT, arrival_s, rng.integers(1, 300, n), output, **columns)


def test_two_requests_by_hand() -> None:
    """Step 1 s whatever happens; k = 2; chunks of at most 8 - 3 = 5 tokens beside a decoding row.

    time      0        1        2        3        4        5
    request 0 | prefill 4 | +3 -> 4 | +2 -> 6 done
    request 1 (arrives 0.5)   | chunk 5 | chunk 5 | +1 -> 2 | +2 -> 4 done
    """
    traces = traces_of([[2, 0, 0, 1, 0], [0, 1, 0]], gamma=2)
    work = workload_of(traces, [0.0, 0.5], [4, 10], [6, 4])
    records = run(
        traces, constant(1.0, gamma=2), work, "fixed-k", parameters={"k": 2},
        max_requests=2, max_step_tokens=8,
    )  # fmt: skip
    requests = records.requests
    assert requests["admitted_s"].tolist() == [0.0, 1.0]
    assert requests["first_token_s"].tolist() == [1.0, 3.0]
    assert requests["finish_s"].tolist() == [3.0, 5.0]
    assert requests["rounds"].tolist() == [2, 2]
    assert requests["accepted_tokens"].tolist() == [3, 1]
    assert requests["verified_tokens"].tolist() == [4, 4]
    assert records.steps["prefill_tokens"].tolist() == [4, 5, 5, 0, 0]
    assert records.steps["output_tokens"].tolist() == [1, 3, 3, 1, 2]


@pytest.mark.parametrize("policy", ["none", "fixed-k", "confidence", "hardware-aware", "vllm"])
def test_agrees_with_the_naive_engine(policy: str) -> None:
    """Two implementations, one without kernels: rounds, tokens and times are the same."""
    work = chat()
    mine = run(CHAT, WORLD, work, policy, max_requests=6, max_step_tokens=96).requests
    other = naive.serve(CHAT, WORLD, work, policy, max_requests=6, max_step_tokens=96)
    for column, field in (
        ("rounds", "rounds"),
        ("verified_tokens", "verified"),
        ("accepted_tokens", "accepted"),
    ):
        assert mine[column].tolist() == [getattr(r, field) for r in other], column
    assert mine["first_token_s"].to_numpy() == pytest.approx([r.first_token_s for r in other])
    assert mine["finish_s"].to_numpy() == pytest.approx([r.finish_s for r in other])


def test_same_seed_same_bytes() -> None:
    noisy = replace(WORLD, spread=0.1)
    first, second = (run(CHAT, noisy, chat(), "hardware-aware", seed=7) for _ in range(2))
    for name, table in first.tables().items():
        pd.testing.assert_frame_equal(table, second.tables()[name], check_exact=True)
    third = run(CHAT, noisy, chat(), "hardware-aware", seed=8)
    assert not first.steps["end_s"].equals(third.steps["end_s"])


def test_scaling_time_scales_every_latency() -> None:
    """Twice as slow a world at half the rate: every time doubles, bit for bit."""
    work = chat()
    base = run(CHAT, WORLD, work, "hardware-aware").requests
    slow = replace(WORLD, draft_s=2 * WORLD.draft_s, verify_s=2 * WORLD.verify_s)
    later = replace(work, arrival_s=2 * work.arrival_s)
    doubled = run(CHAT, slow, later, "hardware-aware").requests
    assert (2 * base["finish_s"] == doubled["finish_s"]).all()
    assert (base["rounds"] == doubled["rounds"]).all()


def test_k_of_zero_is_plain_decoding() -> None:
    plain = run(CHAT, WORLD, chat(), "none")
    zero = run(CHAT, WORLD, chat(), "fixed-k", parameters={"k": 0})
    pd.testing.assert_frame_equal(plain.requests, zero.requests, check_exact=True)


def test_full_acceptance_gains_k_plus_one() -> None:
    traces = traces_of([[7] * 80])
    work = workload_of(traces, [0.0], 5, 81)
    for k in (1, 3, 7):
        records = run(traces, WORLD, work, "fixed-k", parameters={"k": k})
        assert records.requests["rounds"].tolist() == [80 // (k + 1)]


def test_identical_requests_can_be_swapped() -> None:
    """Arriving together with equal bodies, requests differ in nothing but their number."""
    work = workload_of(traces_of([[1, 0, 2, 0, 0]]), [0.0] * 6, 8, 6)
    requests = run(traces_of([[1, 0, 2, 0, 0]]), WORLD, work, "hardware-aware").requests
    assert requests["rounds"].nunique() == requests["accepted_tokens"].nunique() == 1


def test_an_answer_of_any_length_replays_the_same_anchors() -> None:
    """Beyond its end a response goes on with the next of its domain, whatever the policy.

    k = 7 takes 2 rounds for the 3 anchors of the one response and 2 for the 4 of the other; 39
    tokens are 5 such cycles, the first response once more, and 1 token.
    """
    traces = traces_of([[1, 0, 0], [0, 2, 0, 0]])
    work = workload_of(traces, [0.0], 3, 40)
    for k in (0, 2, 7):
        requests = run(traces, WORLD, work, "fixed-k", parameters={"k": k}).requests
        assert requests["generated_tokens"].tolist() == [40]
    assert requests["rounds"].tolist() == [5 * 4 + 2 + 1]


COST_AWARE = (
    "adaspec", "atom", "confidence", "dcut", "goodput", "hardware-aware", "tensorrt-llm", "vllm",
)  # fmt: skip
OF_THIS_STEP = ("adaspec", "atom", "confidence", "goodput")
LAGGED = {"hardware-aware": 2, "tensorrt-llm": 2, "vllm": 1}
HOPELESS = replace(CHAT, confidence=np.zeros_like(CHAT.confidence))


@pytest.mark.parametrize("policy", COST_AWARE)
def test_flat_cost_verifies_everything(policy: str) -> None:
    steps = run(CHAT, constant(0.01), chat(), policy).steps
    assert steps["budget_tokens"].sum() > 0
    assert (steps["budget_tokens"] == steps["drafted_tokens"]).all()


@pytest.mark.parametrize("policy", OF_THIS_STEP)
def test_no_confidence_verifies_nothing(policy: str) -> None:
    steps = run(HOPELESS, WORLD, chat(), policy).steps
    assert steps["drafted_tokens"].sum() > 0
    assert steps["budget_tokens"].sum() == 0


@pytest.mark.parametrize("policy", LAGGED)
def test_a_lagged_size_hopes_for_new_requests_only(policy: str) -> None:
    """A request too young for the lag counts as certain: its first steps, and no others, verify."""
    work = chat()
    records = run(HOPELESS, WORLD, work, policy)
    young = np.minimum(records.requests["rounds"], LAGGED[policy]).sum()
    assert 0 < records.steps["budget_tokens"].sum() <= CHAT.gamma * young


def fixed_k_gain(traces: AcceptanceTraces, latency: LatencyModel, concurrency: int) -> float:
    """Output tok/s of fixed k = 7 over that of plain decoding, in a closed loop."""
    rng = np.random.default_rng(0)
    work = at_once(from_bundle(traces, np.zeros(4 * concurrency + 20), rng, "full"))
    speeds = []
    for k in (0, 7):
        records = run(
            traces, latency, work, "fixed-k", parameters={"k": k}, max_requests=concurrency,
            max_step_tokens=8 * concurrency, prefill="none", cluster={"concurrency": concurrency},
        )  # fmt: skip
        speeds.append(summarize(records)["output_tok_s"])
    return speeds[1] / speeds[0]


@pytest.mark.parametrize(
    ("name", "crowd"), [("vllm-v4-flash-b300", 192), ("dcut-qwen3-8b-h20", 64)]
)
def test_verification_is_not_free(name: str, crowd: int) -> None:
    """By published tables fixed k = 7 more than doubles speed alone and loses in a crowd.

    With a table that charges nothing for tokens it gains as much in a crowd as alone.
    """
    traces = published_traces("dspark-qwen3-4b")
    priced, free = published_latency(name, traces.gamma), constant(5e-3)
    assert fixed_k_gain(traces, priced, 1) > 2.0
    assert fixed_k_gain(traces, priced, crowd) < 0.95
    alone, crowded = fixed_k_gain(traces, free, 1), fixed_k_gain(traces, free, crowd)
    assert min(alone, crowded) > 3.0
    assert crowded == pytest.approx(alone, rel=0.15)


def test_fewer_drafts_after_a_plan_says_so() -> None:
    """Policy none drafts nothing, so its steps carry no draft time."""
    steps = run(CHAT, WORLD, chat(), "none").steps
    alone = steps[(steps["decode_requests"] == 1) & (steps["prefill_tokens"] == 0)]
    assert len(alone)
    assert (alone["end_s"] - alone["start_s"]).to_numpy() == pytest.approx(2e-3 + 2e-5)
