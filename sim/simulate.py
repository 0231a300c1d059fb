"""One run: a workload, a policy, a latency model, some replicas, and out come records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies import registry
from sim.cluster import Cluster
from sim.integrity import check_integrity, check_replica
from sim.records import Records, collect
from sim.replica import EngineConfig, World
from sim.routers import ROUTERS
from sim.state import request_table
from sim.workload import Workload


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How many replicas there are and how requests reach them."""

    replicas: int = 1
    """Engine replicas."""
    router: str = "round-robin"
    """round-robin, least-tokens, power-of-two or sticky."""
    concurrency: int = 0
    """Closed loop: requests out at any time, all replicas together; 0 for open-loop arrivals.
    Traffic of sessions is a closed loop of its own and ignores this."""
    timeout_s: float = np.inf
    """Seconds after arrival at which the service gives a request up."""
    prefix_cache: bool = False
    """Prompt tokens known from the prefix cache (the workload says how many) skip prefill."""
    horizon_s: float = 0.0
    """Simulated seconds after which the run stops; 0 for a bound that only overload reaches."""
    engine: EngineConfig = field(default_factory=EngineConfig)


def simulate(
    traces: AcceptanceTraces,
    latency: LatencyModel,
    workload: Workload,
    policy: str,
    config: ClusterConfig,
    seed: int = 0,
    **parameters: Any,
) -> Records:
    """Serve ``workload`` under a policy (name and parameters) and return the records.

    Same arguments, same records, byte for byte. Raises ValueError when the configuration cannot
    work: a step outside the latency profile, a request larger than the KV cache, a gamma mismatch.
    """
    check(traces, latency, workload, config)
    latency = _within(latency, traces, config.engine)
    routing, engines = np.random.SeedSequence(seed).spawn(2)
    lines_i, lines_f = request_table(workload, traces, config.timeout_s, config.prefix_cache)
    mean_output = int(workload.output_tokens.mean())
    world = World(traces, latency, config.engine, lines_i, lines_f, mean_output)
    policies = [registry.create(policy, traces.gamma, **parameters) for _ in range(config.replicas)]
    costs = [latency.cost_table(p.cost_rule) for p in policies]
    env = simpy.Environment()
    router = ROUTERS[config.router](workload, routing)
    concurrency = 0 if (workload.session >= 0).any() else config.concurrency
    cluster = Cluster(env, world, workload, policies, costs, router, concurrency, engines)
    if config.engine.check:
        for replica in cluster.replicas:
            replica.after_step = check_replica
    horizon_s = config.horizon_s or _patient_horizon(latency, workload, config)
    last_s = float(workload.arrival_s[-1])
    waiting = [0, 0]
    if not concurrency and last_s > 0:
        for k, at in enumerate((last_s / 2, last_s)):
            env.run(until=min(at, horizon_s))
            cluster.deliver(env.now)
            waiting[k] = cluster.waiting()
    env.run(until=horizon_s) if np.isfinite(horizon_s) else env.run()
    records = collect(world, workload, cluster.replicas, _verdict(waiting, cluster, horizon_s))
    if config.engine.check:
        check_integrity(records)
    return records


def check(
    traces: AcceptanceTraces, latency: LatencyModel, workload: Workload, config: ClusterConfig
) -> None:
    """Refuse what cannot work, with the numbers."""
    engine = config.engine
    if latency.gamma < traces.gamma:
        raise ValueError(
            f"latency {latency.name} was profiled for gamma {latency.gamma}, but the traces draft"
            f" {traces.gamma} tokens; choose another --latency"
        )
    least = engine.max_requests * (1 + traces.gamma)
    if engine.max_step_tokens < least:
        raise ValueError(
            f"max step tokens {engine.max_step_tokens} must be at least max requests x (1 + gamma)"
            f" = {engine.max_requests} x {1 + traces.gamma} = {least}"
        )
    latency.check_range(engine.max_requests, engine.max_step_tokens, 0, engine.extrapolate)
    if engine.kv_tokens:
        tokens = workload.prompt_tokens + workload.output_tokens + 1 + traces.gamma
        largest = int(np.argmax(tokens))
        if tokens[largest] > engine.blocks * engine.block_tokens:
            raise ValueError(
                f"request {largest} needs {tokens[largest]} KV tokens (prompt, output and one"
                f" block), but the cache holds {engine.blocks * engine.block_tokens};"
                " raise --kv-tokens"
            )


def _within(latency: LatencyModel, traces: AcceptanceTraces, engine: EngineConfig) -> LatencyModel:
    if not engine.extrapolate:
        return latency
    return latency.extrapolated(engine.max_requests, engine.max_step_tokens)


def _patient_horizon(latency: LatencyModel, workload: Workload, config: ClusterConfig) -> float:
    """Twice the span of the arrivals plus a few times the longest request: overload ends here."""
    if config.concurrency or (workload.session >= 0).any():
        return np.inf
    slow_s = latency.step_time_s(0, 0, config.engine.max_step_tokens)
    longest = int((workload.output_tokens + workload.prompt_tokens / 16).max())
    return 2.0 * float(workload.arrival_s[-1]) + 8.0 * longest * slow_s


def _verdict(waiting: list[int], cluster: Cluster, horizon_s: float) -> str:
    """Whether the queue was still growing at the last arrival."""
    half, full = waiting
    slots = sum(replica.rows_i.shape[1] for replica in cluster.replicas)
    if full <= max(slots, 1.25 * half):
        return ""
    text = f"unstable: queue grew from {half} (half time) to {full} (last arrival)"
    if cluster.left and np.isfinite(horizon_s):
        text += f"; stopped at {horizon_s:.6g} s with {cluster.left} requests unfinished"
    return text
