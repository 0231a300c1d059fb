"""SGLang's adaptive EAGLE steps: one length for the batch, moved by the mean accepted length.

Each batch-size slot (the largest key at most the batch) has candidate lengths, a current one and an
exponential mean of accepted drafts per request. Every ``update_interval`` batches after a warm-up:

    down one candidate while ema <= prev - 0.5 + down  (0.5 + down where prev is 0),
    else up one while ema > cur - 0.5 + up;  from 0 the next positive length is tried.

The mean stands still while nothing is drafted.

Source: SGLang 0.5.23 ``--speculative-adaptive`` (sgl-project/sglang#21599); candidates, hysteresis,
ema_alpha 0.2, update_interval 5 and warm-up 10 are its defaults.
Reads outcomes of past steps and the batch size. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from policies.base import Policy, StepOutcome, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.limits import in_range
from policies.registry import register


@dataclass
class Slot:
    """One batch-size range: its candidates, and where it stands among them."""

    first_batch: int
    candidates: list[int]
    down: float
    at: int = field(init=False)
    ema: float = field(init=False)
    batches: int = 0

    def __post_init__(self) -> None:
        self.at = len(self.candidates) - 1
        self.ema = float(self.k)

    @property
    def k(self) -> int:
        """Current length."""
        return self.candidates[self.at]

    def move(self, up: float) -> None:
        """Step down while the mean is too low for the candidate below, else up while it is high."""
        start = self.at
        while self.at > 0 and self.ema <= self._down_bar(self.candidates[self.at - 1]):
            self.at -= 1
        if self.at < start:
            return
        while self.at + 1 < len(self.candidates) and (self.k == 0 or self.ema > self.k - 0.5 + up):
            self.at += 1

    def _down_bar(self, previous: int) -> float:
        return (previous - 0.5 if previous else 0.5) + self.down


def parse_slots(text: str) -> list[tuple[int, list[int], float]]:
    """``'1:1.3.5.7:-0.25/8:0.1.3:0'`` -> [(1, [1, 3, 5, 7], -0.25), (8, [0, 1, 3], 0.0)]."""
    try:
        slots = []
        for item in text.split("/"):
            first, steps, down = item.split(":")
            slots.append((int(first), [int(k) for k in steps.split(".")], float(down)))
    except ValueError:
        raise ValueError(
            f"policy 'sglang-adaptive': slots={text!r} must look like 1:1.3.5:-0.25/8:0.1.3:0"
        ) from None
    firsts = [slot[0] for slot in slots]
    rising = all(np.all(np.diff(steps) > 0) and steps[0] >= 0 for _, steps, _ in slots)
    if firsts[0] != 1 or np.any(np.diff(firsts) <= 0) or not rising:
        raise ValueError(
            f"policy 'sglang-adaptive': slots={text!r} must start at batch 1 and rise, in batch "
            "sizes and in candidate lengths"
        )
    return slots


@register
class SglangAdaptive(Policy):
    """Uniform k that follows the accepted length."""

    @dataclass(frozen=True)
    class Config:
        """``slots``: 'first batch:candidates:down hysteresis' joined by '/'; rates per batch."""

        slots: str = "1:1.3.5.7:-0.25/8:0.1.3:0/32:0.1:0/64:0:0"
        up_hysteresis: float = 0.0
        ema_alpha: float = 0.2
        update_interval: int = 5
        warmup: int = 10

    name: ClassVar[str] = "sglang-adaptive"
    needs_confidences: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False
    first_draft: int

    def __init__(self, gamma: int, config: Config) -> None:
        in_range(self.name, config, ema_alpha=(0, 1), update_interval=(1, 1 << 20))
        in_range(self.name, config, warmup=(0, 1 << 20), up_hysteresis=(-100, 100))
        self.config = config
        self._slots = [
            Slot(first, sorted({min(k, gamma) for k in steps}), down)
            for first, steps, down in parse_slots(config.slots)
        ]
        self._slot = self._slots[0]
        self.first_draft = self._slot.k
        candidates = {k for slot in self._slots for k in slot.candidates}
        self.draft_lengths = tuple(sorted(candidates - {0}))

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The slot's length for everyone, drafted from the next step on."""
        k = self.first_draft
        fitting = [slot for slot in self._slots if slot.first_batch <= max(1, state.drafted.size)]
        self._slot = fitting[-1]
        self.first_draft = self._slot.k
        return uniform_plan(state, k, self.first_draft)

    def observe(self, outcome: StepOutcome) -> None:
        """Update the slot's mean, and its length when it is time."""
        slot, config = self._slot, self.config
        if outcome.lengths.size == 0:
            return
        slot.batches += 1
        if outcome.lengths.any():
            accepted = float(outcome.accepted.mean())
            slot.ema += config.ema_alpha * (accepted - slot.ema)
        due = slot.batches > config.warmup and slot.batches % config.update_interval == 0
        if due:
            slot.move(config.up_hysteresis)
