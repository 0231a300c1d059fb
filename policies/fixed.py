"""Fixed length: every request drafts and verifies k tokens, whatever the load.

l[r] = k. The default of every engine before adaptive verification (vLLM and SGLang
``num_speculative_tokens``); k = gamma is DSpark's full block.
Reads nothing. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.registry import register


def uniform_plan(state: VerifyState, k: int, next_k: int | None = None) -> VerifyPlan:
    """Verify up to ``k`` drafts of every request now and draft ``next_k`` (default k) next."""
    draft = np.full(state.drafted.size, k if next_k is None else next_k, dtype=np.int64)
    return VerifyPlan(lengths=np.minimum(state.drafted, k), draft=draft, adaptive=False)


@register
class FixedK(Policy):
    """l[r] = k for every request."""

    @dataclass(frozen=True)
    class Config:
        """``k``: draft tokens per request, 0..gamma."""

        k: int = 3

    name: ClassVar[str] = "fixed-k"
    needs_confidences: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, k=(0, gamma))
        self.k = self.first_draft = config.k
        self.draft_lengths = (self.k,) if self.k else ()

    def plan(self, state: VerifyState) -> VerifyPlan:
        """k drafts each, now and next step."""
        return uniform_plan(state, self.k)
