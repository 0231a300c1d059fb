"""A pool of prefill workers apart from the decoding replicas (disaggregated serving)."""

from __future__ import annotations

import heapq

import numpy as np

from gpu_traces.latency import LatencyModel
from sim.state import Floats, Ints


class PrefillPool:
    """First come, first served over some workers; each takes one prompt at a time, in chunks."""

    def __init__(self, latency: LatencyModel, workers: int, chunk_tokens: int) -> None:
        self.chunk_tokens = chunk_tokens
        self.pass_s = latency.overhead_s + latency.verify_s
        self.context_s = latency.context_s
        self.free_s = [0.0] * workers

    def submit(self, arrival_s: Floats, tokens: Ints) -> Floats:
        """[k] when each prompt's first token is out; requests in arrival order."""
        ready_s = np.empty(arrival_s.size)
        work_s = self.seconds(tokens)
        for k, (at, work) in enumerate(zip(arrival_s.tolist(), work_s.tolist(), strict=True)):
            ready_s[k] = max(at, self.free_s[0]) + work
            heapq.heapreplace(self.free_s, ready_s[k])
        return ready_s

    def seconds(self, tokens: Ints) -> Floats:
        """[k] seconds to prefill prompts of so many tokens: full chunks, then the rest."""
        chunk = self.chunk_tokens
        whole, rest = np.divmod(tokens, chunk)
        read = chunk * whole * (whole - 1) // 2 + np.where(rest > 0, whole * chunk, 0)
        seconds: Floats = whole * self.pass_s[chunk] + np.where(rest > 0, self.pass_s[rest], 0.0)
        seconds += self.context_s * read
        return seconds
