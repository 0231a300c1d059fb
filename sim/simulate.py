"""One run: a workload, a policy, a latency model, some replicas, and out come records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies import registry
from policies.base import Policy
from policies.cost import CostTable
from sim.cluster import Cluster
from sim.group import Outage, random_outages
from sim.integrity import check_integrity, check_replica
from sim.prefill import PrefillPool
from sim.records import Records, collect
from sim.routers import ROUTERS
from sim.state import request_table
from sim.workload import Workload
from sim.world import EngineConfig, World


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
    group_size: int = 1
    """Replicas that step in lock-step (data-parallel ranks of one engine)."""
    prefill_workers: int = 0
    """Workers of the separate prefill pool; 0 for one per replica."""
    outages: tuple[Outage, ...] = ()
    """Groups that fail, and when."""
    mtbf_s: float = np.inf
    """Mean seconds between random failures of a group; inf for none."""
    mttr_s: float = 60.0
    """Mean seconds that a randomly failed group stays down."""
    retries: int = 3
    """Replicas that a running request may lose before it is reported failed."""
    lookup: str = ""
    """Rule by which every policy's cost table is looked up; empty: each policy's own."""
    profiled_context: float = 0.0
    """Cached tokens per request at which the cost tables were profiled."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    def all_outages(self, until_s: float, seed: np.random.SeedSequence) -> tuple[Outage, ...]:
        """Planned outages and, up to ``until_s``, random ones."""
        if not np.isfinite(self.mtbf_s):
            return self.outages
        groups = self.replicas // self.group_size
        drawn = random_outages(groups, self.mtbf_s, self.mttr_s, until_s, seed)
        return self.outages + drawn


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
    routing, engines, failures = np.random.SeedSequence(seed).spawn(3)
    lines_i, lines_f = request_table(workload, traces, config.timeout_s, config.prefix_cache)
    mean_output = int(workload.output_tokens.mean())
    world = World(traces, latency, config.engine, lines_i, lines_f, mean_output)
    policies = [registry.create(policy, traces.gamma, **parameters) for _ in range(config.replicas)]
    concurrency = 0 if (workload.session >= 0).any() else config.concurrency
    env = simpy.Environment()
    cluster = Cluster(
        env,
        world,
        workload,
        policies,
        [_belief(latency, p, config) for p in policies],
        ROUTERS[config.router](workload, routing),
        engines,
        concurrency=concurrency,
        group_size=config.group_size,
        retries=config.retries,
        pool=_pool(latency, config),
    )
    for outage in config.all_outages(float(workload.arrival_s[-1]), failures):
        env.process(cluster.groups[outage.group].outage(outage))
    if config.engine.check:
        for group in cluster.groups:
            group.after_step = check_replica
    horizon_s = config.horizon_s or _patient_horizon(latency, workload, config)
    waiting = _run(env, cluster, 0.0 if concurrency else float(workload.arrival_s[-1]), horizon_s)
    records = collect(world, workload, cluster.replicas, _verdict(waiting, cluster, horizon_s))
    check_integrity(records)
    return records


def _belief(latency: LatencyModel, policy: Policy, config: ClusterConfig) -> CostTable:
    """The table that an engine hands this policy; a bound is told what contexts cost too."""
    return latency.cost_table(
        config.lookup or policy.cost_rule,
        context_tokens=config.profiled_context,
        context_aware=policy.analysis_only,
    )


def _run(
    env: simpy.Environment, cluster: Cluster, last_s: float, horizon_s: float
) -> tuple[int, int]:
    """Run to the end or the horizon; returns queue lengths at half time and at the last arrival."""
    waiting = [0, 0]
    for k, at_s in enumerate((last_s / 2, last_s)):
        if env.now < at_s < horizon_s:
            env.run(until=at_s)
            cluster.deliver(at_s)
            waiting[k] = cluster.waiting()
    if np.isfinite(horizon_s):
        env.run(until=max(horizon_s, np.nextafter(env.now, np.inf)))
        cluster.deliver(env.now)
    else:
        env.run()
    if last_s >= horizon_s:
        waiting[1] = cluster.waiting()
    return waiting[0], waiting[1]


def check(
    traces: AcceptanceTraces, latency: LatencyModel, workload: Workload, config: ClusterConfig
) -> None:
    """Refuse what cannot work, with the numbers."""
    engine = config.engine
    if config.replicas % config.group_size:
        raise ValueError(
            f"{config.replicas} replicas can't form lock-step groups of {config.group_size}"
        )
    groups = config.replicas // config.group_size
    for outage in config.outages:
        if not 0 <= outage.group < groups:
            raise ValueError(f"outage of group {outage.group}, but groups are 0..{groups - 1}")
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
                " raise --kv-tokens (unset, it is what the latency profile covers: beyond that take"
                " another --latency or --extrapolate)"
            )


def _pool(latency: LatencyModel, config: ClusterConfig) -> PrefillPool | None:
    if config.engine.prefill != "separate":
        return None
    workers = config.prefill_workers or config.replicas
    return PrefillPool(latency, workers, config.engine.max_step_tokens)


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


def _verdict(waiting: tuple[int, int], cluster: Cluster, horizon_s: float) -> str:
    """Whether the queue was still growing at the last arrival."""
    half, full = waiting
    slots = sum(replica.rows_i.shape[1] for replica in cluster.replicas)
    if full <= max(8, slots // 4, 1.25 * half):
        return ""
    text = f"unstable: queue grew from {half} (half time) to {full} (last arrival)"
    if cluster.left and np.isfinite(horizon_s):
        text += f"; stopped at {horizon_s:.6g} s with {cluster.left} requests unfinished"
    return text
