"""From command-line words to the objects of a run: bundle, latency, limits, traffic."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gpu_traces.bundle import Bundle, default_bundle, read_bundle
from gpu_traces.distort import miscalibrated, with_stale_copy
from gpu_traces.fit import fit_latency
from gpu_traces.latency import NO_CONTEXT_LIMIT, LatencyModel
from gpu_traces.published import published_latency, published_traces
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.shapes import machine
from policies import registry
from policies.export import Calibrated
from sim.binding import bind
from sim.capacity import LOADS, RECORDED, capacity_rps
from sim.importers import load
from sim.request_table import RequestTable, scaled
from sim.scaling import Method
from sim.scenarios import SCENARIOS, generate, scenario
from sim.simulate import ClusterConfig
from sim.slo import DEFAULTS, Slos
from sim.streams import ClosedScenario
from sim.workload import Workload, children, poisson
from sim.world import EngineConfig

DEFAULT_MAX_REQUESTS = 256
DEFAULT_STEP_TOKENS = 8192
PUBLISHED = "published:"
PRODUCTION = ("published:dspark-qwen3-4b", "published:vllm-v4-flash-b300")
"""Acceptance and step times of production-grade models."""
SYNTHETIC = "synthetic:"
OWN = "bundle"
"""The scenario of the bundle's own prompts and answers."""


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
    calibration: tuple[Calibrated, ...] = ()
    """The confidences' calibration per sampling temperature; empty: used as recorded."""
    method: Method = "time_scale"
    """How a scenario or file is brought to another rate."""
    slos: Slos = DEFAULTS
    patience_s: float = np.inf
    """Mean of the exponential time after which a client cancels its request."""
    drifts: bool = False
    """Whether the later half of the requests replays the stale copies in ``traces``."""

    @property
    def closed(self) -> bool:
        """Whether the traffic itself is a closed loop of users (its rate can't be set)."""
        return self.scenario in SCENARIOS and isinstance(scenario(self.scenario), ClosedScenario)

    def workload(self, rate_rps: float | None, seed: int | None = None) -> Workload:
        """The scenario's requests at a mean rate (None: its own).

        Another ``seed`` is another replication: other arrivals, other requests. A closed scenario
        has as many users as the concurrency says, and no rate.
        """
        entropy = self.seed if seed is None else seed
        sources = children(np.random.SeedSequence(entropy, spawn_key=(1,)), 3)
        work = self._requests(rate_rps, entropy, *sources[:2])
        if not np.isfinite(self.patience_s):
            return work
        draws = np.random.default_rng(sources[2]).exponential(self.patience_s, work.requests)
        note = f"clients give up after {self.patience_s:g} s on average (exponential)"
        return replace(work, patience_s=draws, notes=(*work.notes, note))

    def _requests(
        self,
        rate_rps: float | None,
        entropy: int,
        traffic: np.random.SeedSequence,
        binding: np.random.SeedSequence,
    ) -> Workload:
        if self.scenario == OWN:
            if rate_rps is None:
                raise ValueError("the bundle's own prompts have no recorded rate; give --load")
            return poisson(self.traces, rate_rps, self.requests, traffic)
        if self.scenario in SCENARIOS:
            if self.closed:
                table = generate(self.scenario, self.requests, traffic, users=self.users)
            else:
                table = generate(self.scenario, self.requests, traffic, rate_rps, self.method)
        else:
            table = self._recorded(rate_rps, entropy)
        bound = bind(table, self.traces, binding)
        return _drifting(bound, self.traces) if self.drifts else bound

    @property
    def users(self) -> int:
        """Users of a closed scenario."""
        return max(1, self.config.concurrency)

    def _recorded(self, rate_rps: float | None, seed: int) -> RequestTable:
        path = Path(self.scenario)
        if not path.exists():
            known = ", ".join((OWN, *SCENARIOS))
            raise ValueError(f"--scenario {self.scenario!r} is no file; scenarios: {known}")
        table = load(path, seed)
        if rate_rps is not None:
            if not np.isfinite(table.rate_rps):
                raise ValueError(
                    f"{path}: all requests arrive at once, so there is no rate to change;"
                    " use --load recorded or --concurrency"
                )
            table = scaled(table, rate_rps / table.rate_rps, self.method, seed)
        return table.take(slice(min(self.requests, table.requests)))

    def capacity_rps(self) -> float:
        """What ``none`` sustains here, requests per second."""
        body = self.workload(1.0 if self.scenario == OWN else None)
        return capacity_rps(self.traces, self.latency, body, self.config, self.seed)


def _drifting(workload: Workload, traces: AcceptanceTraces) -> Workload:
    """The later half of the requests on the stale copies, which follow the responses they copy."""
    late = np.arange(workload.requests) >= workload.requests // 2
    copies, domains = traces.responses // 2, len(traces.domains) // 2
    return replace(
        workload,
        response=workload.response % copies + late * copies,
        domain=workload.domain % domains + late * domains,
    )


def build(args: argparse.Namespace) -> Setup:
    """Load and check what the options name; raises ValueError with one line."""
    bundle: Bundle | None = None
    hashes: dict[str, str]
    calibration: tuple[Calibrated, ...] = ()
    source, step_times = (args.bundle, args.latency) if args.bundle else _defaults(args)
    if source.startswith(PUBLISHED):
        traces = _published(source.removeprefix(PUBLISHED))
        name, hashes = source, {}
    else:
        bundle = read_bundle(source, args.temperature)
        traces, name = bundle.traces, bundle.name
        calibration = tuple(
            Calibrated(e.temperature, e.scales, e.bias) for e in bundle.manifest.calibration
        )
        hashes = {file: info.sha256 for file, info in bundle.manifest.files.items()}
    if not 0 <= args.drift < 1:
        raise ValueError(f"--drift {args.drift:g} must lie in 0..1, 1 excluded")
    if args.drift and args.scenario == OWN:
        raise ValueError("--drift needs a scenario or file; the bundle's own prompts cannot drift")
    if args.confidence_temperature != 1.0:
        traces = miscalibrated(traces, args.confidence_temperature)
    if args.drift:
        traces = with_stale_copy(traces, args.drift)
    latency = load_latency(step_times, bundle, traces.gamma)
    config = _config(args, traces, latency)
    if args.extrapolate:
        engine = config.engine
        latency = latency.extrapolated(engine.max_requests, engine.max_step_tokens)
    made = Setup(
        bundle=name,
        traces=traces,
        latency=latency,
        config=config,
        scenario=args.scenario,
        requests=args.requests,
        seed=args.seed,
        hashes=hashes,
        calibration=calibration,
        method=args.rate_method,
        slos=args.slo,
        patience_s=args.patience,
        drifts=args.drift > 0,
    )
    if made.closed and not args.concurrency:
        raise ValueError(f"--scenario {made.scenario} is a closed loop; give --concurrency USERS")
    return made


_published = lru_cache(maxsize=2)(published_traces)
"""Made once for the many settings of an experiment; arrays are read-only."""


def _defaults(args: argparse.Namespace) -> tuple[str, str]:
    """Bundle and latency where no bundle is given: the best measured one, or the published
    production pair for a production scenario whose requests its profile does not hold."""
    best = default_bundle()
    given = args.latency or args.extrapolate or args.kv_tokens is not None
    if given or args.scenario not in SCENARIOS:
        return best, args.latency
    chosen, measured = scenario(args.scenario), read_bundle(best)
    if isinstance(chosen, ClosedScenario):
        return best, ""
    longest = chosen.longest_request_tokens
    if load_latency("", measured, measured.manifest.gamma).max_context_tokens >= longest:
        return best, ""
    print(
        f"{args.scenario} has requests of up to {longest:,} tokens, more than {best} was profiled"
        f" for; taking --bundle {PRODUCTION[0]} --latency {PRODUCTION[1]}",
        file=sys.stderr,
    )
    return PRODUCTION


def load_latency(name: str, acceptance: Bundle | None, gamma: int) -> LatencyModel:
    """The step-time model of a bundle (empty name: the one whose acceptance is replayed)."""
    if name.startswith(PUBLISHED):
        return published_latency(name.removeprefix(PUBLISHED), gamma)
    if name.startswith(SYNTHETIC):
        return machine(name.removeprefix(SYNTHETIC), gamma)
    if not name and acceptance is None:
        raise ValueError("published traces have no step times; give --latency")
    bundle = read_bundle(name) if name else acceptance
    assert bundle is not None
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
        DEFAULT_MAX_REQUESTS, latency.max_requests, max(1, latency.max_tokens // (2 * block))
    )  # full blocks of a full batch leave half of the profiled tokens to prefill
    step_tokens = args.max_step_tokens or max(
        min(DEFAULT_STEP_TOKENS, latency.max_tokens), max_requests * block
    )
    engine = EngineConfig(
        max_requests=max_requests,
        max_step_tokens=step_tokens,
        prefill=args.prefill,
        kv_tokens=_profiled_kv_tokens(args, latency) if args.kv_tokens is None else args.kv_tokens,
        extrapolate=args.extrapolate,
        spread=not args.no_spread,
        tpot_target_s=tuple(target.tpot_s for target in args.slo),
        check=args.check,
    )
    return ClusterConfig(
        replicas=args.replicas,
        router=args.router,
        concurrency=args.concurrency,
        timeout_s=args.timeout,
        prefix_cache=args.prefix_cache,
        horizon_s=args.horizon,
        group_size=args.group_size,
        prefill_workers=args.prefill_workers,
        outages=tuple(args.outage),
        mtbf_s=args.mtbf,
        mttr_s=args.mttr,
        retries=args.retries,
        lookup=args.lookup,
        profiled_context=args.profiled_context,
        engine=engine,
    )


def _profiled_kv_tokens(args: argparse.Namespace, latency: LatencyModel) -> int:
    """Cached tokens that a step may read by the profile; 0 (no limit) where it knows none."""
    if args.extrapolate or latency.max_context_tokens >= NO_CONTEXT_LIMIT:
        return 0
    return latency.max_context_tokens


def load_rps(text: str, capacity: float) -> float | None:
    """``high`` or ``12.5`` as requests per second; None for ``recorded``."""
    if text == RECORDED:
        return None
    if text in LOADS:
        return LOADS[text] * capacity
    return float(text)


PolicyWords = tuple[str, str, dict[str, Any]]
"""Label, registered name, parameters."""


def check_policies(texts: list[str], gamma: int) -> list[PolicyWords]:
    """(label, name, parameters) of each policy text; raises ValueError before anything runs."""
    found = []
    for text in texts:
        name, parameters = registry.parse(text)
        registry.create(name, gamma, **parameters)
        found.append((text, name, parameters))
    if len({label for label, _, _ in found}) < len(found):
        raise ValueError(f"policies {','.join(texts)} repeat themselves; name each once")
    return found
