"""One engine replica: a SimPy process whose loop is three verbs, admit, plan, advance."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import simpy

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies.base import Policy, StepOutcome, VerifyPlan, VerifyState
from policies.cost import CostTable
from policies.harness import check_plan
from sim import kernels
from sim.state import (
    ANCHOR,
    CONTEXT,
    CONTEXT_SUM,
    COUNTS,
    DECODING,
    DOMAIN,
    DRAFT_CONTEXT,
    DRAFTED,
    DRAFTING,
    ENDED,
    FLOAT_FIELDS,
    FREE_BLOCKS,
    FREE_SLOTS,
    GENERATED,
    HEAD,
    INT_FIELDS,
    LONGEST,
    OUTSTANDING,
    PREFILL_ENDS,
    PREFILL_TOKENS,
    PROMPT,
    REFILL,
    ROWS,
    SLO_CLASS,
    SLOT,
    STALLS,
    STEP,
    STEP_INTS,
    TAIL,
    Floats,
    Ints,
    successors,
)

PREFILL_MODES = ("chunked", "separate", "none")
UNLIMITED_BLOCKS = 1 << 40
NO_DRAFT = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of one replica."""

    max_requests: int = 64
    """Requests that run at once."""
    max_step_tokens: int = 2048
    """Target tokens of one step: anchors, drafts and prefill chunks."""
    prefill: str = "chunked"
    """``chunked``: prompts share steps with decoding; ``separate``: another pool prefills;
    ``none``: prompts cost nothing."""
    kv_tokens: int = 0
    """Tokens that the KV cache holds; 0 for no limit."""
    block_tokens: int = 16
    """KV cache page size."""
    tpot_target_s: tuple[float, ...] = (np.inf, np.inf, np.inf)
    """Per SLO class, what ``VerifyState.slack_s`` counts against."""
    spread: bool = True
    """Step times vary as profiled; False: every step takes its median."""
    extrapolate: bool = False
    """Allow steps outside the latency profile (the origin says so)."""
    check: bool = False
    """Verify invariants after every step (slow)."""

    @property
    def blocks(self) -> int:
        return self.kv_tokens // self.block_tokens if self.kv_tokens else UNLIMITED_BLOCKS


@dataclass(frozen=True)
class World:
    """What is true of a run whatever the policy decides: traces, step times, request tables."""

    traces: AcceptanceTraces
    latency: LatencyModel
    config: EngineConfig
    lines_i: Ints
    lines_f: Floats
    mean_output_tokens: int


class Source(Protocol):
    """Where a replica's requests come from and go to."""

    def deliver(self, now_s: float) -> None:
        """Queue every request that has arrived by now at the replica it is routed to."""

    def idle(self, replica: Replica) -> simpy.Event:
        """An event that fires when the replica has been given work."""

    def ended(self, replica: Replica, requests: Ints, now_s: float) -> None:
        """These requests have left the replica for good."""


class Replica:
    """State and process of one replica. Arrays are laid out as ``sim.state`` says."""

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        world: World,
        policy: Policy,
        cost: CostTable,
        source: Source,
        seed: np.random.SeedSequence,
    ) -> None:
        self.env, self.index, self.world, self.source = env, index, world, source
        self.policy, self.cost = policy, cost
        self._allocate(world.config, world.traces, policy)
        self._noise = _noise(world, np.random.default_rng(seed))
        self._pushes = 0

    def _allocate(self, config: EngineConfig, traces: AcceptanceTraces, policy: Policy) -> None:
        slots, gamma = config.max_requests, traces.gamma
        self.rows_i = np.zeros((INT_FIELDS, slots), dtype=np.int64)
        self.rows_f = np.zeros((FLOAT_FIELDS, slots))
        self.counts = np.zeros(COUNTS, dtype=np.int64)
        self.counts[FREE_SLOTS], self.counts[FREE_BLOCKS] = slots, config.blocks
        self.slots = np.arange(slots)[::-1].copy()
        self.queue = np.zeros(4 * slots, dtype=np.int64)
        self.counts[HEAD] = self.counts[TAIL] = slots
        self.ring = np.ones((policy.lag + 1, slots, gamma))
        self.limits = np.array(
            [
                slots,
                config.max_step_tokens,
                config.block_tokens,
                1 + gamma,
                PREFILL_MODES.index(config.prefill),
                gamma,
                self.world.mean_output_tokens,
            ]
        )
        self.current = np.zeros((slots, gamma))
        self.lagged = np.zeros((slots, gamma)) if policy.lag else self.current
        self.fresh = np.zeros(slots, dtype=np.bool_)
        self.finished = np.zeros(slots, dtype=np.bool_)
        self.slack_s = np.zeros(slots)
        self.tpot_target_s = np.array(config.tpot_target_s)
        self.accepted = np.zeros(slots, dtype=np.int64)
        self.ended_now = np.zeros(slots, dtype=np.int64)
        self.keep = np.zeros(slots, dtype=np.int64)
        self.successor = successors(traces)
        self.outcomes = np.zeros((len(traces.domains), gamma + 1, gamma + 1), dtype=np.int64)
        self.steps_i = np.zeros((1024, STEP_INTS), dtype=np.int32)
        self.steps_f = np.zeros((1024, 2))
        self.stalls_i = np.zeros((1024 + slots, 2), dtype=np.int64)
        self.stalls_f = np.zeros(1024 + slots)
        self._view = _View(self)

    def enqueue(self, requests: Ints) -> None:
        """Append arrived requests to the waiting line."""
        tail = int(self.counts[TAIL])
        if tail + requests.size > self.queue.size:
            tail = self._make_room(requests.size)
        self.queue[tail : tail + requests.size] = requests
        self.counts[TAIL] = tail + requests.size
        prompts = int(self.world.lines_i[requests, PROMPT].sum())
        self.counts[OUTSTANDING] += prompts + self.world.mean_output_tokens * requests.size

    def _make_room(self, wanted: int) -> int:
        """Move the line to the front, keeping room for every running request to return to it."""
        waiting = self.queue[self.counts[HEAD] : self.counts[TAIL]].copy()
        front = self.world.config.max_requests
        size = front + 2 * (waiting.size + wanted)
        if size > self.queue.size:
            self.queue = np.zeros(size, dtype=np.int64)
        self.queue[front : front + waiting.size] = waiting
        self.counts[HEAD], self.counts[TAIL] = front, front + waiting.size
        return front + waiting.size

    def run(self) -> Generator[simpy.Event, Any, None]:
        """The SimPy process: steps back to back while there is work, then wait for some."""
        env = self.env
        while True:
            self.source.deliver(env.now)
            if not self.admit(env.now):
                yield self.source.idle(self)
                continue
            start_s = env.now
            plan, step_time_s = self.plan(start_s)
            yield env.timeout(step_time_s)
            self.source.deliver(env.now)  # arrivals of the step were routed on the loads it had
            self.advance(plan, start_s, env.now)

    def admit(self, now_s: float) -> bool:
        """Fill the step with requests; False when there is nothing to run."""
        first = self.policy.first_draft
        self.limits[kernels.FIRST_DRAFT] = self.current.shape[1] if first is None else first
        kernels.admit(
            self.rows_i, self.rows_f, self.world.lines_i, self.world.lines_f, self.counts,
            self.slots, self.queue, self.ring, self.limits, self.ended_now, now_s, self.index,
        )  # fmt: skip
        self._tell_ended(now_s)
        return bool(self.counts[ROWS])

    def plan(self, now_s: float) -> tuple[VerifyPlan, float]:
        """Ask the policy, and let the world say how long that step takes."""
        counts = self.counts
        policy = self.policy
        if not counts[DECODING]:
            return VerifyPlan(NO_DRAFT, None, False), self._prefill_time_s()
        kernels.present(
            self.rows_i, self.rows_f, counts, self.limits, self.world.traces.confidence, self.ring,
            policy.lag, self._pushes, self.current, self.lagged, self.fresh, self.slack_s,
            self.tpot_target_s, now_s,
        )  # fmt: skip
        self._pushes += 1
        state = self._view.state(now_s)
        plan = policy.plan(state)
        if self.world.config.check:
            check_plan(policy, state, plan)
        return plan, self._step_time_s(int(plan.lengths.sum()), plan.adaptive)

    def _prefill_time_s(self) -> float:
        counts, latency = self.counts, self.world.latency
        tokens, context = int(counts[PREFILL_TOKENS]), int(counts[CONTEXT_SUM])
        self._check_context(context)
        return latency.step_time_s(0, 0, tokens, context) * next(self._noise)

    def _step_time_s(self, budget: int, adaptive: bool) -> float:
        counts, latency = self.counts.tolist(), self.world.latency
        context = counts[CONTEXT_SUM]
        self._check_context(context)
        seconds = latency.step_time_s(
            counts[DRAFTING],
            counts[LONGEST],
            counts[DECODING] + counts[PREFILL_TOKENS] + budget,
            context,
            adaptive,
            counts[DRAFT_CONTEXT],
        )
        return (seconds + latency.refill_s * counts[REFILL]) * next(self._noise)

    def _check_context(self, context_tokens: int) -> None:
        if context_tokens > self.world.latency.max_context_tokens:
            self.world.latency.check_range(0, 0, context_tokens, self.world.config.extrapolate)

    def advance(self, plan: VerifyPlan, start_s: float, now_s: float) -> None:
        """Commit the step: tokens, records, ends; then tell the policy and the source."""
        counts, view = self.counts, self._view
        step = int(counts[STEP])
        self._grow_records(step)
        self.steps_f[step, 0], self.steps_f[step, 1] = start_s, now_s
        kernels.advance(
            self.rows_i, self.rows_f, self.world.lines_i, self.world.lines_f, counts, self.slots,
            self.limits, plan.lengths, NO_DRAFT if plan.draft is None else plan.draft,
            self.world.traces.accepted, self.world.traces.first_anchor, self.successor,
            self.accepted, self.finished, self.ended_now, self.outcomes, self.steps_i,
            self.stalls_i, self.stalls_f, start_s, now_s, self.index,
        )  # fmt: skip
        if plan.lengths.size:
            self.policy.observe(view.outcome(plan, step, now_s - start_s))
        if counts[ENDED]:
            kernels.compact(self.rows_i, self.rows_f, counts, self.finished, self.keep)
            self._tell_ended(now_s)

    def _tell_ended(self, now_s: float) -> None:
        ended = int(self.counts[ENDED])
        if ended:
            self.source.ended(self, self.ended_now[:ended], now_s)

    def _grow_records(self, step: int) -> None:
        if step == self.steps_f.shape[0]:
            self.steps_i = np.concatenate([self.steps_i, np.zeros_like(self.steps_i)])
            self.steps_f = np.concatenate([self.steps_f, np.zeros_like(self.steps_f)])
        if self.counts[STALLS] + self.finished.size > self.stalls_f.size:
            self.stalls_i = np.concatenate([self.stalls_i, np.zeros_like(self.stalls_i)])
            self.stalls_f = np.concatenate([self.stalls_f, np.zeros_like(self.stalls_f)])


class _View:
    """Read-only windows on a replica's arrays, cut to the decoding rows for each call."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        rows = replica.rows_i
        self.slots, self.context = _read_only(rows[SLOT]), _read_only(rows[CONTEXT])
        self.drafted, self.generated = _read_only(rows[DRAFTED]), _read_only(rows[GENERATED])
        self.domain, self.slo_class = _read_only(rows[DOMAIN]), _read_only(rows[SLO_CLASS])
        self.current, self.lagged = _read_only(replica.current), _read_only(replica.lagged)
        self.fresh, self.slack_s = _read_only(replica.fresh), _read_only(replica.slack_s)
        self.accepted, self.finished = _read_only(replica.accepted), _read_only(replica.finished)

    def state(self, now_s: float) -> VerifyState:
        """What the policy sees at the start of a step."""
        replica = self.replica
        counts = replica.counts.tolist()
        n = counts[DECODING]
        return VerifyState(
            counts[STEP],
            now_s,
            self.current[:n],
            self.lagged[:n],
            self.drafted[:n],
            self.slots[:n],
            self.fresh[:n],
            self.context[:n],
            self.generated[:n],
            self.domain[:n],
            self.slo_class[:n],
            self.slack_s[:n],
            n + counts[PREFILL_TOKENS],
            n + counts[PREFILL_ENDS],
            counts[TAIL] - counts[HEAD],
            replica.cost,
            self._truth(n) if replica.policy.analysis_only else None,
        )

    def _truth(self, n: int) -> Ints:
        recorded = self.replica.world.traces.accepted
        return recorded[self.replica.rows_i[ANCHOR, :n]].astype(np.int64)

    def outcome(self, plan: VerifyPlan, step: int, step_time_s: float) -> StepOutcome:
        """What the policy learns after the step, rows as they were when it planned."""
        n = plan.lengths.size
        return StepOutcome(
            step,
            self.slots[:n],
            plan.lengths,
            self.accepted[:n],
            self.current[:n],
            self.finished[:n],
            step_time_s,
        )


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.setflags(write=False)
    return view


def _noise(world: World, rng: np.random.Generator) -> Generator[float, None, None]:
    """Factors on the median step time, drawn in blocks."""
    spread = world.latency.spread if world.config.spread else 0.0
    while True:
        block = np.exp(spread * rng.standard_normal(1024)) if spread else np.ones(1024)
        yield from block.tolist()
