"""The part of an engine that stands between it and a policy: a rehearsal before the clock starts,
the lag, and the check of the answer.

Simulator and live loop use the same object, so a policy cannot see more in one than in the other.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.base import Floats, Ints, Policy, StepOutcome, VerifyPlan, VerifyState
from policies.cost import CostTable

REHEARSED_STEPS = 40


class ConfidenceLag:
    """Confidences as they were ``lag`` steps ago, per cache slot; 1 where there is no such past."""

    def __init__(self, slots: int, gamma: int, lag: int) -> None:
        self.lag = lag
        self._ring = np.ones((lag + 1, slots, gamma))
        self._step = 0

    def admit(self, slot: int) -> None:
        """Forget what an earlier request left in ``slot``."""
        self._ring[:, slot] = 1.0

    def past(self, slots: Ints) -> Floats:
        """Confidences [R, gamma] of ``lag`` >= 1 steps before the one that is to be pushed."""
        lagged: Floats = self._ring[(self._step + 1) % (self.lag + 1), slots]
        return lagged

    def push(self, slots: Ints, current: Floats) -> Floats:
        """Store this step's confidences [R, gamma]; return those of ``lag`` steps ago."""
        if self.lag == 0:
            return current
        lagged = self.past(slots)
        self._ring[self._step % (self.lag + 1), slots] = current
        self._step += 1
        return lagged


def check_plan(policy: Policy, state: VerifyState, plan: VerifyPlan) -> None:
    """Raise ValueError when a plan breaks its contract (shape, range)."""
    lengths = plan.lengths
    if lengths.shape != state.drafted.shape:
        raise ValueError(
            f"{policy.name}: {lengths.shape} lengths for {state.drafted.shape[0]} rows"
        )
    if np.any(lengths < 0) or np.any(lengths > state.drafted):
        raise ValueError(f"{policy.name}: lengths must lie in 0..drafted, got {lengths.tolist()}")


def rehearse(policy: Policy, gamma: int, cost: CostTable) -> None:
    """Let a copy of ``policy`` decide and learn on two made-up requests, with an engine's array
    types, so that nothing is left to compile or load when time counts.

    The policy itself is not touched: what it has learned and its random stream stay.
    """
    twin = copy.deepcopy(policy)
    drafted = np.full(2, gamma if twin.first_draft is None else twin.first_draft)
    for step in range(REHEARSED_STEPS):
        state = _made_up(step, drafted, gamma, cost)
        plan = twin.plan(state)
        accepted = np.minimum(plan.lengths, step % (gamma + 1))
        ended = np.zeros(2, dtype=np.bool_)
        twin.observe(
            StepOutcome(step, state.slots, plan.lengths, accepted, state.current, ended, 1e-2)
        )
        drafted = np.full(2, gamma) if plan.draft is None else plan.draft


def _made_up(step: int, drafted: Ints, gamma: int, cost: CostTable) -> VerifyState:
    """The state of two requests at ``step``; a prompt is prefilled in every fourth step."""
    sure = np.where(np.arange(gamma) < drafted[:, None], 0.9 - 0.1 * (step % 5), 0.0)
    current, same = frozen(sure), frozen(np.full(2, 1 + step))
    none = frozen(np.zeros(2, dtype=np.int64))
    return VerifyState(
        step=step,
        time_s=1e-2 * step,
        current=current,
        lagged=current,
        drafted=frozen(drafted.astype(np.int64)),
        slots=frozen(np.arange(2)),
        fresh=frozen(np.full(2, step == 0)),
        context_tokens=same,
        generated_tokens=same,
        domain=none,
        slo_class=none,
        slack_s=frozen(np.full(2, np.inf)),
        other_tokens=2 if step % 4 else 10,
        sampling_requests=2,
        queue_length=0,
        cost=cost,
    )


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, read-only from here on, as the columns of a ``VerifyState`` are."""
    array.setflags(write=False)
    return array
