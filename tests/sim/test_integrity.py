"""Invariants under random traffic, limits, time-outs and routers (checked inside every run)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_traces.latency import linear
from gpu_traces.synthetic import synthetic_traces
from sim.group import Outage
from sim.integrity import IntegrityError, check_integrity
from sim.routers import ROUTERS
from sim.state import COMPLETED, FAILED
from tests.sim.worlds import run, workload_of

TRACES = synthetic_traces(responses=6, response_tokens=30)
WORLD = linear(2e-3, 2e-5, 4e-4, 1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_or_made_up(data: st.DataObject) -> None:
    """Tight KV (evictions), impatience, time-outs, sessions, outages, lock-step, any router."""
    draw = data.draw
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 40))
    sessions = draw(st.booleans())
    groups, group_size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
    outages = tuple(
        Outage(int(rng.integers(groups)), rng.uniform(0, 0.2), rng.uniform(0.01, 0.2))
        for _ in range(draw(st.integers(0, 3)))
    )
    work = workload_of(
        TRACES,
        np.sort(rng.uniform(0, draw(st.sampled_from([0.0, 0.05, 2.0])), n)),
        rng.integers(1, 150, n),
        rng.integers(1, 60, n),
        patience_s=rng.choice([np.inf, 0.02, 0.2], n),
        slo_class=rng.integers(0, 3, n),
        session=rng.integers(-1, 4, n) if sessions else np.full(n, -1),
        think_s=rng.uniform(0, 0.05, n),
        prefix_tokens=rng.integers(0, 100, n),
    )
    records = run(
        TRACES,
        WORLD,
        work,
        draw(st.sampled_from(["none", "fixed-k", "confidence", "hardware-aware", "vllm"])),
        seed=seed,
        cluster={
            "replicas": groups * group_size,
            "group_size": group_size,
            "outages": outages,
            "retries": draw(st.integers(0, 2)),
            "router": draw(st.sampled_from(sorted(ROUTERS))),
            "concurrency": draw(st.sampled_from([0, 0, 1, 5])),
            "timeout_s": draw(st.sampled_from([np.inf, 0.1])),
            "prefix_cache": draw(st.booleans()),
        },
        max_requests=draw(st.sampled_from([1, 3, 8])),
        max_step_tokens=draw(st.sampled_from([64, 200])),
        kv_tokens=draw(st.sampled_from([0, 256, 600])),
        prefill=draw(st.sampled_from(["chunked", "separate", "none"])),
    )
    assert records.requests["finish_s"].notna().all(), "every request comes to an end"


def test_eviction_happens_and_keeps_tokens() -> None:
    """Eight answers that together outgrow the cache: some are evicted, all complete."""
    work = workload_of(TRACES, np.zeros(8), 60, 100)
    records = run(TRACES, WORLD, work, "fixed-k", kv_tokens=800)
    assert records.requests["preemptions"].sum() > 0
    assert (records.requests["status"] == COMPLETED).all()
    free = run(TRACES, WORLD, work, "fixed-k")
    columns = ["rounds", "accepted_tokens", "generated_tokens"]
    assert records.requests[columns].equals(free.requests[columns])


def test_a_failed_replica_loses_no_request() -> None:
    """Replica 0 is down for a while: its requests finish elsewhere with the same tokens."""
    work = workload_of(TRACES, np.linspace(0, 0.1, 20), 30, 60)
    calm = run(TRACES, WORLD, work, "fixed-k", cluster={"replicas": 2})
    outage = {"replicas": 2, "outages": (Outage(0, 0.05, 1.0),)}
    hit = run(TRACES, WORLD, work, "fixed-k", cluster=outage)
    assert (hit.requests["status"] == COMPLETED).all()
    assert 0 < hit.requests["retries"].sum() < 20
    assert hit.requests["rounds"].equals(calm.requests["rounds"])
    assert hit.requests["finish_s"].max() > calm.requests["finish_s"].max()
    lost = run(TRACES, WORLD, work, "fixed-k", cluster=outage | {"retries": 0})
    assert set(lost.requests["status"]) == {COMPLETED, FAILED}


def test_lock_step_waits_for_the_slowest() -> None:
    """Two ranks, one with a long prompt: both take its step time."""
    work = workload_of(TRACES, [0.0, 0.0], [400, 4], [10, 10])
    steps = run(TRACES, WORLD, work, cluster={"replicas": 2, "group_size": 2}).steps
    first, second = (steps[steps["replica"] == k].reset_index() for k in (0, 1))
    assert first["end_s"].equals(second["end_s"])
    assert first["end_s"][0] == pytest.approx(2e-3 + 400 * 2e-5)


def test_a_rank_is_not_left_asleep() -> None:
    """Closed loop over lock-step ranks, every client impatient: one rank's loss feeds the other."""
    n = 30
    work = workload_of(TRACES, np.zeros(n), 60, 40, patience_s=np.tile([0.0, 0.01, 0.002], n // 3))
    for router in sorted(ROUTERS):
        cluster = {"replicas": 2, "group_size": 2, "concurrency": 1, "router": router}
        requests = run(TRACES, WORLD, work, cluster=cluster).requests
        assert requests["finish_s"].notna().all()


def test_separate_prefill_pool() -> None:
    """One worker, 10 ms a prompt of 400: first tokens 10, 20 and 30 ms after time 0."""
    work = workload_of(TRACES, [0.0] * 3, 400, 30)
    requests = run(TRACES, WORLD, work, prefill="separate").requests
    assert requests["first_token_s"].to_numpy() == pytest.approx([0.01, 0.02, 0.03])
    assert (requests["admitted_s"] >= requests["first_token_s"]).all()


def test_broken_records_are_caught() -> None:
    records = run(TRACES, WORLD, workload_of(TRACES, np.zeros(4), 5, 20), "fixed-k")
    check_integrity(records)
    records.requests.loc[0, "accepted_tokens"] += 1
    with pytest.raises(IntegrityError):
        check_integrity(records)


def test_impossible_deployments_are_refused_with_numbers() -> None:
    work = workload_of(TRACES, [0.0], 500, 30)
    with pytest.raises(ValueError, match="needs 538 KV tokens .* holds 256"):
        run(TRACES, WORLD, work, kv_tokens=256)
    with pytest.raises(ValueError, match="8 x 8 = 64"):
        run(TRACES, WORLD, work, max_step_tokens=63)
    with pytest.raises(ValueError, match="profiled to 8192"):
        run(TRACES, WORLD, work, max_step_tokens=9000)
