"""The part of an engine that stands between it and a policy: the lag, and the check of the answer.

Simulator and live loop use the same object, so a policy cannot see more in one than in the other.
"""

from __future__ import annotations

import numpy as np

from policies.base import Floats, Ints, Policy, VerifyPlan, VerifyState


class ConfidenceLag:
    """Confidences as they were ``lag`` steps ago, per cache slot; 1 where there is no such past."""

    def __init__(self, slots: int, gamma: int, lag: int) -> None:
        self.lag = lag
        self._ring = np.ones((lag + 1, slots, gamma))
        self._step = 0

    def admit(self, slot: int) -> None:
        """Forget what an earlier request left in ``slot``."""
        self._ring[:, slot] = 1.0

    def push(self, slots: Ints, current: Floats) -> Floats:
        """Store this step's confidences [R, gamma]; return those of ``lag`` steps ago."""
        if self.lag == 0:
            return current
        now = self._step % (self.lag + 1)
        self._ring[now, slots] = current
        self._step += 1
        lagged: Floats = self._ring[self._step % (self.lag + 1), slots]
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
