"""Ours: draft only for whom it pays, verify only what pays, at the long-run price of a second.

Value of a step: weighted tokens - lam * seconds, with lam the running mean of weighted tokens per
believed second (Dinkelbach: the policy that maximises this at its own lam maximises tokens per
second). Each step decides twice:

verify  B* = argmax over B of (N + sum of the B best w S) - lam * t(B), or of their ratio, with S
        from lagged confidences corrected by history; t counts drafting, the target pass, context
        read, and the ragged path's own cost. If no trimmed step beats verifying everything on the
        plain path, that is taken. The B* largest *current* w S are admitted.
draft   for the next step, (k, n) = argmax of sum over the n best requests of w G(k) - lam *
        draft_s(k, n). G is what drafting k tokens is worth to a request after verification is
        paid: the mean of sum over j <= k of max(0, S_j - price) over its recent blocks, shrunk to
        its domain's mean; a request that skipped also owes lam * refill_s per missed token. Every
        ``probe_every`` steps all draft all gamma, so that a skipped request can come back.

Derivation and ablations: docs/policies.md. Sizes on values ``lag`` steps old and on outcomes, ranks
by current ones, drafts by history: lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit

from policies.base import Floats, Ints, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.estimate import AcceptanceEstimator
from policies.limits import in_range
from policies.memory import BlockValue
from policies.registry import register
from policies.select import step_cost_s, survivals, top_budget


@njit(cache=True, error_model="numpy")
def _best_value(
    ascending: Floats, base: float, fixed_s: float, verify_s: Floats, lam: float
) -> tuple[int, float]:
    """Budget with the largest tokens - lam * seconds, or tokens / seconds where lam is 0."""
    best, best_value, tokens = 0, -np.inf, base
    for admitted in range(verify_s.size):
        if admitted:
            tokens += ascending[ascending.size - admitted]
        step_s = fixed_s + verify_s[admitted]
        value = tokens - lam * step_s if lam > 0 else tokens / step_s
        if value > best_value:
            best, best_value = admitted, value
    return best, best_value


@njit(cache=True)
def _best_drafts(ascending: Floats, draft_s: Floats, lam: float) -> tuple[int, float]:
    """Length k and the smallest worth that drafts: argmax over (k, n) of worth - lam * draft_s.

    ``ascending`` [gamma, R] holds each request's worth of drafting 1..gamma tokens, sorted by row.
    """
    gamma, rows = ascending.shape
    best_k, bar, best = 0, np.inf, 0.0
    for k in range(1, gamma + 1):
        total = 0.0
        for n in range(1, rows + 1):
            worth = ascending[k - 1, rows - n]
            total += worth
            value = total - lam * draft_s[k, min(n, draft_s.shape[1] - 1)]
            if value > best:
                best_k, bar, best = k, worth, value
    return best_k, bar


@register
class Goodput(Policy):
    """Selective drafting and priced verification; each ingredient can be switched off."""

    @dataclass(frozen=True)
    class Config:
        """Ingredients (for ablation) and their time constants.

        ``lag``: steps. ``selective``: skip drafting where it does not pay. ``probe_every``: steps
        between rounds in which all draft. ``history``: correct confidences by outcomes.
        ``context``: charge context reads. ``urgency``: extra weight of a request that is late.
        ``long_run``: price seconds at the running mean; else the best ratio of each step.
        ``plain_path``: leave the ragged path when trimming does not pay for it. ``memory_steps``:
        steps over which the price of a second is averaged.
        """

        lag: int = 2
        selective: bool = True
        probe_every: int = 32
        history: bool = True
        context: bool = True
        urgency: float = 0.0
        long_run: bool = False
        plain_path: bool = True
        memory_steps: int = 50

    name: ClassVar[str] = "goodput"
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, lag=(1, 16), probe_every=(1, 1 << 20), urgency=(0, 100))
        in_range(self.name, config, memory_steps=(1, 1 << 20))
        self.config, self.gamma, self.lag = config, gamma, config.lag
        self.first_draft = gamma
        self._estimator = AcceptanceEstimator(gamma)
        self._blocks = BlockValue(gamma)
        self._tokens, self._seconds = 0.0, 0.0
        self._pending: tuple[VerifyState, Floats, float, float] | None = None

    @property
    def price_of_second(self) -> float:
        """Weighted tokens that a second is worth, 0 before the first outcome."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Spend the budget that pays, and choose who drafts next."""
        self._pending = None
        if state.drafted.size == 0:
            return VerifyPlan(state.drafted.copy())
        fresh = state.slots[state.fresh]
        self._estimator.admit(state.slots, fresh)
        self._blocks.admit(state.slots, fresh)
        weights = self._weights(state)
        fixed_s, verify_s = step_cost_s(state)
        if self.config.context:
            fixed_s += state.cost.context_s * float(state.context_tokens.sum())
        budget, adaptive = self._budget(state, weights, fixed_s, verify_s)
        step_s = fixed_s + float(verify_s[budget]) + adaptive * state.cost.adaptive_s
        token_s = _slope_s(state, budget)
        self._pending = state, weights, step_s, token_s
        lengths = state.drafted.copy()
        if adaptive:
            value = self._survivals(state.current, state) * weights[:, None]
            lengths = top_budget(value, state.drafted, budget)
        return VerifyPlan(lengths, self._drafts(state, weights), adaptive)

    def observe(self, outcome: StepOutcome) -> None:
        """Renew the estimates, the worth of each request's blocks, and the price of a second."""
        if self._pending is None:
            return
        state, weights, step_s, token_s = self._pending
        keep = 1.0 - 1.0 / self.config.memory_steps
        self._tokens = keep * self._tokens + float(weights @ (outcome.accepted + 1.0))
        self._seconds = keep * self._seconds + step_s
        survival = self._survivals(outcome.current, state)
        self._blocks.learn(state, survival, self.price_of_second * token_s)
        self._blocks.skipped(state, outcome.accepted + 1)
        if self.config.history:
            self._estimator.learn(outcome)

    def _survivals(self, confidences: Floats, state: VerifyState) -> Floats:
        if self.config.history:
            return self._estimator.survivals(confidences, state.drafted, state.slots)
        return survivals(confidences, state.drafted)

    def _weights(self, state: VerifyState) -> Floats:
        weights = np.ones(state.drafted.size)
        if self.config.urgency:
            weights += self.config.urgency * (state.slack_s < 0)
        return weights

    def _budget(
        self, state: VerifyState, weights: Floats, fixed_s: float, verify_s: Floats
    ) -> tuple[int, bool]:
        """How many drafts to admit, and whether that takes the ragged path."""
        known = self._blocks.age[state.slots] >= self.lag
        stale = self._survivals(state.lagged, state)
        self._blocks.fill_unknown(state, known, stale)
        ascending = np.sort(stale * weights[:, None], axis=None)
        base = float(weights.sum()) + state.sampling_requests - state.drafted.size
        lam = self.price_of_second if self.config.long_run else 0.0
        ragged_s = fixed_s + state.cost.adaptive_s
        budget, value = _best_value(ascending, base, ragged_s, verify_s, lam)
        everything = verify_s.size - 1
        if budget == everything:
            return everything, False
        if self.config.plain_path:
            tokens, step_s = base + float(ascending.sum()), fixed_s + float(verify_s[-1])
            if value <= (tokens - lam * step_s if lam > 0 else tokens / step_s):
                return everything, False
        return budget, True

    def _drafts(self, state: VerifyState, weights: Floats) -> Ints:
        """Draft tokens per request for the next step: k for whom it pays, else 0."""
        lam, rows = self.price_of_second, state.drafted.size
        if not self.config.selective or lam == 0 or state.step % self.config.probe_every == 0:
            self.first_draft = self.gamma
            return np.full(rows, self.gamma, dtype=np.int64)
        worth = self._blocks.worth(state) * weights
        worth -= lam * state.cost.refill_s * self._blocks.missed[state.slots]
        k, bar = _best_drafts(np.sort(worth, axis=1), state.cost.draft_s, lam)
        self.first_draft = k
        return np.where(worth[max(k, 1) - 1] >= bar, k, 0)


def _slope_s(state: VerifyState, budget: int) -> float:
    """Believed seconds per verified token near the chosen size, over one token per request."""
    rows = state.drafted.size
    low = max(state.other_tokens, state.other_tokens + budget - rows)
    curve = state.cost.verify_curve_s(low, 2 * rows + 1)
    return float(curve[-1] - curve[0]) / (2 * rows)
