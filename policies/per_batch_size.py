"""vLLM's dynamic speculation table: one length for all, looked up by batch size.

l[r] = K(number of requests scheduled), K a step function that the user writes; gaps and the tail
carry the previous K, and K is clamped to gamma.

Source: vLLM 0.33 ``num_speculative_tokens_per_batch_size`` (vllm-project/vllm#32374), a list of
[first batch size, last batch size, K]. vLLM ships no default; the one here halves k as the batch
grows and stops at 256.
Reads the batch size. Lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Policy, VerifyPlan, VerifyState
from policies.fixed import uniform_plan
from policies.registry import register


def parse_table(text: str) -> list[tuple[int, int, int]]:
    """``'1-32:7/33-128:3'`` -> [(1, 32, 7), (33, 128, 3)]; ValueError if vLLM would refuse it."""
    try:
        rows = []
        for item in text.split("/"):
            span, k = item.split(":")
            first, last = span.split("-")
            rows.append((int(first), int(last), int(k)))
    except ValueError:
        raise ValueError(
            f"policy 'per-batch-size': table={text!r} must look like 1-32:7/33-128:3"
        ) from None
    check_table(rows)
    return rows


def check_table(rows: list[tuple[int, int, int]]) -> None:
    """vLLM's rules: start at 1, sorted, no overlap, K >= 0; ValueError names the broken one."""
    if not rows or rows[0][0] != 1:
        raise ValueError(f"per-batch-size table must start at batch size 1, got {rows}")
    last_end = 0
    for first, last, k in rows:
        if first <= last_end or last < first:
            raise ValueError(f"per-batch-size range {first}-{last} overlaps or is not sorted")
        if k < 0:
            raise ValueError(f"per-batch-size K={k} must be at least 0")
        last_end = last


@register
class PerBatchSize(Policy):
    """l[r] = K(batch size)."""

    @dataclass(frozen=True)
    class Config:
        """``table``: 'first-last:K' ranges of batch sizes, joined by '/'."""

        table: str = "1-32:7/33-64:5/65-128:3/129-256:1/257-4096:0"

    name: ClassVar[str] = "per-batch-size"
    needs_confidences: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False

    def __init__(self, gamma: int, config: Config) -> None:
        rows = parse_table(config.table)
        self._first = np.array([row[0] for row in rows])
        self._k = np.minimum([row[2] for row in rows], gamma)
        self.first_draft = int(self._k[0])
        self.draft_lengths = tuple(sorted({int(k) for k in self._k} - {0}))

    def plan(self, state: VerifyState) -> VerifyPlan:
        """The table's K for everyone."""
        row = np.searchsorted(self._first, max(1, state.sampling_requests), side="right") - 1
        self.first_draft = int(self._k[row])
        return uniform_plan(state, self.first_draft)
