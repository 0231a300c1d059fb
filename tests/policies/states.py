"""Random engine states for policy tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from policies.base import StepOutcome, VerifyState
from policies.cost import CostTable

MAX_ROWS = 12


def cost_table(gamma: int, kind: str, rng: np.random.Generator) -> CostTable:
    """A belief for 200 requests and 2,000 tokens: 'flat', 'linear', 'stairs' or 'noisy'.

    All but the first are steep enough that how much to verify is a close call: a draft more costs
    about what it brings.
    """
    tokens = np.arange(2001.0)
    steps = rng.random(2001) < 0.3
    steps[:2] = False
    relative = {
        "flat": np.full(2001, 1.0),
        "linear": 1.0 + 0.1 * tokens,
        "stairs": 1.0 + np.cumsum(steps * rng.uniform(0.0, 2.0, 2001)),
        "noisy": 1.0 + 0.05 * tokens + rng.uniform(0, 1.0, 2001),
    }[kind]
    length = np.arange(gamma + 1)[:, None] / gamma
    draft_s = np.where(length > 0, 1e-4 + 1e-4 * length + 1e-5 * np.arange(201.0)[None, :], 0.0)
    return CostTable(draft_s, 1e-3 * relative, 1e-9, 1e-4, 1e-6, (8, 16, 32, 64))


def make_state(gamma: int, rows: int, seed: int, **changes: Any) -> VerifyState:
    """A state of ``rows`` requests, all values drawn from ``seed``; ``changes`` replace fields."""
    rng = np.random.default_rng(seed)
    kind = ("flat", "linear", "stairs", "stairs", "noisy")[int(rng.integers(5))]
    drafted = rng.integers(0, gamma + 1, rows) if rng.random() < 0.5 else np.full(rows, gamma)
    exists = np.arange(gamma) < drafted[:, None]
    prefill = int(rng.integers(0, 64)) * int(rng.random() < 0.2)
    state = VerifyState(
        step=int(rng.integers(0, 200)),
        time_s=float(rng.uniform(0, 100)),
        current=np.where(exists, rng.beta(2, 1, (rows, gamma)), 0.0),
        lagged=rng.beta(2, 1, (rows, gamma)),
        drafted=drafted.astype(np.int64),
        slots=rng.permutation(2 * rows)[:rows].astype(np.int64),
        fresh=rng.random(rows) < 0.2,
        context_tokens=rng.integers(1, 5000, rows),
        generated_tokens=rng.integers(1, 500, rows),
        domain=rng.integers(0, 3, rows),
        slo_class=rng.integers(0, 3, rows),
        slack_s=rng.normal(0, 1, rows),
        other_tokens=rows + prefill,
        sampling_requests=rows + int(prefill > 32),
        queue_length=int(rng.integers(0, 5)),
        cost=cost_table(gamma, kind, rng),
        true_accepted=rng.integers(0, gamma + 1, rows),
    )
    return state._replace(**changes)


def cliff_state(gamma: int, rows: int, seed: int) -> VerifyState:
    """A step where much hangs on late drafts: a steep stair near the anchors, clear confidences.

    Whether the stair pays depends on all that lies beyond it, so a scheduler that looks there acts
    on it; the honest ones must not.
    """
    rng = np.random.default_rng(seed)
    state = make_state(gamma, rows, seed, drafted=np.full(rows, gamma), other_tokens=rows)
    confidences = rng.choice([0.03, 0.2, 0.8, 0.97], (rows, gamma), p=[0.1, 0.05, 0.05, 0.8])
    confidences += rng.uniform(-0.02, 0.02, (rows, gamma))
    first = rows + int(rng.integers(1, 1 + rows * rng.choice([1, gamma])))
    seconds = 1e-3 * (1.0 + 1e-4 * np.arange(2001.0))
    seconds[first:] *= 1.0 + rng.uniform(1.0, 4.0)
    cost = CostTable(state.cost.draft_s.copy(), seconds)
    return state._replace(current=confidences, cost=cost, sampling_requests=rows)


def outcome_of(state: VerifyState, lengths: np.ndarray, seed: int) -> StepOutcome:
    """A possible outcome of verifying ``lengths``, drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    accepted = rng.integers(0, lengths + 1)
    finished = rng.random(lengths.size) < 0.05
    return StepOutcome(state.step, state.slots, lengths, accepted, state.current, finished, 0.01)


def history(policy: Any, gamma: int, seed: int, steps: int, rows: int) -> None:
    """Live ``steps`` random steps with ``policy``, so that its memory is not blank."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        state = make_state(gamma, int(rng.integers(1, rows + 1)), int(rng.integers(1 << 30)))
        state = lag_rule(policy, state._replace(step=step))
        policy.observe(outcome_of(state, policy.plan(state).lengths, seed + step))


def lag_rule(policy: Any, state: VerifyState) -> VerifyState:
    """As the harness does it: a policy without lag finds the current values in ``lagged``."""
    return state._replace(lagged=state.current) if policy.lag == 0 else state


gammas = st.sampled_from([3, 5, 7])
row_counts = st.integers(0, MAX_ROWS)
seeds = st.integers(0, 1 << 30)
