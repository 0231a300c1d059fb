"""The live decode loop: continuous batching of real models under a verification policy.

A step is three verbs. ``admit`` fills it: requests join, each prompt gets its chunk. ``plan``
drafts a block for the running requests and asks the policy how much of each to verify. ``advance``
runs one ragged target pass over anchors, chosen drafts and prompt chunks, accepts, and commits.
The policy sees what it sees in the simulator (``policies.base``, ``policies.harness``), and what a
step commits follows ``gpu_traces.schema``, so a simulator that replays recorded traces takes the
same rounds at temperature 0.

Rows are in cache slots (``drafters.admission``), a policy's view of them by order of admission.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from drafters.admission import Admission
from drafters.base import Drafter
from drafters.beliefs import column, confidences
from drafters.drafting import Block, Drafting
from drafters.errors import UserError
from drafters.limits import (
    EngineConfig,
    check,
    check_live,
    effective,
    in_memory,
    make_runner,
    refusal,
    too_large,
)
from drafters.records import StepLog, Stopwatch
from drafters.request import Request, Running, stream_of
from drafters.runner import Pass, Runner
from drafters.target import Target
from gpu_traces.manifest import Calibration
from policies.base import Ints, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.cost import CostTable
from policies.harness import ConfidenceLag, check_plan, frozen, rehearse

NOTHING = VerifyPlan(np.empty(0, dtype=np.int64))
"""The plan of a step without decoding requests."""
NOT_FINITE = "the target's logits hold NaN or infinity"
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
    begun: Pass | None
    """The target pass, where it did not have to wait for the host to know the drafts."""


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
        check_live(policy)
        self.policy, self.cost, self.config = policy, cost, config
        self.stops, self.calibration = stops, tuple(calibration)
        self.gamma = drafter.gamma if drafter else cost.gamma
        check(config, self.gamma, target)
        drafting = None if policy.draft_lengths == () else drafter
        self.runner = runner or make_runner(target, drafting, self.gamma, config)
        self.runner.forget()
        self.watch = Stopwatch(self.runner.device)
        self.lag = ConfidenceLag(config.max_requests, self.gamma, policy.lag)
        self.line = Admission(config, self.gamma, self.runner.move, self.runner.wipe)
        self.ended = self.line.ended
        self.log = StepLog()
        self._clock, self._started = clock, clock()

    def submit(self, request: Request) -> None:
        """Queue a request; calls in order of arrival. One that cannot run fails alone."""
        request = effective(request)
        row = Running(request, list(request.prompt), stream_of(self.config.seed, request.name))
        if request.arrival_s is not None:
            row.arrived_s = request.arrival_s
        row.reason = refusal(
            request, self.runner.target.vocab_size, self.config, self.line.pool, self.gamma
        )
        (self.ended if row.reason else self.line.arriving).append(row)

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.line.rows or self.line.waiting or self.line.arriving)

    def everyone(self) -> list[Running]:
        """Every request submitted, whatever became of it."""
        return [*self.ended, *self.line.rows, *self.line.waiting, *self.line.arriving]

    def start(self) -> None:
        """Capture what the submitted requests and the policy need, rehearse the policy, and set the
        clock to 0; arrivals count from here. UserError where memory cannot hold it."""
        lengths = self.policy.draft_lengths
        hot = any(row.request.temperature > 0 for row in self.everyone())
        with in_memory(too_large(self.config)):
            self.runner.capture(hot, (self.gamma,) if lengths is None else lengths)
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
        elif self.line.arriving:
            wait_s = (self.line.arriving[0].request.arrival_s or 0.0) - start_s
            time.sleep(min(max(wait_s, 0.0), IDLE_S))

    # --- the three verbs ---

    def admit(self, now_s: float) -> bool:
        """Fill the step with requests, first come first served; False when there are none."""
        first = self.gamma if self.policy.first_draft is None else self.policy.first_draft
        for row in self.line.decoders:
            if row.fresh:
                row.drafted = first if self.runner.drafts else 0
                self.lag.admit(row.slot)
        return self.line.fill(now_s)

    def plan(self, now_s: float) -> Step:
        """Draft, and let the policy say how much of it to verify. What it can decide without the
        drafts it decides while a device makes them; where that is all, the target pass begins."""
        self.watch.lap("overhead")
        drafts = self.runner.drafts
        drafting = drafts.begin(self.line.decoders) if drafts else None
        self.watch.lap("draft", overlaps=True)
        at = np.argsort([row.number for row in self.line.decoders])
        rows = [self.line.rows[i] for i in at]
        state = self._state(rows, now_s)
        if rows and self.policy.lag:
            state = state._replace(budget=self.policy.size(state))
        plan, begun = self._ahead(state, drafting, at)
        self.watch.lap("plan", overlaps=True)
        block = drafting.block() if drafting else None
        self.watch.lap("draft", waited=begun is not None)
        if rows:
            raw = block.raw if block else None
            seen = confidences(self.line.decoders, raw, self.gamma, self.calibration)
            current = frozen(seen[at])
            lagged = frozen(self.lag.push(state.slots, current))
            state = state._replace(current=current, lagged=lagged)
            plan = plan or self._decide(state)
        self.watch.lap("plan", overlaps=begun is not None)
        return Step(rows, at, block, state, plan or NOTHING, begun)

    def advance(self, step: Step, start_s: float) -> None:
        """The target pass, acceptance, and everything that follows from it."""
        lengths = in_slots(step.plan.lengths, step.at)
        context_tokens = sum(row.cached for row in self.line.rows)
        rows, chunks = self.line.rows, self.line.chunks
        accepted, following, padded = (
            self.runner.judge(step.begun, rows, chunks, step.block, lengths)
            if step.begun
            else self.runner.verify(rows, chunks, step.block, lengths)
        )
        self.watch.lap("verify")
        end_s = self.now_s()
        hits = self._commit_blocks(step, lengths, accepted, following)
        self._commit_chunks(following[len(step.rows) :], end_s)
        self._want_drafts(step)
        finished = np.array([row.done for row in step.rows], dtype=np.bool_)
        self.line.leave(end_s)
        if step.rows:
            self._tell(step, hits[step.at], finished, end_s - start_s)
        prefilled = sum(self.line.chunks)
        self.watch.lap("overhead")
        self.log.add(
            step.rows, step.state.drafted, step.plan.lengths, hits[step.at], context_tokens,
            prefilled, padded, start_s, end_s - start_s, self.watch.spent_us,
        )  # fmt: skip

    # --- parts of plan ---

    def _ahead(
        self, state: VerifyState, drafting: Drafting | None, at: Ints
    ) -> tuple[VerifyPlan | None, Pass | None]:
        """The plan of a policy that needs no confidences, and the pass over it where the device
        knows the drafts by itself; None for what has to wait."""
        if self.policy.needs_confidences or not state.slots.size:
            return None, None
        plan = self._decide(state)
        if drafting is None:
            return plan, None
        lengths = in_slots(plan.lengths, at)
        return plan, self.runner.begin(self.line.rows, self.line.chunks, drafting, lengths)

    def _decide(self, state: VerifyState) -> VerifyPlan:
        plan = self.policy.plan(state)
        try:
            check_plan(self.policy, state, plan)
        except ValueError as error:
            raise UserError(str(error)) from None
        return plan

    def _state(self, rows: list[Running], now_s: float) -> VerifyState:
        """What a policy sees before there are drafts."""
        slots = column([row.slot for row in rows])
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
            other_tokens=len(rows) + sum(self.line.chunks),
            sampling_requests=len(rows)
            + sum(row.ends_prefill(chunk) for row, chunk in self.line.joining),
            queue_length=len(self.line.waiting),
            cost=self.cost,
        )

    # --- parts of advance ---

    def _commit_blocks(
        self, step: Step, lengths: list[int], accepted: list[int], following: list[int]
    ) -> Ints:
        """Give each decoding row its accepted drafts and next token, up to its end; returns the
        drafts that counted, by cache slot."""
        drafts = step.block.tokens if step.block else [[]] * self.line.decoding
        hits = np.zeros(self.line.decoding, dtype=np.int64)
        for i, row in enumerate(self.line.decoders):
            row.rounds += 1
            row.verified += lengths[i]
            row.fresh = False
            if following[i] < 0:
                self._fail(i)
                continue
            gained = row.take([*drafts[i][: accepted[i]], following[i]], self.stops)
            hits[i] = min(accepted[i], gained)
            row.cached += gained
            row.accepted += int(hits[i])
        return hits

    def _commit_chunks(self, first_tokens: list[int], now_s: float) -> None:
        """Book the prefilled chunks; a prompt that ended gets its first token and decodes next."""
        tokens = iter(first_tokens)
        for row, chunk in self.line.joining:
            ends = row.ends_prefill(chunk)
            row.cached += chunk
            if ends and (first := next(tokens)) < 0:
                self._fail(self.line.decoding)
            elif ends:
                row.take([first], self.stops)
                row.first_token_s = now_s
            if row.done or row.to_prefill <= 0:
                self.line.decoding += 1

    def _fail(self, place: int) -> None:
        """End the row in a cache slot whose logits are no numbers, and let none of them stay."""
        self.line.rows[place].fail(NOT_FINITE)
        self.runner.wipe(place)

    def _want_drafts(self, step: Step) -> None:
        """Drafts of the next step, as the plan says."""
        wanted = step.plan.draft
        for i, row in enumerate(step.rows):
            row.drafted = self.gamma if wanted is None else int(wanted[i])
            if self.runner.drafts is None:
                row.drafted = 0

    def _tell(
        self, step: Step, hits: Ints, finished: npt.NDArray[np.bool_], step_time_s: float
    ) -> None:
        state, lengths = step.state, step.plan.lengths
        self.policy.observe(
            StepOutcome(
                state.step, state.slots, lengths, hits, state.current, finished, step_time_s
            )
        )


def in_slots(lengths: Ints, at: Ints) -> list[int]:
    """``lengths`` in policy order, sorted by the cache slots ``at``."""
    placed = np.empty_like(lengths)
    placed[at] = lengths
    return placed.tolist()  # type: ignore[no-any-return]
