"""What is true of a run whatever the policy decides: limits, traces, step times, request tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from sim.state import Floats, Ints

UNLIMITED_BLOCKS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of one replica."""

    max_requests: int = 64
    """Requests that run at once."""
    max_step_tokens: int = 2048
    """Target tokens of one step: anchors, drafts and prefill chunks."""
    prefill: str = "chunked"
    """``chunked``: prompts share steps with decoding; ``separate``: another pool prefills;
    ``none``: prompts cost nothing."""
    kv_tokens: int = 0
    """Tokens that the KV cache holds; 0 for no limit."""
    block_tokens: int = 16
    """KV cache page size."""
    tpot_target_s: tuple[float, ...] = (np.inf, np.inf, np.inf)
    """Per SLO class, what ``VerifyState.slack_s`` counts against."""
    spread: bool = True
    """Step times vary as profiled; False: every step takes its median."""
    extrapolate: bool = False
    """Allow steps outside the latency profile (the origin says so)."""
    check: bool = False
    """Verify a replica's invariants after every step too (slow)."""

    @property
    def blocks(self) -> int:
        return self.kv_tokens // self.block_tokens if self.kv_tokens else UNLIMITED_BLOCKS


@dataclass(frozen=True)
class World:
    """What all replicas of a run share; the lines are those of ``sim.state``."""

    traces: AcceptanceTraces
    latency: LatencyModel
    config: EngineConfig
    lines_i: Ints
    lines_f: Floats
    mean_output_tokens: int
