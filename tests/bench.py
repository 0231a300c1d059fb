"""Benchmarks of the simulator: ``make bench`` (``python -m tests.bench``), one core.

Speeds depend on the machine, so no test asserts them. Times are CPU seconds of the process (wall
time on a quiet core), the best of several runs; ``unit``, a fixed numpy sort, compares machines.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gpu_traces.latency import linear
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.synthetic import synthetic_traces
from sim.records import Records
from sim.simulate import ClusterConfig, simulate
from sim.workload import Workload, at_once, poisson
from sim.world import EngineConfig

LATENCY = linear(5e-3, 1e-5, 5e-4, 5e-6)


def main() -> None:
    """Run the benchmarks and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="requests of the chat run")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, the best counts")
    args = parser.parse_args()
    traces = synthetic_traces(responses=150)
    print(f"unit: {best(_sort, args.rounds)[0] * 1e3:.2f} ms for a sort of 100,000 floats")
    for batch in (8, 64, 256):
        bare = steps(traces, batch, "none", args.rounds, 0.0)
        for policy in ("fixed-k", "hardware-aware", "vllm", "goodput"):
            steps(traces, batch, policy, args.rounds, bare)
    chat(traces, args.requests)


def _sort() -> None:
    np.sort(np.random.default_rng(0).random(100_000))


def best(call: Callable[[], object], rounds: int) -> tuple[float, object]:
    """Least CPU seconds of several calls, and the last result."""
    least, result = float("inf"), None
    for _ in range(rounds):
        start = time.process_time()
        result = call()
        least = min(least, time.process_time() - start)
    return least, result


def steps(traces: AcceptanceTraces, batch: int, policy: str, rounds: int, bare: float) -> float:
    """Print and return engine steps per second with the batch full, records kept.

    ``bare``: those of policy ``none``, for the ratio, which the machine's load hardly moves.
    """
    work = at_once(poisson(traces, 1.0, 200 * batch + 1000, np.random.SeedSequence(1)))
    engine = EngineConfig(max_requests=batch, max_step_tokens=4096, prefill="none")
    config = ClusterConfig(concurrency=batch, engine=engine)
    cpu_s, result = best(lambda: simulate(traces, LATENCY, work, policy, config), rounds)
    assert isinstance(result, Records)
    count = len(result.steps)
    speed = count / cpu_s
    share = f", {speed / bare:.2f} of none's" if bare else ""
    print(f"steps/s at R={batch:<4} {policy:15} {speed:10,.0f}  ({count:,} steps{share})")
    return speed


def chat(traces: AcceptanceTraces, requests: int) -> None:
    """Chat-like requests (1,155 prompt and 211 output tokens on average) on 8 replicas."""
    config = ClusterConfig(replicas=8, engine=EngineConfig(max_requests=256, max_step_tokens=4096))
    start = time.process_time()
    work = chat_requests(traces, 400.0, requests)
    result = simulate(traces, LATENCY, work, "hardware-aware", config)
    cpu_s = time.process_time() - start
    tokens = int(result.requests["generated_tokens"].sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    batch = result.steps["decode_requests"].mean()
    print(
        f"chat, {requests:,} requests: {cpu_s:.1f} s, {requests / cpu_s:,.0f} requests/s,"
        f" {tokens / cpu_s / 1e6:.2f} M tokens/s, {len(result.steps) / cpu_s:,.0f} steps/s"
        f" (mean batch {batch:.0f}), peak {peak:.2f} GiB"
    )


def chat_requests(traces: AcceptanceTraces, rate_rps: float, requests: int) -> Workload:
    """Poisson arrivals with log-normal lengths."""
    work = poisson(traces, rate_rps, requests, np.random.SeedSequence(2))
    rng = np.random.default_rng(3)
    prompt = np.clip(rng.lognormal(6.8, 0.7, requests), 1, 8000)
    output = np.clip(rng.lognormal(5.05, 0.75, requests), 1, 1000)
    return replace(work, prompt_tokens=prompt.astype(int), output_tokens=output.astype(int))


if __name__ == "__main__":
    main()
