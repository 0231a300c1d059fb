"""Ours: draft only for whom it pays, verify only what pays, and count progress, not tokens.

value   A draft of request r is worth w_r S_rj: S is the confidence corrected by outcomes
        (``policies.estimate``); w_r is inverse to the request's recent tokens per step, because a
        token saves a slow request a larger part of its stay. (Maximising sum of w * tokens per
        second is proportional fairness, and the throughput of a batch whose requests must all
        finish: docs/policies.md.) A late request may weigh more still.
verify  Admit drafts in order of value while the step's rate can still rise, replanning against
        the believed stairs (``policies.lookahead``). It reads current values without a lag, yet
        each admission depends on better-ranked drafts alone: lossless.
plain   Where verifying everything on the plain path should beat trimming on the ragged one (which
        costs ``adaptive_s``), judged by what values have lately been, do that.
draft   For the next steps, draft k tokens for n requests: the largest sum of expected worth beyond
        the price of verification, less lam * draft_s(k, n) and refills (lam: tokens per second);
        nobody, where that promises more. Now and then all draft, so that a request can come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numba import njit

from policies.base import Floats, Ints, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.estimate import AcceptanceEstimator
from policies.limits import in_range
from policies.lookahead import first_shape, lookahead_budget, remember_shape, trimming_pays
from policies.memory import DraftWorth
from policies.registry import register
from policies.select import draft_counts, survivals, top_budget

DRAFT_EVERY = 4
"""Steps between decisions on who drafts."""
LONGEST_PROBE_GAP = 16
"""Rounds of probing become up to this many times rarer while nobody drafts."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of the expected drafts that are priced before drafting is given up."""


@njit(cache=True)
def _inverse_pace(pace: Floats, slots: Ints, mean: float) -> Floats:
    """Weights [R] inverse to the requests' tokens per step; 1 for one of the long-run mean pace."""
    weights = np.empty(slots.size)
    for r in range(slots.size):
        weights[r] = mean / pace[slots[r]]
    return weights


@njit(cache=True)
def _values(survival: Floats, weights: Floats) -> tuple[Floats, float]:
    """Weighted survivals [R, gamma], and the sum of the weights."""
    value = np.empty(survival.shape)
    for r in range(survival.shape[0]):
        for j in range(survival.shape[1]):
            value[r, j] = weights[r] * survival[r, j]
    return value, weights.sum()


@njit(cache=True, error_model="numpy")
def _choose_drafts(
    expected: Floats,
    order: Ints,
    weights: Floats,
    refill_s: Floats,
    bar: float,
    lam: float,
    fixed_s: float,
    draft_s: Floats,
    verify_s: Floats,
) -> tuple[int, int]:
    """Length k and number n of the requests (best first in ``order``) whose drafting pays most.

    (0, 0) where no drafting promises more than the best choice, even if a part of its drafts is
    left out again: the likeliest share of them brings at least that share of the tokens.
    """
    rows, gamma = expected.shape[0], expected.shape[1]
    base = weights.sum()
    best_k, best_n, best = 0, 0, -np.inf
    best_gain, best_verified, best_spent_s = 0.0, 0.0, 0.0
    for k in range(1, gamma + 1):
        surplus, gains, verified, refilled_s = 0.0, 0.0, 0.0, 0.0
        for n in range(1, rows + 1):
            r = order[n - 1]
            gain, cost = weights[r] * expected[r, k - 1, 0], expected[r, k - 1, 1]
            surplus += gain - bar * cost
            gains += gain
            verified += cost
            refilled_s += refill_s[r]
            spent_s = draft_s[k, min(n, draft_s.shape[1] - 1)] + refilled_s
            if surplus - lam * spent_s > best:
                best_k, best_n, best = k, n, surplus - lam * spent_s
                best_gain, best_verified, best_spent_s = gains, verified, spent_s
    for share in SHARES:
        step_s = fixed_s + best_spent_s + verify_s[int(share * best_verified)]
        if (base + share * best_gain) / step_s > base / (fixed_s + verify_s[0]):
            return best_k, best_n
    return 0, 0


class _Step(NamedTuple):
    """What ``observe`` needs of the step that ``plan`` has just decided."""

    state: VerifyState
    weights: Floats
    survival: Floats
    ascending: Floats
    bar: float
    believed_s: float


@register
class Goodput(Policy):
    """Selective drafting and lookahead verification; each ingredient can be switched off."""

    @dataclass(frozen=True)
    class Config:
        """Ingredients, for ablation, and two time constants.

        ``selective``: skip drafting where it does not pay. ``history``: correct confidences by
        outcomes. ``fair``: weigh tokens by the inverse of their request's pace. ``context``: charge
        context reads. ``urgency``: extra weight of a late request. ``long_run``: price seconds at
        the running mean rate instead of the step's own. ``plain_path``: leave the ragged path where
        trimming does not pay for it. ``probe_every``: steps between rounds in which all draft.
        ``memory_steps``: steps over which the running rate is averaged.
        """

        selective: bool = True
        history: bool = True
        fair: bool = True
        context: bool = True
        urgency: float = 0.0
        long_run: bool = False
        plain_path: bool = True
        probe_every: int = 32
        memory_steps: int = 50

    name: ClassVar[str] = "goodput"
    cost_rule = "ceil"
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, probe_every=(1, 1 << 20), urgency=(0, 100))
        in_range(self.name, config, memory_steps=(1, 1 << 20))
        self.config, self.gamma = config, gamma
        self.first_draft = gamma
        self._estimator = AcceptanceEstimator(gamma)
        self._worth = DraftWorth(gamma)
        self._shape = first_shape(gamma)
        self._choice: Ints = np.zeros(0, dtype=np.int64)
        self._next_choice, self._next_probe, self._probe_gap = 0, 0, config.probe_every
        self._tokens = self._seconds = self._bar = 0.0
        self._step: _Step | None = None

    @property
    def rate(self) -> float:
        """Running mean of weighted tokens per believed second; 0 before the first outcome."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Admit what pays, and choose who drafts next."""
        self._step = None
        if state.drafted.size == 0:
            return VerifyPlan(state.drafted.copy())
        self._admit(state)
        fixed_s = 0.0
        if self.config.context and state.cost.context_s:
            fixed_s = state.cost.context_s * float(state.context_tokens.sum())
        lengths, adaptive, step = self._verify(state, fixed_s)
        if state.step >= self._next_choice:
            self._choose(step, fixed_s + adaptive * state.cost.adaptive_s)
        self._step = step
        return VerifyPlan(lengths, self._choice[state.slots], adaptive)

    def observe(self, outcome: StepOutcome) -> None:
        """Renew the estimates, each request's worth and pace, and the running means."""
        if self._step is None:
            return
        state, weights, survival, ascending, bar, believed_s = self._step
        tokens = outcome.accepted + 1
        keep = 1.0 - 1.0 / self.config.memory_steps
        self._tokens = keep * self._tokens + float(weights @ tokens)
        self._seconds = keep * self._seconds + believed_s
        if state.drafted.any():
            remember_shape(self._shape, ascending, weights.size)
        self._worth.learn(state, survival, weights, bar, tokens)
        if self.config.history:
            self._estimator.learn(outcome)

    def _admit(self, state: VerifyState) -> None:
        fresh = state.slots[state.fresh]
        self._worth.admit(state, fresh)
        self._estimator.admit(self._worth.pace.size, fresh)
        missing = self._worth.pace.size - self._choice.size
        if missing:
            self._choice = np.pad(self._choice, (0, missing), constant_values=self.first_draft)
        if fresh.size:
            self._choice[fresh] = self.first_draft

    def _weights(self, state: VerifyState) -> Floats:
        weights: Floats = np.ones(state.drafted.size)
        if self.config.fair:
            weights = _inverse_pace(self._worth.pace, state.slots, self._worth.mean_pace)
        if self.config.urgency:
            weights += self.config.urgency * (state.slack_s < 0)
        return weights

    def _survivals(self, state: VerifyState) -> Floats:
        if self.config.history:
            return self._estimator.survivals(state.current, state.drafted, state.slots)
        return survivals(state.current, state.drafted)

    def _verify(self, state: VerifyState, fixed_s: float) -> tuple[Ints, bool, _Step]:
        """Lengths, and whether they take the ragged path."""
        drafting, longest, total = draft_counts(state.drafted)
        fixed_s += state.cost.draft_time_s(drafting, longest)
        verify_s = state.cost.verify_curve_s(state.other_tokens, total + 1)
        weights, survival = self._weights(state), self._survivals(state)
        value, base = _values(survival, weights)
        ascending = np.sort(value, axis=None)
        base += state.sampling_requests - state.drafted.size
        adaptive_s, rows = state.cost.adaptive_s, weights.size
        if total == 0:
            step = _Step(state, weights, survival, ascending, self._bar, fixed_s + verify_s[0])
            return state.drafted.copy(), False, step
        lam = self.rate if self.config.long_run else 0.0
        budget, _ = lookahead_budget(
            ascending, base, fixed_s + adaptive_s, verify_s, self._shape, rows, lam
        )
        self._bar = float(ascending[ascending.size - 1 - budget]) if budget < total else 0.0
        adaptive = not self.config.plain_path or trimming_pays(
            base, fixed_s, adaptive_s, verify_s, self._shape, rows
        )
        believed_s = fixed_s + float(verify_s[budget] + adaptive_s if adaptive else verify_s[-1])
        step = _Step(state, weights, survival, ascending, self._bar, believed_s)
        if not adaptive:
            return state.drafted.copy(), False, step
        return top_budget(value, state.drafted, budget), True, step

    def _choose(self, step: _Step, fixed_s: float) -> None:
        """Renew ``_choice`` [slots]: draft k tokens for those whom it pays, else 0."""
        state, weights = step.state, step.weights
        if not self.config.selective or state.step >= self._next_probe:
            longest = self.config.probe_every * (1 if self.first_draft else LONGEST_PROBE_GAP)
            self._probe_gap = min(2 * self._probe_gap, longest)
            self._next_choice, self._next_probe = state.step + 1, state.step + self._probe_gap
            self.first_draft = self.gamma
            self._choice[state.slots] = self.gamma
            return
        self._next_choice = state.step + DRAFT_EVERY
        expected = self._worth.expected(state)
        missed = self._worth.missed[state.slots].astype(np.float64)
        refill_s = state.cost.refill_s * missed
        key = weights * expected[:, -1, 0] - step.bar * expected[:, -1, 1] - self.rate * refill_s
        order = np.argsort(-key)
        k, n = _choose_drafts(
            expected,
            order,
            weights,
            refill_s,
            step.bar,
            self.rate,
            fixed_s,
            state.cost.draft_s,
            state.cost.verify_curve_s(state.other_tokens, key.size * self.gamma + 2),
        )
        self.first_draft = k
        self._choice[state.slots] = np.where(key >= key[order[n - 1]], k, 0) if n else 0
        if n:
            self._next_probe = min(self._next_probe, state.step + self.config.probe_every)
