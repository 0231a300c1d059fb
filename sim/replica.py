"""One engine replica: three verbs, admit, plan, advance. ``sim.group`` calls them in time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies.base import Policy, StepOutcome, VerifyPlan, VerifyState
from policies.cost import CostTable
from policies.harness import check_plan
from sim import admission, commit
from sim import state as s
from sim.state import PREFILL_MODES, Floats, Ints, successors

UNLIMITED_BLOCKS = 1 << 40
RECORD_STEPS = 256
"""Steps between two looks at whether the record arrays have room."""
ALL = np.empty(0, dtype=np.int64)
"""Stands for "draft all gamma" in the kernels."""
NOTHING = VerifyPlan(ALL, None, False)
"""The plan of a step without decoding requests."""


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
    """Who wants to know what becomes of a replica's requests."""

    def ended(self, replica: Replica, requests: Ints, now_s: float) -> None:
        """These requests have left the replica for good."""


class Replica:
    """State of one replica. Arrays are laid out as ``sim.state`` says."""

    def __init__(
        self,
        index: int,
        world: World,
        policy: Policy,
        cost: CostTable,
        source: Source,
        seed: np.random.SeedSequence,
    ) -> None:
        self.index, self.world, self.source = index, world, source
        self.policy, self.cost = policy, cost
        self.learns = type(policy).observe is not Policy.observe
        self.clock = StepClock(world, np.random.default_rng(seed))
        self._allocate_rows(world.config, world.traces.gamma)
        self._allocate_policy(world.traces.gamma)
        self._allocate_records(world.traces)
        self.view = View(self)
        self._steps = self._pushes = 0

    def _allocate_rows(self, config: EngineConfig, gamma: int) -> None:
        rows = config.max_requests
        self.rows_i = np.zeros((s.INT_FIELDS, rows), dtype=np.int64)
        self.rows_f = np.zeros((s.FLOAT_FIELDS, rows))
        self.counts = np.zeros(s.COUNTS, dtype=np.int64)
        self.counts[s.FREE_SLOTS], self.counts[s.FREE_BLOCKS] = rows, config.blocks
        self.slots = np.arange(rows)[::-1].copy()
        self.queue = np.zeros(4 * rows, dtype=np.int64)
        self.counts[s.HEAD] = self.counts[s.TAIL] = rows
        self.limits = np.zeros(s.LIMITS, dtype=np.int64)
        self.limits[s.MAX_REQUESTS], self.limits[s.MAX_TOKENS] = rows, config.max_step_tokens
        self.limits[s.BLOCK_TOKENS], self.limits[s.TOTAL_BLOCKS] = (
            config.block_tokens,
            config.blocks,
        )
        self.limits[s.GROWTH] = 1 + gamma
        self.limits[s.MODE] = PREFILL_MODES.index(config.prefill)
        self.limits[s.MEAN_OUTPUT] = self.world.mean_output_tokens

    def _allocate_policy(self, gamma: int) -> None:
        rows = self.world.config.max_requests
        self.ring = np.ones((self.policy.lag + 1, rows, gamma))
        self.current = np.zeros((rows, gamma))
        self.lagged = np.zeros((rows, gamma)) if self.policy.lag else self.current
        self.fresh, self.finished = np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_)
        self.slack_s = np.zeros(rows)
        self.tpot_target_s = np.array(self.world.config.tpot_target_s)
        self.accepted = np.zeros(rows, dtype=np.int64)

    def _allocate_records(self, traces: AcceptanceTraces) -> None:
        rows, block = self.world.config.max_requests, traces.gamma + 1
        self.successor = successors(traces)
        self.outcomes = np.zeros((len(traces.domains), block, block), dtype=np.int64)
        self.steps_i = np.zeros((RECORD_STEPS, s.STEP_INTS), dtype=np.int32)
        self.steps_f = np.zeros((RECORD_STEPS, 2))
        self.stalls_i = np.zeros((RECORD_STEPS * rows, 2), dtype=np.int64)
        self.stalls_f = np.zeros(RECORD_STEPS * rows)
        self.ended, self.keep = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return int(self.counts[s.TAIL] - self.counts[s.HEAD])

    def enqueue(self, requests: Ints) -> None:
        """Append arrived requests to the waiting line."""
        if self.counts[s.TAIL] + requests.size > self.queue.size:
            self._make_room(requests.size)
        commit.enqueue(requests, self.queue, self.counts, self.limits, self.world.lines_i)

    def _make_room(self, wanted: int) -> None:
        """Move the line to the front, keeping room for every running request to return to it."""
        waiting = self.queue[self.counts[s.HEAD] : self.counts[s.TAIL]].copy()
        front = self.world.config.max_requests
        size = front + 2 * (waiting.size + wanted)
        if size > self.queue.size:
            self.queue = np.zeros(size, dtype=np.int64)
        self.queue[front : front + waiting.size] = waiting
        self.counts[s.HEAD], self.counts[s.TAIL] = front, front + waiting.size

    def admit(self, now_s: float) -> bool:
        """Fill the step with requests; False when there is nothing to run."""
        first = self.policy.first_draft
        self.limits[s.FIRST_DRAFT] = self.current.shape[1] if first is None else first
        while True:
            admission.begin(
                self.rows_i, self.rows_f, self.world.lines_i, self.world.lines_f, self.counts,
                self.slots, self.queue, self.ring, self.limits, self.ended,
                self.world.traces.confidence, self._pushes, self.current, self.lagged, self.fresh,
                self.slack_s, self.tpot_target_s, now_s, self.index,
            )  # fmt: skip
            if not self._tell_ended(now_s):  # who left may have made room or sent a successor
                return bool(self.counts[s.ROWS])

    def plan(self, now_s: float) -> tuple[VerifyPlan, float]:
        """Ask the policy, and let the world say how long that step takes."""
        counts = self.counts.tolist()
        if not counts[s.DECODING]:
            return NOTHING, self.clock.step_time_s(counts, 0, False)
        self._pushes += 1
        state = self.view.state(counts, now_s)
        plan = self.policy.plan(state)
        if self.world.config.check:
            check_plan(self.policy, state, plan)
        return plan, self.clock.step_time_s(counts, int(plan.lengths.sum()), plan.adaptive)

    def advance(self, plan: VerifyPlan, start_s: float, now_s: float) -> None:
        """Commit the step: tokens, records, ends; then tell the policy and the source."""
        step = self._steps
        if step % RECORD_STEPS == 0:
            self._grow_records()
        self._steps = step + 1
        commit.advance(
            self.rows_i, self.rows_f, self.world.lines_i, self.world.lines_f, self.counts,
            self.slots, self.limits, plan.lengths, ALL if plan.draft is None else plan.draft,
            self.world.traces.accepted, self.world.traces.first_anchor, self.successor,
            self.accepted, self.finished, self.ended, self.outcomes, self.steps_i, self.steps_f,
            self.stalls_i, self.stalls_f, start_s, now_s, self.index,
        )  # fmt: skip
        if self.learns and plan.lengths.size:
            self.policy.observe(self.view.outcome(plan, step, now_s - start_s))
        if self.counts[s.ENDED]:
            commit.compact(self.rows_i, self.rows_f, self.counts, self.finished, self.keep)
            self._tell_ended(now_s)

    def drop_all(self) -> Ints:
        """The replica fails: everything it holds, running (oldest first) and waiting, is let go.

        Tokens already sent stay with their requests; what was cached is lost.
        """
        running = [
            admission.evict_last(
                self.rows_i, self.rows_f, self.world.lines_i, self.world.lines_f, self.counts,
                self.slots,
            )
            for _ in range(int(self.counts[s.ROWS]))
        ]  # fmt: skip
        waiting = self.queue[self.counts[s.HEAD] : self.counts[s.TAIL]]
        dropped = np.concatenate([np.array(running[::-1], dtype=np.int64), waiting])
        self.counts[s.HEAD] = self.counts[s.TAIL] = self.world.config.max_requests
        self.counts[s.OUTSTANDING] = self.counts[s.FIRST_TOKENS] = 0
        self.world.lines_i[dropped[: len(running)], s.RETRIES] += 1
        return dropped

    def _tell_ended(self, now_s: float) -> bool:
        ended = int(self.counts[s.ENDED])
        if ended:
            self.source.ended(self, self.ended[:ended], now_s)
        return ended > 0

    def _grow_records(self) -> None:
        """Make room for the next ``RECORD_STEPS`` steps."""
        if self._steps + RECORD_STEPS > self.steps_f.shape[0]:
            self.steps_i, self.steps_f = _doubled(self.steps_i), _doubled(self.steps_f)
        if self.counts[s.STALLS] + RECORD_STEPS * self.finished.size > self.stalls_f.size:
            self.stalls_i, self.stalls_f = _doubled(self.stalls_i), _doubled(self.stalls_f)


class StepClock:
    """How long steps take: the latency model, with its noise."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.model, self.extrapolate = world.latency, world.config.extrapolate
        self.verify_s: list[float] = world.latency.verify_s.tolist()
        self.draft_s: list[list[float]] = world.latency.draft_s.tolist()
        self.spread = world.latency.spread if world.config.spread else 0.0
        self.noise = self._noise(rng)

    def step_time_s(self, counts: list[int], budget: int, adaptive: bool) -> float:
        """Seconds of a step that verifies ``budget`` drafts (``LatencyModel``'s formula)."""
        model, context = self.model, counts[s.CONTEXT_SUM]
        if context > model.max_context_tokens:
            model.check_range(0, 0, context, self.extrapolate)
        tokens = counts[s.DECODING] + counts[s.PREFILL_TOKENS] + budget
        seconds = model.overhead_s + self.verify_s[tokens] + model.context_s * context
        if counts[s.DECODING] and counts[s.LONGEST]:
            seconds += self.draft_s[counts[s.LONGEST]][counts[s.DRAFTING]]
            seconds += model.draft_context_s * counts[s.DRAFT_CONTEXT]
            seconds += model.refill_s * counts[s.REFILL]
        if adaptive:
            seconds += model.adaptive_s
        return seconds * next(self.noise)

    def _noise(self, rng: np.random.Generator) -> Generator[float, None, None]:
        """Factors on the median step time, drawn in blocks."""
        if not self.spread:
            yield from repeat(1.0)
        while True:
            yield from np.exp(self.spread * rng.standard_normal(1024)).tolist()


class View:
    """Read-only windows on a replica's arrays, cut to the decoding rows."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        rows = replica.rows_i
        fields = (s.DRAFTED, s.SLOT), (s.CONTEXT, s.GENERATED, s.DOMAIN, s.SLO_CLASS)
        self._seen = [
            _read_only(array)
            for array in (
                replica.current,
                replica.lagged,
                *(rows[field] for field in fields[0]),
                replica.fresh,
                *(rows[field] for field in fields[1]),
                replica.slack_s,
            )
        ]
        self.accepted, self.finished = _read_only(replica.accepted), _read_only(replica.finished)
        self._cuts: dict[int, list[npt.NDArray[Any]]] = {}

    def _cut(self, rows: int) -> list[npt.NDArray[Any]]:
        """The windows' first rows; kept, since the same few counts come again and again."""
        if rows not in self._cuts:
            self._cuts[rows] = [array[:rows] for array in self._seen]
        return self._cuts[rows]

    def state(self, counts: list[int], now_s: float) -> VerifyState:
        """What the policy sees at the start of a step."""
        rows = counts[s.DECODING]
        return VerifyState._make(
            (
                counts[s.STEP],
                now_s,
                *self._cut(rows),
                rows + counts[s.PREFILL_TOKENS],
                rows + counts[s.PREFILL_ENDS],
                counts[s.TAIL] - counts[s.HEAD],
                self.replica.cost,
                self._truth(rows) if self.replica.policy.analysis_only else None,
            )
        )

    def _truth(self, rows: int) -> Ints:
        recorded = self.replica.world.traces.accepted
        truth: Ints = recorded[self.replica.rows_i[s.ANCHOR, :rows]].astype(np.int64)
        return truth

    def outcome(self, plan: VerifyPlan, step: int, step_time_s: float) -> StepOutcome:
        """What the policy learns after the step, rows as they were when it planned."""
        rows = plan.lengths.size
        current, _, _, slots, *_ = self._cut(rows)
        accepted, finished = self.accepted[:rows], self.finished[:rows]
        return StepOutcome(step, slots, plan.lengths, accepted, current, finished, step_time_s)


def _doubled(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([array, np.zeros_like(array)])


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.setflags(write=False)
    return view
