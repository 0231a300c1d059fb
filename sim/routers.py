"""Which replica a request goes to, decided at its arrival on the loads of that moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numba import njit

from sim.replica import Replica
from sim.state import OUTSTANDING, PROMPT, Ints
from sim.workload import Workload

Array = Any


class Router(Protocol):
    """Chooses replicas for requests that arrive one after the other."""

    def choose(self, replicas: list[Replica], requests: Ints) -> Ints:
        """[k] replica index of each of k requests, in arrival order."""


class RoundRobin:
    """Each replica in turn."""

    def __init__(self, workload: Workload, seed: np.random.SeedSequence) -> None:
        self.served = 0

    def choose(self, replicas: list[Replica], requests: Ints) -> Ints:
        chosen = (self.served + np.arange(requests.size)) % len(replicas)
        self.served += requests.size
        return chosen


class LeastTokens:
    """The replica with the fewest outstanding tokens (prompt + mean output of each request).

    The router doesn't know how long an answer will be; ties go to the lower index.
    """

    def __init__(self, workload: Workload, seed: np.random.SeedSequence) -> None:
        """Nothing to keep."""

    def choose(self, replicas: list[Replica], requests: Ints) -> Ints:
        everyone = np.tile(np.arange(len(replicas)), (requests.size, 1))
        chosen: Ints = _least(*_loads(replicas, requests), everyone)
        return chosen


class PowerOfTwo:
    """The less loaded of two replicas drawn at random (the draw is fixed per request)."""

    def __init__(self, workload: Workload, seed: np.random.SeedSequence) -> None:
        self.draws = np.random.default_rng(seed).random((workload.requests, 2))

    def choose(self, replicas: list[Replica], requests: Ints) -> Ints:
        n = len(replicas)
        first = (self.draws[requests, 0] * n).astype(np.int64)
        other = (first + 1 + (self.draws[requests, 1] * (n - 1)).astype(np.int64)) % n
        pairs = np.stack([first, other], axis=1)
        chosen: Ints = _least(*_loads(replicas, requests), pairs)
        return chosen


class Sticky:
    """Turns of a session go where the first went; a request without session goes round robin."""

    def __init__(self, workload: Workload, seed: np.random.SeedSequence) -> None:
        self.session = workload.session
        self.fallback = RoundRobin(workload, seed)

    def choose(self, replicas: list[Replica], requests: Ints) -> Ints:
        session = self.session[requests]
        chosen = session % len(replicas)
        free = np.flatnonzero(session < 0)
        chosen[free] = self.fallback.choose(replicas, requests[free])
        return chosen


ROUTERS: dict[str, Callable[[Workload, np.random.SeedSequence], Router]] = {
    "round-robin": RoundRobin,
    "least-tokens": LeastTokens,
    "power-of-two": PowerOfTwo,
    "sticky": Sticky,
}


def _loads(replicas: list[Replica], requests: Ints) -> tuple[Ints, Ints]:
    """Outstanding tokens per replica, and the tokens that each request would add."""
    loads = np.array([replica.counts[OUTSTANDING] for replica in replicas])
    world = replicas[0].world
    return loads, world.lines_i[requests, PROMPT] + world.mean_output_tokens


@njit(cache=True)
def _least(loads: Array, weights: Array, candidates: Array) -> Array:
    """For each request in turn, the least loaded candidate; its weight then counts there."""
    chosen = np.empty(weights.size, dtype=np.int64)
    for k in range(weights.size):
        best = candidates[k, 0]
        for c in candidates[k, 1:]:
            if loads[c] < loads[best]:
                best = c
        chosen[k] = best
        loads[best] += weights[k]
    return chosen
