"""Static threshold: verify while the drafter is confident enough, whatever the load.

``survival``    l[r] = #{j : S[r, j] >= tau}: the accepted prefix is likely enough.
``conditional`` l[r] = (first j with c[r, j] < tau) - 1: each link of the chain is.

Sources: DSpark paper 4.3.3 (arXiv 2607.05147) sweeps tau over 0..0.9 on survivals; llama.cpp's
``p_min`` and TensorRT-LLM's ``confidence_threshold`` are the conditional form.
Reads current values, but token j is admitted on c[r, 1..j] alone: lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.base import Policy, VerifyPlan, VerifyState
from policies.limits import in_range
from policies.registry import register
from policies.select import prefix_above


@register
class Threshold(Policy):
    """Cut each block where confidence falls below ``tau``."""

    @dataclass(frozen=True)
    class Config:
        """``tau``: probability, 0..1; ``variant``: 'survival' or 'conditional'."""

        tau: float = 0.3
        variant: str = "survival"

    name: ClassVar[str] = "threshold"
    needs_cost: ClassVar[bool] = False

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, tau=(0, 1))
        if config.variant not in ("survival", "conditional"):
            raise ValueError(
                f"policy 'threshold': variant={config.variant!r} must be survival or conditional"
            )
        self.tau = float(config.tau)
        self.survival = config.variant == "survival"

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The confident prefix of every request."""
        return VerifyPlan(prefix_above(state.current, state.drafted, self.tau, self.survival))
