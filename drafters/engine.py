"""The live decode loop: continuous batching of real models under a verification policy.

A step is three verbs. ``admit`` fills it: requests join, each prompt gets its chunk. ``plan``
drafts a block for the running requests and asks the policy how much of each to verify. ``advance``
runs one ragged target pass over anchors, chosen drafts and prompt chunks, accepts, and commits.
The policy sees what it sees in the simulator (``policies.base``, ``policies.harness``), and what a
step commits follows ``gpu_traces.schema``, so a simulator that replays recorded traces takes the
same rounds at temperature 0.

Cache slots are compact: decoding requests in 0 .. D - 1, after them those still in prefill; the
last one takes the place of one that leaves. Policies see other slots, which stay.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from drafters.base import Drafter
from drafters.beliefs import column, confidences
from drafters.drafting import Block
from drafters.errors import UserError
from drafters.limits import EngineConfig, block_pool, check, effective, make_runner, refusal
from drafters.records import StepLog, Stopwatch
from drafters.request import Request, Running, stream_of
from drafters.runner import Runner
from drafters.target import Target
from gpu_traces.manifest import Calibration
from policies.base import Ints, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.cost import CostTable
from policies.harness import ConfidenceLag, check_plan, frozen, rehearse

IDLE_S = 0.05
"""Longest sleep of one step: whoever steps can stop in time."""


@dataclass(frozen=True)
class Step:
    """What ``plan`` decided. ``rows`` are the decoding requests in policy order (by admission),
    ``at`` the cache slot of each."""

    rows: list[Running]
    at: Ints
    block: Block | None
    state: VerifyState
    plan: VerifyPlan


class Engine:
    """Runs submitted requests to their end. ``drafter`` None decodes without speculation."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        policy: Policy,
        cost: CostTable,
        config: EngineConfig,
        stops: frozenset[int] = frozenset(),
        calibration: Sequence[Calibration] = (),
        clock: Callable[[], float] = time.monotonic,
        runner: Runner | None = None,
    ) -> None:
        """``runner``: one made by ``make_runner`` for at least these limits, to be used again.
        UserError for a policy that cannot run live, and for limits that cannot be kept."""
        if policy.analysis_only:
            raise UserError(
                f"policy {policy.name!r} needs the true acceptance; simulate it instead"
            )
        self.policy, self.cost, self.config = policy, cost, config
        self.stops, self.calibration = stops, tuple(calibration)
        self.gamma = drafter.gamma if drafter else cost.gamma
        check(config, self.gamma)
        self.pool = block_pool(config, self.gamma)
        self.runner = runner or make_runner(target, drafter, self.gamma, config)
        self.runner.forget()
        self.watch = Stopwatch(self.runner.device)
        self.lag = ConfidenceLag(config.max_requests, self.gamma, policy.lag)
        self.free_slots = list(range(config.max_requests))[::-1]
        self.rows: list[Running] = []
        self.decoding = 0
        self.chunks: list[int] = []
        self.arriving: deque[Running] = deque()
        self.waiting: deque[Running] = deque()
        self.ended: list[Running] = []
        self.log = StepLog()
        self._admissions = 0
        self._clock, self._started = clock, clock()

    def submit(self, request: Request) -> None:
        """Queue a request; calls in order of arrival. One that cannot run fails alone."""
        request = effective(request)
        row = Running(request, list(request.prompt), stream_of(self.config.seed, request.name))
        row.reason = refusal(
            request, self.runner.target.vocab_size, self.config, self.pool, self.gamma
        )
        (self.ended if row.reason else self.arriving).append(row)

    @property
    def _growth(self) -> int:
        """Tokens that a decoding request may write to the cache in one step."""
        return 1 + self.gamma

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.rows or self.waiting or self.arriving)

    def everyone(self) -> list[Running]:
        """Every request submitted, whatever became of it."""
        return [*self.ended, *self.rows, *self.waiting, *self.arriving]

    def start(self) -> None:
        """Capture what the submitted requests need, rehearse the policy, and set the clock to 0;
        arrivals count from here."""
        self.runner.capture(any(row.request.temperature > 0 for row in self.everyone()))
        rehearse(self.policy, self.gamma, self.cost)
        self._started = self._clock()

    def now_s(self) -> float:
        """Seconds since ``start``, or since the engine was made."""
        return self._clock() - self._started

    @torch.no_grad()
    def step(self) -> None:
        """One engine step; with nothing to run, sleeps until the next arrival or for ``IDLE_S``."""
        self.watch.start()
        start_s = self.now_s()
        if self.admit(start_s):
            self.advance(self.plan(start_s), start_s)
        elif self.arriving:
            wait_s = self.arriving[0].request.arrival_s - start_s
            time.sleep(min(max(wait_s, 0.0), IDLE_S))

    # --- the three verbs ---

    def admit(self, now_s: float) -> bool:
        """Fill the step with requests, first come first served; False when there are none."""
        while self.arriving and self.arriving[0].request.arrival_s <= now_s:
            self.waiting.append(self.arriving.popleft())
        preempted = self._reserve()
        first = self.gamma if self.policy.first_draft is None else self.policy.first_draft
        budget = self.config.max_step_tokens
        for row in self.rows[: self.decoding]:
            if row.fresh:
                row.drafted = first if self.runner.drafts else 0
            budget -= 1 + row.drafted
        self.chunks = []
        for row in self.rows[self.decoding :]:
            budget = self._take_chunk(row, budget)
        while self.waiting and self.free_slots and budget > 0 and not preempted:
            if not self.pool.grow(self.waiting[0], len(self.waiting[0].tokens) + self._growth):
                break
            budget = self._take_chunk(self._enter(self.waiting.popleft()), budget)
        return bool(self.rows)

    def _reserve(self) -> bool:
        """Give each decoding request the blocks that this step may fill, oldest first; for want of
        them the youngest requests go back to the head of the queue. True if any did."""
        preempted = False
        grown = self._growth
        short = [row for row in self.rows[: self.decoding] if self.pool.lacks(row, grown)]
        for row in sorted(short, key=lambda row: row.number):
            while row.slot >= 0 and not self.pool.grow(row, row.cached + self._growth):
                self._preempt(max(self.rows, key=lambda row: row.number))
                preempted = True
        return preempted

    def _preempt(self, row: Running) -> None:
        self._release(row)
        self._close_gap(next(i for i, other in enumerate(self.rows) if other is row))
        row.forget()
        row.preemptions += 1
        self.waiting.appendleft(row)

    def _release(self, row: Running) -> None:
        self.free_slots.append(row.slot)
        self.pool.release(row)
        row.slot = -1

    def _take_chunk(self, row: Running, budget: int) -> int:
        self.chunks.append(max(0, min(budget, row.to_prefill)))
        return budget - self.chunks[-1]

    def _enter(self, row: Running) -> Running:
        row.slot, row.number, row.fresh = self.free_slots.pop(), self._admissions, True
        self.lag.admit(row.slot)
        self._admissions += 1
        self.rows.append(row)
        return row

    def plan(self, now_s: float) -> Step:
        """Draft, and let the policy say how much of it to verify; what it can decide without the
        drafts it decides while a device makes them."""
        self.watch.lap("overhead")
        drafts = self.runner.drafts
        drafting = drafts.begin(self.rows[: self.decoding]) if drafts else None
        self.watch.lap("draft", wait=False)
        at = np.argsort([row.number for row in self.rows[: self.decoding]])
        rows = [self.rows[i] for i in at]
        state = self._state(rows, now_s)
        if rows and self.policy.lag:
            state = state._replace(budget=self.policy.size(state))
        self.watch.lap("plan", wait=False)
        block = drafting.block() if drafting else None
        self.watch.lap("draft")
        plan = VerifyPlan(np.empty(0, dtype=np.int64))
        if rows:
            raw = block.raw if block else None
            seen = confidences(self.rows[: self.decoding], raw, self.gamma, self.calibration)
            current = frozen(seen[at])
            lagged = frozen(self.lag.push(state.slots, current))
            state = state._replace(current=current, lagged=lagged)
            plan = self.policy.plan(state)
            check_plan(self.policy, state, plan)
        self.watch.lap("plan")
        return Step(rows, at, block, state, plan)

    def advance(self, step: Step, start_s: float) -> None:
        """The target pass, acceptance, and everything that follows from it."""
        lengths = np.empty(self.decoding, dtype=np.int64)
        lengths[step.at] = step.plan.lengths
        context_tokens = sum(row.cached for row in self.rows)
        accepted, following, padded = self.runner.verify(
            self.rows, self.chunks, step.block, lengths.tolist()
        )
        self.watch.lap("verify")
        end_s = self.now_s()
        hits = self._commit_blocks(step, lengths.tolist(), accepted, following)
        self._commit_chunks(following[len(step.rows) :], end_s)
        self._want_drafts(step)
        finished = np.array([row.done for row in step.rows], dtype=np.bool_)
        self._leave(end_s)
        if step.rows:
            self._tell(step, hits[step.at], finished, end_s - start_s)
        prefilled = sum(self.chunks)
        self.watch.lap("overhead")
        self.log.add(
            step.rows, step.state.drafted, step.plan.lengths, hits[step.at], context_tokens,
            prefilled, padded, start_s, end_s - start_s, self.watch.spent_us,
        )  # fmt: skip

    # --- parts of plan ---

    def _state(self, rows: list[Running], now_s: float) -> VerifyState:
        """What a policy sees before there are drafts."""
        slots = column([row.slot for row in rows])
        joining = zip(self.rows[self.decoding :], self.chunks, strict=True)
        unknown = frozen(np.full((len(rows), self.gamma), np.nan))
        return VerifyState(
            step=len(self.log),
            time_s=now_s,
            current=unknown,
            lagged=frozen(self.lag.past(slots)) if self.policy.lag else unknown,
            drafted=column([row.drafted for row in rows]),
            slots=slots,
            fresh=frozen(np.array([row.fresh for row in rows], dtype=np.bool_)),
            context_tokens=column([row.cached for row in rows]),
            generated_tokens=column([row.generated for row in rows]),
            domain=column([row.request.domain for row in rows]),
            slo_class=column([0] * len(rows)),
            slack_s=frozen(np.full(len(rows), np.inf)),
            other_tokens=len(rows) + sum(self.chunks),
            sampling_requests=len(rows) + sum(row.ends_prefill(chunk) for row, chunk in joining),
            queue_length=len(self.waiting),
            cost=self.cost,
        )

    # --- parts of advance ---

    def _commit_blocks(
        self, step: Step, lengths: list[int], accepted: list[int], following: list[int]
    ) -> Ints:
        """Give each decoding row its accepted drafts and next token, up to its end; returns the
        drafts that counted, by cache slot."""
        drafts = step.block.tokens if step.block else [[]] * self.decoding
        hits = np.zeros(self.decoding, dtype=np.int64)
        for i, row in enumerate(self.rows[: self.decoding]):
            gained = row.take([*drafts[i][: accepted[i]], following[i]], self.stops)
            hits[i] = min(accepted[i], gained)
            row.cached += gained
            row.rounds += 1
            row.verified += lengths[i]
            row.accepted += int(hits[i])
            row.fresh = False
        return hits

    def _commit_chunks(self, first_tokens: list[int], now_s: float) -> None:
        """Book the prefilled chunks; a prompt that ended gets its first token and decodes next."""
        tokens = iter(first_tokens)
        for row, chunk in zip(self.rows[self.decoding :], self.chunks, strict=True):
            ends = row.ends_prefill(chunk)
            row.cached += chunk
            if ends:
                row.take([next(tokens)], self.stops)
                row.first_token_s = now_s
            if row.to_prefill <= 0:
                self.decoding += 1

    def _want_drafts(self, step: Step) -> None:
        """Drafts of the next step, as the plan says."""
        wanted = step.plan.draft
        for i, row in enumerate(step.rows):
            row.drafted = self.gamma if wanted is None else int(wanted[i])
            if self.runner.drafts is None:
                row.drafted = 0

    def _leave(self, now_s: float) -> None:
        """Take out the requests that are done; the last row of each kind fills the gap."""
        done = [i for i, row in enumerate(self.rows[: self.decoding]) if row.done]
        for row in sorted((self.rows[i] for i in done), key=lambda row: row.number):
            row.finish_s, row.pending = now_s, []
            self._release(row)
            self.ended.append(row)
        for i in reversed(done):
            self._close_gap(i)

    def _close_gap(self, gap: int) -> None:
        """Take row ``gap`` out; the last decoding row, then the last of all, moves up."""
        if gap < self.decoding:
            self.decoding -= 1
        for last in (self.decoding, len(self.rows) - 1):
            if last > gap:
                self.rows[gap] = self.rows[last]
                self.runner.move(last, gap, self.rows[gap])
                gap = last
        self.rows.pop()

    def _tell(
        self, step: Step, hits: Ints, finished: npt.NDArray[np.bool_], step_time_s: float
    ) -> None:
        state, lengths = step.state, step.plan.lengths
        self.policy.observe(
            StepOutcome(
                state.step, state.slots, lengths, hits, state.current, finished, step_time_s
            )
        )
