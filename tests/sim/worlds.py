"""Small worlds made by hand, and the statistical yardstick of the closed-form tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpu_traces.latency import LatencyModel, constant, linear
from gpu_traces.schema import AcceptanceTraces, Origin
from sim.records import Records
from sim.simulate import ClusterConfig, simulate
from sim.workload import Workload, poisson
from sim.world import EngineConfig

GAMMA = 7
REPLICATIONS = 20
LIMIT = 4.5


def traces_of(
    accepted: list[list[int]], gamma: int = GAMMA, confidence: float = 0.5
) -> AcceptanceTraces:
    """Responses with given accepted lengths per anchor (cut at the end), one flat confidence."""
    lengths = np.array([len(row) + 1 for row in accepted])
    cut = [min(a, len(row) - t, gamma) for row in accepted for t, a in enumerate(row)]
    flat = np.full((len(cut), gamma), confidence, dtype=np.float32)
    n = len(accepted)
    return AcceptanceTraces(
        name="by hand",
        origin=Origin("synthetic", "by hand"),
        gamma=gamma,
        domains=("all",),
        request_id=np.arange(n),
        domain=np.zeros(n, dtype=np.int16),
        temperature=np.zeros(n, dtype=np.float32),
        prompt_tokens=np.full(n, 10, dtype=np.int32),
        response_tokens=lengths.astype(np.int32),
        first_anchor=np.concatenate([[0], np.cumsum(lengths - 1)]),
        confidence=flat,
        accepted=np.array(cut, dtype=np.int8),
        alpha=flat,
        max_prob=flat,
    )


def workload_of(
    traces: AcceptanceTraces, arrival_s: Any, prompt: Any, output: Any, **columns: Any
) -> Workload:
    """Requests that replay response 0, 1, ... in turn."""
    n = len(arrival_s)
    base = poisson(traces, 1.0, n, np.random.SeedSequence(0))
    response = np.arange(n) % traces.responses
    return replace(
        base,
        arrival_s=np.asarray(arrival_s, dtype=float),
        prompt_tokens=np.broadcast_to(prompt, n),
        output_tokens=np.broadcast_to(output, n),
        response=response,
        domain=traces.domain[response].astype(np.int64),
        **columns,
    )


def run(
    traces: AcceptanceTraces,
    latency: LatencyModel,
    workload: Workload,
    policy: str = "none",
    *,
    seed: int = 0,
    parameters: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    **engine: Any,
) -> Records:
    """``simulate`` with every invariant checked."""
    limits = {"max_requests": 8, "max_step_tokens": 512} | engine
    config = ClusterConfig(engine=EngineConfig(check=True, **limits), **(cluster or {}))
    return simulate(traces, latency, workload, policy, config, seed, **(parameters or {}))


def assert_mean(samples: Any, theory: float, bias: float = 0.0) -> None:
    """Independent replications agree with theory.

    20 replications, |mean - theory| below 4.5 standard errors (Student's t, 19 degrees of freedom:
    a false alarm in about 4,000 tests; the seeds are fixed, so it would be a lasting one), plus a
    stated ``bias`` where the model is a discretisation of the theory's.
    """
    values = np.asarray(samples, dtype=float)
    assert values.size == REPLICATIONS
    error = values.std(ddof=1) / np.sqrt(values.size)
    assert abs(values.mean() - theory) < LIMIT * error + bias, (values.mean(), theory, error)
    assert error < 0.1 * theory, "the test is too weak to mean anything"


__all__ = ["assert_mean", "constant", "linear", "run", "traces_of", "workload_of"]
