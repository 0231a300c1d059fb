"""Ours: draft only while it pays, verify only what pays, on the best estimates that the past gives.

survival  The confidences, corrected by outcomes (``policies.estimate``).
seconds   Captured sizes as they were measured, dips kept, plus what steps have lately taken beyond
          the table (contexts, host time, a stale profile).
verify    Admit drafts in order of survival while the step's rate can still rise, replanning
          against the stairs (``policies.lookahead``). It reads current values without a lag, yet
          each admission depends on better-ranked drafts alone: lossless.
plain     Where verifying everything on the plain path should beat trimming on the ragged one (which
          costs ``adaptive_s``), judged by what survivals have lately been, do that.
draft     For the next steps, the length k that promises the batch most tokens per second, drafting
          and verification paid (``policies.blocks``); none, where plain decoding promises more.
          Now and then all draft gamma, so that the promise stays true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from policies.base import Floats, Ints, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.blocks import BlockSample
from policies.estimate import AcceptanceEstimator
from policies.limits import in_range
from policies.lookahead import first_shape, lookahead_budget, remember_shape, trimming_pays
from policies.order import sort_falling
from policies.registry import register
from policies.select import draft_counts, survivals, top_budget

CHOOSE_EVERY = 4
"""Steps between decisions on the draft length."""
LONGEST_PROBE_GAP = 64
"""Probes become up to this many times rarer while full blocks do not pay."""
TIMING_STEPS = 50
"""Steps that the mean of what the table misses remembers."""
PROBE_BLOCKS = 8
"""Full blocks that a probe waits for."""


class _Step(NamedTuple):
    """What ``observe`` needs of the step that ``plan`` has just decided."""

    state: VerifyState
    survival: Floats
    falling: Floats
    believed_s: float


@register
class Goodput(Policy):
    """Selective drafting and lookahead verification; each ingredient can be switched off."""

    @dataclass(frozen=True)
    class Config:
        """Ingredients, for ablation, and the probing interval.

        ``selective``: draft k tokens or none by what pays, not always gamma. ``history``: correct
        confidences by outcomes. ``timing``: correct the table by measured step times.
        ``plain_path``: leave the ragged path where trimming does not pay for it. ``probe_every``:
        steps before full blocks are tried again while they do not pay, at first.
        """

        selective: bool = True
        history: bool = True
        timing: bool = True
        plain_path: bool = True
        probe_every: int = 32

    name: ClassVar[str] = "goodput"
    cost_rule = "stairs"
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, probe_every=(1, 1 << 20))
        self.config, self.gamma = config, gamma
        self.first_draft, self.draft_lengths = gamma, tuple(range(1, gamma + 1))
        self._estimator = AcceptanceEstimator(gamma)
        self._blocks = BlockSample(gamma)
        self._shape = first_shape(gamma)
        self._next_choice, self._next_probe, self._probe_gap = 0, 0, config.probe_every
        self._wanted, self._prefilled = PROBE_BLOCKS, False
        self._excess_s = [0.0, 0.0]
        self._step: _Step | None = None

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Admit what pays, and choose how much to draft next."""
        self._step = None
        if state.drafted.size == 0:
            return VerifyPlan(state.drafted.copy())
        lengths, adaptive = self._verify(state)
        prefills = state.other_tokens > lengths.size
        due = state.step >= self._next_choice or prefills != self._prefilled
        if self.config.selective and due:
            self._choose(state)
        self._prefilled = prefills
        return VerifyPlan(lengths, np.full(lengths.size, self.first_draft), adaptive)

    def observe(self, outcome: StepOutcome) -> None:
        """Renew the estimates and what recent blocks were like."""
        if self._step is None:
            return
        state, survival, falling, believed_s = self._step
        if self.config.timing and outcome.step_time_s > 0:
            late_s = outcome.step_time_s - believed_s
            regime = state.other_tokens > state.drafted.size
            self._excess_s[regime] += (late_s - self._excess_s[regime]) / TIMING_STEPS
        if self.config.history:
            self._estimator.learn(outcome)
        if state.drafted.any():
            remember_shape(self._shape, falling, state.drafted.size)
            self._blocks.add(survival, state.drafted)

    def _survivals(self, state: VerifyState) -> Floats:
        if self.config.history:
            return self._estimator.survivals(state.current, state.drafted)
        return survivals(state.current, state.drafted)

    def _verify(self, state: VerifyState) -> tuple[Ints, bool]:
        """Lengths, and whether they take the ragged path."""
        drafting, longest, total = draft_counts(state.drafted)
        draft_s = state.cost.draft_time_s(drafting, longest)
        verify_s = state.cost.verify_curve_s(state.other_tokens, total + 1)
        fixed_s = draft_s + self._excess(state, float(verify_s[0]))
        survival = self._survivals(state)
        falling = survival.flatten()
        sort_falling(falling)
        rows, base = state.drafted.size, state.sampling_requests
        ragged_s = state.cost.ragged_curve_s(state.other_tokens, total + 1, rows)
        plain = self.config.plain_path and bool(ragged_s[total] > verify_s[total])
        adaptive = total > 0 and not (
            plain and not trimming_pays(base, fixed_s, ragged_s, verify_s, self._shape, rows)
        )
        budget = total
        if adaptive:
            budget = lookahead_budget(falling, base, fixed_s, ragged_s, self._shape, rows)
        believed_s = draft_s + float(ragged_s[budget] if adaptive else verify_s[total])
        self._step = _Step(state, survival, falling, believed_s)
        return top_budget(survival, state.drafted, budget), adaptive

    def _excess(self, state: VerifyState, pass_s: float) -> float:
        """Seconds that steps like this one have lately taken beyond the table; at least -pass_s / 2
        (``pass_s``: the table's target pass)."""
        return max(self._excess_s[state.other_tokens > state.drafted.size], -0.5 * pass_s)

    def _choose(self, state: VerifyState) -> None:
        """Renew ``first_draft``, the length that everyone drafts."""
        if state.step >= self._next_probe:
            self._probe_gap = min(2 * self._probe_gap, LONGEST_PROBE_GAP * self.config.probe_every)
            self._next_probe = state.step + self._probe_gap
            self._wanted, self.first_draft = self._blocks.added + PROBE_BLOCKS, self.gamma
        if self._blocks.added < self._wanted:
            return
        self._next_choice = state.step + CHOOSE_EVERY
        rows, cost = state.drafted.size, state.cost
        draft_s = cost.draft_s[:, min(rows, cost.draft_s.shape[1] - 1)]
        verify_s = cost.verify_curve_s(state.other_tokens, rows * self.gamma + 1)
        ragged_s = cost.ragged_curve_s(state.other_tokens, rows * self.gamma + 1, rows)
        excess_s = self._excess(state, float(verify_s[0]))
        rates = self._blocks.rates(rows, draft_s, ragged_s + excess_s, verify_s + excess_s)
        self.first_draft = self.gamma - int(np.argmax(rates[::-1]))
        if self.first_draft == self.gamma:
            self._probe_gap = self.config.probe_every
            self._next_probe = state.step + self._probe_gap
