"""From command-line words to the objects of a run: bundle, latency, limits, traffic."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from gpu_traces.bundle import Bundle, default_bundle, read_bundle
from gpu_traces.fit import fit_latency
from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies import registry
from sim.capacity import LOADS, capacity_rps
from sim.replica import EngineConfig
from sim.simulate import ClusterConfig
from sim.workload import Workload, poisson

DEFAULT_MAX_REQUESTS = 256
DEFAULT_STEP_TOKENS = 8192


@dataclass(frozen=True)
class Setup:
    """Everything that the policies of one comparison have in common."""

    bundle: str
    traces: AcceptanceTraces
    latency: LatencyModel
    config: ClusterConfig
    scenario: str
    requests: int
    seed: int
    hashes: dict[str, str]
    """Bundle file -> SHA-256 of what was read."""

    def workload(self, rate_rps: float, seed: int | None = None) -> Workload:
        """The scenario's requests at a mean rate; another ``seed`` is another replication."""
        traffic = np.random.SeedSequence(self.seed if seed is None else seed, spawn_key=(1,))
        return poisson(self.traces, rate_rps, self.requests, traffic)

    def capacity_rps(self) -> float:
        """What ``none`` sustains here, requests per second."""
        return capacity_rps(self.traces, self.latency, self.workload(1.0), self.config, self.seed)


def build(args: argparse.Namespace) -> Setup:
    """Load and check what the options name; raises ValueError with one line."""
    bundle = read_bundle(args.bundle or default_bundle())
    traces, latency = bundle.traces, load_latency(args.latency, bundle)
    return Setup(
        bundle=bundle.name,
        traces=traces,
        latency=latency,
        config=_config(args, traces, latency),
        scenario=args.scenario,
        requests=args.requests,
        seed=args.seed,
        hashes={name: info.sha256 for name, info in bundle.manifest.files.items()},
    )


def load_latency(name: str, acceptance: Bundle) -> LatencyModel:
    """The step-time model of a bundle (empty name: the one whose acceptance is replayed)."""
    bundle = read_bundle(name) if name else acceptance
    model, _ = fit_latency(
        bundle.steps,
        name=bundle.name,
        origin=bundle.manifest.origin,
        gamma=bundle.manifest.gamma,
    )
    return model


def _config(
    args: argparse.Namespace, traces: AcceptanceTraces, latency: LatencyModel
) -> ClusterConfig:
    block = 1 + traces.gamma
    max_requests = args.max_requests or min(
        DEFAULT_MAX_REQUESTS, latency.max_requests, latency.max_tokens // block
    )
    step_tokens = args.max_step_tokens or max(
        min(DEFAULT_STEP_TOKENS, latency.max_tokens), max_requests * block
    )
    engine = EngineConfig(
        max_requests=max_requests,
        max_step_tokens=step_tokens,
        prefill=args.prefill,
        kv_tokens=args.kv_tokens,
        extrapolate=args.extrapolate,
        spread=not args.no_spread,
        check=args.check,
    )
    return ClusterConfig(
        replicas=args.replicas,
        router=args.router,
        concurrency=args.concurrency,
        timeout_s=args.timeout,
        prefix_cache=args.prefix_cache,
        horizon_s=args.horizon,
        engine=engine,
    )


def load_rps(text: str, capacity: float) -> float:
    """``high`` or ``12.5`` as requests per second."""
    if text in LOADS:
        return LOADS[text] * capacity
    return float(text)


def check_policies(texts: list[str], gamma: int) -> list[tuple[str, str, dict[str, object]]]:
    """(label, name, parameters) of each policy text; raises ValueError before anything runs."""
    found = []
    for text in texts:
        name, parameters = registry.parse(text)
        registry.create(name, gamma, **parameters)
        found.append((text, name, parameters))
    if len({label for label, _, _ in found}) < len(found):
        raise ValueError(f"policies {','.join(texts)} repeat themselves; name each once")
    return found
