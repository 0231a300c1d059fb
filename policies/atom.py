"""AMD ATOM's scheduler: Algorithm 1's early stop over a table of interpolated steps per second.

As ``confidence``, with two differences: the belief interpolates *steps per second* between measured
sizes and is flat outside them (``cost_rule = "rate"``), and confidences are clamped to
[1e-6, 1 - 1e-6] as its calibration does.

Source: ROCm/ATOM (``_GREEDY_EARLY_STOP = True``), after DSpark Algorithm 1 (arXiv 2607.05147).
Reads current values; the early stop keeps it lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.order import early_stop_budget
from policies.registry import register
from policies.select import step_cost_s, survivals, top_budget

EDGE = 1e-6


@register
class Atom(Policy):
    """Early stop on clamped confidences."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "atom"
    cost_rule = "rate"

    def __init__(self, gamma: int, config: Config) -> None:
        """Nothing to keep."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The sorted prefix up to the first descent of throughput."""
        clamped = np.clip(state.current, EDGE, 1 - EDGE)
        survival = survivals(clamped, state.drafted)
        budget, _ = early_stop_budget(survival, state.sampling_requests, *step_cost_s(state))
        return VerifyPlan(top_budget(survival, state.drafted, budget))
