"""Invariants under random traffic, limits, time-outs and routers (checked inside every run)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_traces.latency import linear
from gpu_traces.synthetic import synthetic_traces
from sim.integrity import IntegrityError, check_integrity
from sim.routers import ROUTERS
from sim.state import COMPLETED
from tests.sim.worlds import run, workload_of

TRACES = synthetic_traces(responses=6, response_tokens=30)
WORLD = linear(2e-3, 2e-5, 4e-4, 1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_or_made_up(data: st.DataObject) -> None:
    """Tight KV (evictions), impatience, time-outs, sessions, any router and prefill mode."""
    draw = data.draw
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 40))
    sessions = draw(st.booleans())
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
            "replicas": draw(st.integers(1, 3)),
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
