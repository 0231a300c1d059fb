"""The simulator against queueing theory, where theory knows the answer.

A request of two output tokens without prefill costs one step, and with a context cost that step
takes as long as its prompt says: so a replica of one row is a single server with any service law.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu_traces.latency import constant, linear
from gpu_traces.synthetic import ALIKE, synthetic_traces
from tests.sim.worlds import REPLICATIONS, assert_mean, run, traces_of, workload_of

PLAIN = traces_of([[0] * 40])
TICK_S = 1e-6
WARM_UP = 0.2


def arrivals(rng: np.random.Generator, rate_rps: float, count: int) -> np.ndarray:
    return np.cumsum(rng.exponential(1 / rate_rps, count))


def steady(values: np.ndarray) -> float:
    """Mean after the first fifth."""
    return float(values[int(WARM_UP * values.size) :].mean())


def single_server_waits(service_s, rate_rps: float, count: int = 2500) -> list[float]:
    """Mean wait before service, per replication."""
    world = constant(1e-12)
    world = type(world)("server", world.origin, world.draft_s, world.verify_s, context_s=TICK_S)
    waits = []
    for seed in range(REPLICATIONS):
        rng = np.random.default_rng(seed)
        prompt = np.maximum(1, np.round(service_s(rng, count) / TICK_S)).astype(int)
        work = workload_of(PLAIN, arrivals(rng, rate_rps, count), prompt, 2)
        requests = run(PLAIN, world, work, max_requests=1, prefill="none").requests
        waits.append(steady((requests["admitted_s"] - requests["arrival_s"]).to_numpy()))
    return waits


def test_m_m_1() -> None:
    """Wq = rho / (mu - lambda)."""
    waits = single_server_waits(lambda rng, n: rng.exponential(1.0, n), 0.6)
    assert_mean(waits, 0.6 / (1 - 0.6))


def test_m_d_1() -> None:
    """Wq = rho D / (2 (1 - rho))."""
    waits = single_server_waits(lambda rng, n: np.ones(n), 0.7)
    assert_mean(waits, 0.7 / (2 * 0.3))


def test_m_g_1() -> None:
    """Pollaczek-Khinchine, service uniform on 0..2: Wq = lambda E[S^2] / (2 (1 - rho))."""
    waits = single_server_waits(lambda rng, n: rng.uniform(0, 2, n), 0.6)
    assert_mean(waits, 0.6 * (4 / 3) / (2 * 0.4))


def test_m_m_1_processor_sharing() -> None:
    """A step time proportional to the batch shares the processor: T = E[S] / (1 - rho).

    Geometric answers of 30 rounds stand for exponential work; a round is a thirtieth of it, and a
    request joins at the next step, so theory holds within a step of the mean batch.
    """
    rounds, rho = 30, 0.6
    world = linear(0.0, 1 / rounds)
    times = []
    for seed in range(REPLICATIONS):
        rng = np.random.default_rng(seed)
        work = workload_of(PLAIN, arrivals(rng, rho, 500), 1, 1 + rng.geometric(1 / rounds, 500))
        requests = run(PLAIN, world, work, max_requests=60, prefill="none").requests
        times.append(steady((requests["finish_s"] - requests["arrival_s"]).to_numpy()))
    assert_mean(times, 1 / (1 - rho), bias=2.5 / rounds)


def test_bulk_service() -> None:
    """M/D/1, unlimited batches: Wq = D/2 P(busy), P(busy) = D / (D + exp(-lambda D) / lambda)."""
    rate = 1.3
    waits = []
    for seed in range(REPLICATIONS):
        work = workload_of(PLAIN, arrivals(np.random.default_rng(seed), rate, 1500), 1, 2)
        requests = run(PLAIN, constant(1.0), work, max_requests=60, prefill="none").requests
        waits.append(steady((requests["admitted_s"] - requests["arrival_s"]).to_numpy()))
    busy = 1 / (1 + np.exp(-rate) / rate)
    assert_mean(waits, busy / 2)


@pytest.mark.parametrize("policy", ["none", "hardware-aware"])
@pytest.mark.parametrize("prefill", ["chunked", "none"])
def test_littles_law_holds_exactly(policy: str, prefill: str) -> None:
    """Time-integral of the decoding batch = sum of the times from first token to end."""
    traces = synthetic_traces(responses=20, response_tokens=60)
    rng = np.random.default_rng(5)
    work = workload_of(traces, arrivals(rng, 60.0, 300), 20, rng.integers(1, 80, 300))
    records = run(traces, linear(2e-3, 2e-5), work, policy, prefill=prefill)
    steps, requests = records.steps, records.requests
    area = (steps["decode_requests"] * (steps["end_s"] - steps["start_s"])).sum()
    decoding = requests["finish_s"] - requests["first_token_s"]
    assert area == pytest.approx(decoding.sum(), rel=1e-9)
    assert area > 0


@pytest.mark.parametrize("k", [1, 3, 7])
def test_tokens_per_round_of_an_even_chain(k: int) -> None:
    """Acceptance a at every position: E[tokens per round] = (1 - a^(k+1)) / (1 - a).

    The last round of an answer is cut short, by less than a block in 400 tokens.
    """
    a = 0.7
    gained = []
    for seed in range(REPLICATIONS):
        traces = synthetic_traces(
            {"all": a}, responses=20, response_tokens=400, difficulty=ALIKE, seed=seed
        )
        work = workload_of(traces, np.zeros(20), 5, traces.response_tokens)
        records = run(traces, constant(0.01), work, "fixed-k", parameters={"k": k})
        requests = records.requests
        gained.append((requests["generated_tokens"] - 1).sum() / requests["rounds"].sum())
    theory = (1 - a ** (k + 1)) / (1 - a)
    assert_mean(gained, theory, bias=0.01 * theory)
