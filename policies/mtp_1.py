"""MTP-1: one draft token per request, the production baseline of the DSpark paper.

The paper's "static 2 tokens" is this one draft plus the bonus (arXiv 2607.05147, section 5).
Reads nothing. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.base import Policy, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.registry import register


@register
class Mtp1(Policy):
    """l[r] = 1."""

    @dataclass(frozen=True)
    class Config:
        """No parameters."""

    name: ClassVar[str] = "mtp-1"
    needs_confidences: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False
    first_draft = 1
    draft_lengths = (1,)

    def __init__(self, gamma: int, config: Config) -> None:
        """Nothing to keep."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """One draft each, now and next step."""
        return uniform_plan(state, 1)
