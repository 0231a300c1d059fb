"""What a deployment sustains without speculation: the yardstick of ``--load high`` and its kin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from sim.records import Records
from sim.simulate import ClusterConfig, simulate
from sim.workload import Workload, at_once

LOADS = {"low": 0.3, "medium": 0.6, "high": 0.9, "overload": 1.2}
"""Load words as fractions of the capacity."""

RECORDED = "recorded"
"""The load word that keeps a scenario's or file's own rate."""

BATCHES = 8
"""Requests of a capacity run, in multiples of the batch cap."""


def capacity_rps(
    traces: AcceptanceTraces,
    latency: LatencyModel,
    body: Workload,
    config: ClusterConfig,
    seed: int,
) -> float:
    """Requests per second that policy ``none`` sustains on this deployment.

    One replica is kept full (closed loop at the batch cap) with requests of ``body``; its token
    rate once full, over the mean output length of the whole body, times the replicas.
    """
    cap = config.engine.max_requests
    count = max(256, BATCHES * cap)
    rows = np.arange(count) % body.requests
    saturating = at_once(body).take(rows)
    lone = replace(
        config,
        replicas=1,
        group_size=1,
        outages=(),
        mtbf_s=np.inf,
        concurrency=cap,
        horizon_s=0.0,
        timeout_s=np.inf,
        engine=replace(config.engine, check=False),
    )
    records = simulate(traces, latency, saturating, "none", lone, seed)
    return token_rate(records) / float(body.output_tokens.mean()) * config.replicas


def token_rate(records: Records) -> float:
    """Output tokens per second between the first completions and the last release."""
    finish_s = np.sort(records.requests["finish_s"].to_numpy())
    first_s = finish_s[finish_s.size // BATCHES]
    last_s = float(records.requests["arrival_s"].max())
    steps = records.steps
    inside = steps[(steps["start_s"] >= first_s) & (steps["end_s"] <= last_s)]
    if inside.empty:
        inside = steps
    span_s = float(inside["end_s"].iloc[-1] - inside["start_s"].iloc[0])
    return float(inside["output_tokens"].sum()) / span_s
