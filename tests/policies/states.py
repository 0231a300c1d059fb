"""Random engine states for policy tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from policies.base import StepOutcome, VerifyState
from policies.cost import CostTable, densify

MAX_ROWS = 12


def cost_table(gamma: int, kind: str, rng: np.random.Generator) -> CostTable:
    """A belief with 200 requests and 2,000 tokens: 'flat', 'linear', 'stairs' or 'noisy'."""
    tokens = np.arange(2001.0)
    verify_s = {
        "flat": np.full(2001, 5e-3),
        "linear": 5e-3 + 2e-5 * tokens,
        "stairs": densify(
            [1, 8, 16, 32, 64, 2000], [5e-3, 6e-3, 8e-3, 9e-3, 0.02, 1], "ceil", 2000
        ),
        "noisy": 5e-3 + 2e-5 * tokens + rng.uniform(0, 2e-3, 2001),
    }[kind]
    length = np.arange(gamma + 1)[:, None] / gamma
    draft_s = np.where(length > 0, 5e-4 + 5e-4 * length + 1e-5 * np.arange(201.0)[None, :], 0.0)
    return CostTable(draft_s, verify_s, 1e-9, 1e-4, 1e-6, (8, 16, 32, 64))


def make_state(gamma: int, rows: int, seed: int, **changes: Any) -> VerifyState:
    """A state of ``rows`` requests, all values drawn from ``seed``; ``changes`` replace fields."""
    rng = np.random.default_rng(seed)
    kind = ("flat", "linear", "stairs", "noisy")[int(rng.integers(4))]
    drafted = rng.integers(0, gamma + 1, rows) if rng.random() < 0.5 else np.full(rows, gamma)
    exists = np.arange(gamma) < drafted[:, None]
    prefill = int(rng.integers(0, 64)) * int(rng.random() < 0.3)
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
