"""No speculation: every request verifies its anchor alone and nothing is drafted.

The baseline that every gain is measured against: R tokens per step.
Reads nothing. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.registry import register


@register
class NoSpeculation(Policy):
    """l[r] = 0, and no drafting."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "none"
    needs_confidences: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False
    first_draft = 0
    draft_lengths = ()

    def __init__(self, gamma: int, config: Config) -> None:
        """Nothing to keep."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Zero everywhere."""
        zeros = np.zeros(state.drafted.size, dtype=np.int64)
        return VerifyPlan(lengths=zeros, draft=zeros, adaptive=False)
