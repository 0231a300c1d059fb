"""A second engine, written for reading: Python lists, one request at a time, no kernels.

Same rules as ``sim.replica`` (first come first served, chunked prefill, replay of anchors), so the
two must agree exactly. KV limits, time-outs and several replicas are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies import registry
from policies.base import Policy, StepOutcome, VerifyState
from policies.harness import ConfidenceLag
from sim.workload import Workload


@dataclass
class Request:
    """One request's progress."""

    index: int
    chain: list[int]
    left: list[int]
    prompt: int
    output: int
    slot: int = -1
    to_prefill: int = 0
    generated: int = 0
    drafted: int = 0
    fresh: bool = True
    rounds: int = 0
    verified: int = 0
    accepted: int = 0
    first_token_s: float = 0.0
    finish_s: float = 0.0


def serve(
    traces: AcceptanceTraces,
    latency: LatencyModel,
    workload: Workload,
    policy_name: str,
    max_requests: int,
    max_step_tokens: int,
    log: list[dict] | None = None,
) -> list[Request]:
    """Run everything; returns the requests in workload order, and logs steps as a live run does."""
    policy = registry.create(policy_name, traces.gamma)
    cost = latency.cost_table(policy.cost_rule)
    lag = ConfidenceLag(max_requests, traces.gamma, policy.lag)
    requests = [_request(traces, workload, i) for i in range(workload.requests)]
    waiting, running, prefilling = list(requests), [], []
    free, now_s, step = list(range(max_requests))[::-1], 0.0, 0
    first = traces.gamma if policy.first_draft is None else policy.first_draft
    while waiting or running or prefilling:
        if not running and not prefilling:
            now_s = max(now_s, workload.arrival_s[waiting[0].index])
        for request in running:
            if request.fresh:
                request.drafted = first
        budget = max_step_tokens - sum(1 + r.drafted for r in running)
        chunks = []
        for request in prefilling:
            chunks.append(max(0, min(budget, request.to_prefill)))
            budget -= chunks[-1]
        while waiting and free and budget > 0 and workload.arrival_s[waiting[0].index] <= now_s:
            request = waiting.pop(0)
            request.slot, request.to_prefill = free.pop(), request.prompt
            lag.admit(request.slot)
            prefilling.append(request)
            chunks.append(min(budget, request.to_prefill))
            budget -= chunks[-1]
        ends = sum(chunk == r.to_prefill for r, chunk in zip(prefilling, chunks, strict=True))
        lengths = np.zeros(0, dtype=int)
        drafts = lengths
        seconds = 0.0
        if running:
            state = _state(traces, policy, cost, lag, running, step, now_s, sum(chunks), ends)
            plan = policy.plan(state)
            lengths = plan.lengths
            drafts = np.full(len(running), traces.gamma) if plan.draft is None else plan.draft
            drafting = [r for r in running if r.drafted]
            seconds = latency.step_time_s(
                len(drafting),
                max((r.drafted for r in drafting), default=0),
                len(running) + sum(chunks) + int(lengths.sum()),
                adaptive=plan.adaptive,
                prefill_tokens=sum(chunks),
            )
        else:
            seconds = latency.step_time_s(0, 0, sum(chunks))
        now_s += seconds
        if log is not None:
            ids = [r.index for r in running]
            entry = {"prefill_tokens": sum(chunks), "step_time_s": seconds}
            log.append({"step": step, "request_ids": ids} | entry)
        hits = [_walk(traces, r, int(length)) for r, length in zip(running, lengths, strict=True)]
        done = [r.generated >= r.output for r in running]
        if running:
            policy.observe(
                StepOutcome(step, state.slots, lengths, np.array(hits), state.current,
                            np.array(done), seconds)
            )  # fmt: skip
        for request, draft in zip(running, drafts, strict=True):
            request.drafted, request.fresh = int(draft), False
        for request, chunk in zip(list(prefilling), chunks, strict=True):
            request.to_prefill -= chunk
            if request.to_prefill == 0:
                prefilling.remove(request)
                running.append(request)
                request.generated, request.first_token_s = 1, now_s
        for request in [r for r in running if r.generated >= r.output]:
            request.finish_s = now_s
            free.append(request.slot)
            running.remove(request)
        step += 1
    return requests


def _request(traces: AcceptanceTraces, workload: Workload, index: int) -> Request:
    """The request with its whole chain of anchors laid out."""
    response, output = int(workload.response[index]), int(workload.output_tokens[index])
    begin = int(workload.start[index])
    chain: list[int] = []
    left: list[int] = []
    mates = traces.of_domain(int(traces.domain[response])).tolist()
    while len(chain) < output:
        first, last = traces.first_anchor[response], traces.first_anchor[response + 1]
        chain += range(int(first) + begin, int(last))
        left += [int(last) - a for a in range(int(first) + begin, int(last))]
        response, begin = mates[(mates.index(response) + 1) % len(mates)], 0
    return Request(index, chain, left, int(workload.prompt_tokens[index]), output)


def _walk(traces: AcceptanceTraces, request: Request, length: int) -> int:
    at = request.generated - 1
    wanted = request.output - request.generated
    hit = min(int(traces.accepted[request.chain[at]]), length, wanted)
    request.generated += min(hit + 1, request.left[at], wanted)
    request.rounds += 1
    request.verified += length
    request.accepted += hit
    return hit


def _state(
    traces: AcceptanceTraces, policy: Policy, cost, lag: ConfidenceLag, running: list[Request],
    step: int, now_s: float, chunk_tokens: int, ends: int,
) -> VerifyState:  # fmt: skip
    def column(values) -> np.ndarray:
        return np.array(list(values), dtype=np.int64)

    anchors = [r.chain[r.generated - 1] for r in running]
    drafted = column(r.drafted for r in running)
    slots = column(r.slot for r in running)
    current = traces.confidence[anchors].astype(float)
    current[np.arange(traces.gamma) >= drafted[:, None]] = 0.0
    n = len(running)
    return VerifyState(
        step=step, time_s=now_s, current=current, lagged=lag.push(slots, current).copy(),
        drafted=drafted, slots=slots, fresh=np.array([r.fresh for r in running]),
        context_tokens=column(r.prompt + r.generated - 1 for r in running),
        generated_tokens=column(r.generated for r in running), domain=np.zeros(n, dtype=np.int64),
        slo_class=np.zeros(n, dtype=np.int64), slack_s=np.full(n, np.inf),
        other_tokens=n + chunk_tokens, sampling_requests=n + ends, queue_length=0, cost=cost,
    )  # fmt: skip
