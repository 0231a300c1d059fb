"""A recycled cache slot tells nothing of the request that had it before."""

from __future__ import annotations

import numpy as np
import pytest

from policies.base import Policy, StepOutcome
from policies.cost import CostTable
from policies.registry import create, names
from tests.policies.states import make_state

GAMMA, ROWS, STEPS = 5, 6, 150
SEED = 0
DRAFT_S = 1e-4 * np.outer(np.arange(GAMMA + 1.0), 1 + np.arange(ROWS + 1.0))
"""Each draft position costs: short blocks and skipped requests pay now and then."""


def decisions(policy: Policy, recycle: bool) -> list[tuple[list[int], list[int]]]:
    """(lengths, next drafts) of a run in which requests come and go; the same requests, batches and
    outcomes whether slots are recycled or every request gets a new one."""
    rng = np.random.default_rng(SEED)
    cost = CostTable(DRAFT_S, 1e-3 * (5 + 0.3 * np.arange(200.0)))
    domain = rng.integers(0, 3, 10_000)
    request, slots, left = np.arange(ROWS), np.arange(ROWS), rng.integers(5, 40, ROWS)
    fresh, drafted = np.ones(ROWS, dtype=bool), np.full(ROWS, _first(policy))
    made = []
    for step in range(STEPS):
        confidences = rng.beta(3, 1, (ROWS, GAMMA)) ** (1 + domain[request])[:, None]
        current = np.where(np.arange(GAMMA) < drafted[:, None], confidences, 0.0)
        accepted = (rng.random((ROWS, GAMMA)) < confidences).cumprod(1).sum(1)
        state = make_state(
            GAMMA, ROWS, 0, step=step, time_s=float(step), current=current, lagged=current,
            drafted=drafted, slots=slots, fresh=fresh, domain=domain[request], cost=cost,
            other_tokens=ROWS, sampling_requests=ROWS, true_accepted=accepted,
        )  # fmt: skip
        plan = policy.plan(state)
        done = left == 0
        hits = np.minimum(accepted, plan.lengths)
        policy.observe(StepOutcome(step, slots, plan.lengths, hits, current, done, 0.01))
        draft = np.full(ROWS, GAMMA) if plan.draft is None else np.array(plan.draft)
        made.append((plan.lengths.tolist(), draft.tolist()))
        request = np.where(done, request.max() + 1 + np.arange(ROWS), request)
        slots = slots if recycle else request.copy()
        left = np.where(done, rng.integers(5, 40, ROWS), left - 1)
        fresh, drafted = done, np.where(done, _first(policy), draft)
    return made


def _first(policy: Policy) -> int:
    return GAMMA if policy.first_draft is None else policy.first_draft


@pytest.mark.parametrize("name", names())
def test_recycled_slots_are_forgotten(name: str) -> None:
    assert decisions(create(name, GAMMA), True) == decisions(create(name, GAMMA), False)
