"""What a live run leaves behind: times of each step's parts, and the live tables of a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from drafters.request import Running
from gpu_traces.schema import TABLES
from policies.base import Ints

FURTHER = ("prefill_tokens", "start_s", "step_time_s")
"""Columns of ``live_steps`` beyond the schema's."""
PARTS = ("draft", "verify", "plan", "overhead")


class Stopwatch:
    """Time of each part of a step, microseconds; a lap waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.waits = device.type == "cuda"
        self.spent_us = dict.fromkeys(PARTS, 0.0)

    def start(self) -> None:
        """Begin a step."""
        self.spent_us = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str, overlaps: bool = False, waited: bool = False) -> None:
        """Book the time since the last lap on ``part``. What ``overlaps`` with a device's work is
        part of the lap that waits for it; ``waited``: the part itself has, and the device may be at
        work on the next one."""
        if self.waits and overlaps:
            return
        if self.waits and not waited:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent_us[part] += 1e6 * (now - self._last)
        self._last = now


class StepLog:
    """Rows of ``live_steps``; a step is there whole or not at all, also after an interrupt."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def columns(self) -> dict[str, list[Any]]:
        """Every column by name."""
        names = [c.name for c in TABLES["live_steps"]]
        return {name: [step[name] for step in self._steps] for name in (*names, *FURTHER)}

    def add(
        self,
        rows: list[Running],
        drafted: Ints,
        lengths: Ints,
        accepted: Ints,
        context_tokens: int,
        prefill_tokens: int,
        tokens_padded: int,
        start_s: float,
        step_time_s: float,
        spent_us: dict[str, float],
    ) -> None:
        """Append a step; ``rows`` are its decoding requests in policy order, ``start_s`` is the
        engine's clock, ``tokens_padded`` what the target pass was computed for, ``step_time_s`` the
        time that the policy was told."""
        tokens = len(rows) + int(lengths.sum()) + prefill_tokens
        entry = {
            "step": len(self),
            "requests": len(rows),
            "request_ids": [row.request.request_id for row in rows],
            "drafted": drafted.tolist(),
            "lengths": lengths.tolist(),
            "accepted": accepted.tolist(),
            "tokens_planned": tokens,
            "tokens_padded": tokens_padded,
            "context_tokens": context_tokens,
            "prefill_tokens": prefill_tokens,
            "start_s": start_s,
            "step_time_s": step_time_s,
            **{f"{part}_us": spent_us[part] for part in PARTS},
        }
        self._steps.append(entry)

    def mean_ms(self, part: str) -> float:
        """Mean time of a part of the step, milliseconds; 0 before the first step."""
        spent = [step[f"{part}_us"] for step in self._steps]
        return sum(spent) / len(spent) / 1e3 if spent else 0.0


def request_columns(sequences: Iterable[Running]) -> dict[str, list[Any]]:
    """Columns of ``live_requests``, by request id; further: arrival (NaN for one that a closed loop
    never came to), domain (index into the manifest's, -1 for one that it lacks), name, temperature,
    output tokens at most, preemptions, why it failed."""
    rows = sorted(sequences, key=lambda s: s.request.request_id)
    return {
        "request_id": [s.request.request_id for s in rows],
        "rounds": [s.rounds for s in rows],
        "verified": [s.verified for s in rows],
        "accepted": [s.accepted for s in rows],
        "prompt_tokens": [len(s.request.prompt) for s in rows],
        "output_tokens": [s.generated for s in rows],
        "ttft_s": [s.first_token_s - s.arrived_s for s in rows],
        "e2e_s": [s.finish_s - s.arrived_s for s in rows],
        "arrival_s": [s.arrived_s for s in rows],
        "domain": [s.request.domain for s in rows],
        "name": [s.request.name for s in rows],
        "temperature": [s.request.temperature for s in rows],
        "max_new": [s.request.max_new for s in rows],
        "preemptions": [s.preemptions for s in rows],
        "reason": [s.reason for s in rows],
    }
