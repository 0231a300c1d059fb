"""TETRIS: draft a few tokens more than fit, verify the likeliest of them.

Draft k + extra tokens each, hold the batch to a fixed capacity C = k * R, and keep the C drafts
with the largest cumulative probability of the *proposed* tokens. Below ``min_batch`` requests it is
plain fixed-k.

Source: TETRIS (arXiv 2502.15197) and its code; extra is 1..3 there, min_batch 2.
Its score contains the drawn token's own probability, so which tokens are verified depends on their
value: anticipating at T > 0, although the capacity is constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.limits import in_range
from policies.registry import register
from policies.select import survivals, top_budget


@register
class Tetris(Policy):
    """Fixed capacity, spent on the likeliest proposals."""

    @dataclass(frozen=True)
    class Config:
        """``k``: verified tokens per request on average; ``extra``: drafted beyond them."""

        k: int = 3
        extra: int = 2
        min_batch: int = 2

    name: ClassVar[str] = "tetris"
    needs_cost: ClassVar[bool] = False
    anticipating = True
    signal: ClassVar[str] = "token_prob"

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, k=(0, gamma), extra=(0, 16), min_batch=(0, 1 << 20))
        self.k, self.min_batch = config.k, config.min_batch
        self.first_draft = min(gamma, config.k + config.extra)
        self.draft_lengths = (self.first_draft,) if self.first_draft else ()

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The k * R likeliest drafts of the batch."""
        requests = state.drafted.size
        if requests < self.min_batch:
            return uniform_plan(state, self.k, self.first_draft)
        survival = survivals(state.current, state.drafted)
        return VerifyPlan(
            lengths=top_budget(survival, state.drafted, self.k * requests),
            draft=np.full(requests, self.first_draft, dtype=np.int64),
        )
