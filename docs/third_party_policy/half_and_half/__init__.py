"""Half and half: the requests with the shorter context verify everything, the others one draft.

    l[r] = gamma if context[r] is at most the batch's median, else 1

A toy, but one that the built-in policies lack: it reads context, not confidence. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState


class HalfAndHalf(Policy):
    """Full blocks for short contexts."""

    @dataclass(frozen=True)
    class Config:
        """``long``: draft tokens that a long request verifies."""

        long: int = 1

    name: ClassVar[str] = "half-and-half"

    def __init__(self, gamma: int, config: Config) -> None:
        if not 0 <= config.long <= gamma:
            raise ValueError(f"policy 'half-and-half': long={config.long} must lie in 0..{gamma}")
        self.long = config.long

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Everything for the short half, ``long`` drafts for the rest."""
        if state.drafted.size == 0:
            return VerifyPlan(state.drafted.copy())
        short = state.context_tokens <= np.median(state.context_tokens)
        cut = np.minimum(state.drafted, self.long)
        return VerifyPlan(np.where(short, state.drafted, cut))
