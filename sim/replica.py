"""One engine replica: three verbs, admit, plan, advance. ``sim.group`` calls them in time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpu_traces.schema import AcceptanceTraces
from policies.base import Policy, VerifyPlan
from policies.cost import CostTable
from policies.harness import check_plan
from sim import admission, commit
from sim import state as s
from sim.clock import StepClock
from sim.state import PREFILL_MODES, Ints, successors
from sim.view import View
from sim.world import EngineConfig, World

RECORD_STEPS = 256
"""Steps between two looks at whether the record arrays have room."""
ALL = np.empty(0, dtype=np.int64)
"""Stands for "draft all gamma" in the kernels."""
NOTHING = VerifyPlan(ALL, None, False)
"""The plan of a step without decoding requests."""


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
        self.gamma = world.traces.gamma
        self.learns = type(policy).observe is not Policy.observe
        self.clock = StepClock(world, np.random.default_rng(seed))
        self._allocate_rows(world.config, world.traces.gamma)
        self._allocate_policy(world.traces.gamma)
        self._allocate_records(world.traces)
        self.view = View(self)
        self._steps = self._pushes = 0
        self._bind()

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
        self.ended = np.zeros(rows, dtype=np.int64)

    def _bind(self) -> None:
        """Collect the kernels' arrays; again whenever one of them is replaced."""
        world, traces = self.world, self.world.traces
        self._of_admit = (
            self.rows_i, self.rows_f, world.lines_i, world.lines_f, self.counts, self.slots,
            self.queue, self.ring, self.limits, self.ended, traces.confidence, self.current,
            self.lagged, self.fresh, self.slack_s, self.tpot_target_s, self.index,
        )  # fmt: skip
        self._of_advance = (
            self.rows_i, self.rows_f, world.lines_i, world.lines_f, self.counts, self.slots,
            self.limits, traces.accepted, traces.first_anchor, self.successor, self.accepted,
            self.finished, self.ended, self.outcomes, self.steps_i, self.steps_f, self.stalls_i,
            self.stalls_f, self.index,
        )  # fmt: skip

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
            self._bind()
        self.queue[front : front + waiting.size] = waiting
        self.counts[s.HEAD], self.counts[s.TAIL] = front, front + waiting.size

    def admit(self, now_s: float) -> bool:
        """Fill the step with requests; False when there is nothing to run."""
        first = self.policy.first_draft
        self.limits[s.FIRST_DRAFT] = self.gamma if first is None else first
        while ended := admission.begin(*self._of_admit, self._pushes, now_s):
            self.source.ended(self, self.ended[:ended], now_s)  # may make room or send a successor
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
        return plan, self.clock.step_time_s(counts, commit.total(plan.lengths), plan.adaptive)

    def advance(self, plan: VerifyPlan, start_s: float, now_s: float) -> None:
        """Commit the step: tokens, records, ends; then tell the policy and the source."""
        step = self._steps
        if step % RECORD_STEPS == 0:
            self._grow_records()
        self._steps = step + 1
        draft = ALL if plan.draft is None else plan.draft
        ended = commit.advance(*self._of_advance, plan.lengths, draft, start_s, now_s)
        if self.learns and plan.lengths.size:
            self.policy.observe(self.view.outcome(plan, step, now_s - start_s))
        if ended:
            commit.compact(self.rows_i, self.rows_f, self.counts, self.finished)
            self.source.ended(self, self.ended[:ended], now_s)

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

    def _grow_records(self) -> None:
        """Make room for the next ``RECORD_STEPS`` steps."""
        if self._steps + RECORD_STEPS > self.steps_f.shape[0]:
            self.steps_i, self.steps_f = _doubled(self.steps_i), _doubled(self.steps_f)
        if self.counts[s.STALLS] + RECORD_STEPS * self.finished.size > self.stalls_f.size:
            self.stalls_i, self.stalls_f = _doubled(self.stalls_i), _doubled(self.stalls_f)
        self._bind()


def _doubled(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([array, np.zeros_like(array)])
