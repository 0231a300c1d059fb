"""Where requests come from and which replica serves them: traffic source, router, replicas.

No SimPy event per arrival: arrivals are sorted, and whoever acts at time t first delivers all that
arrived by t. That is exact, since nothing a router looks at changes between two events. Only while
some replica is idle does the clock process wake for the next arrival itself.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from policies.base import Policy
from policies.cost import CostTable
from sim.replica import Replica, World
from sim.routers import Router
from sim.state import ARRIVAL, COMPLETED, DEADLINE, HEAD, STATUS, TAIL, Ints
from sim.workload import Workload


@dataclass(frozen=True)
class QueueSample:
    """Requests waiting (all replicas) at an arrival."""

    time_s: float
    waiting: int


class Cluster:
    """Replicas behind a router, fed by a workload; the ``Source`` of its replicas.

    ``concurrency`` > 0 closes the loop: that many requests are out at any time and the next one is
    released, in workload order, when one ends. Turns of a session wait for the turn before.
    """

    def __init__(
        self,
        env: simpy.Environment,
        world: World,
        workload: Workload,
        policies: list[Policy],
        costs: list[CostTable],
        router: Router,
        concurrency: int,
        seed: np.random.SeedSequence,
    ) -> None:
        self.env, self.world, self.router, self.concurrency = env, world, router, concurrency
        self.patience_s = world.lines_f[:, DEADLINE] - workload.arrival_s
        self.think_s = workload.think_s
        self.next_turn, opening = _turns(workload.session)
        self.has_turns = opening.size < workload.requests
        self.pending = opening
        self.due_s = workload.arrival_s[opening]
        self.taken = 0
        self.left = workload.requests
        self.sleeping: dict[int, simpy.Event] = {}
        self._awake = env.event()
        self.replicas = [
            Replica(env, i, world, policy, cost, self, child)
            for i, (policy, cost, child) in enumerate(
                zip(policies, costs, seed.spawn(len(policies)), strict=True)
            )
        ]
        for replica in self.replicas:
            env.process(replica.run())
        if concurrency:
            self._release(min(concurrency, self.pending.size))
        else:
            env.process(self._clock())

    @property
    def next_s(self) -> float:
        """When the next open-loop request arrives; inf when none is left or the loop is closed."""
        if self.concurrency or self.taken == self.pending.size:
            return float("inf")
        return float(self.due_s[self.taken])

    def deliver(self, now_s: float) -> None:
        """Route every open-loop request that has arrived by now."""
        if self.next_s <= now_s:
            last = int(np.searchsorted(self.due_s, now_s, side="right"))
            self._route(self.pending[self.taken : last])
            self.taken = last

    def idle(self, replica: Replica) -> simpy.Event:
        """Put a replica to sleep until it is given a request."""
        event = self.env.event()
        self.sleeping[replica.index] = event
        if not self._awake.triggered:
            self._awake.succeed()
        return event

    def ended(self, replica: Replica, requests: Ints, now_s: float) -> None:
        """Count requests out, and release what waited for their end."""
        self.left -= requests.size
        if self.concurrency:
            self._release(min(requests.size, self.pending.size - self.taken))
        if not self.has_turns:
            return
        for request in requests[self.next_turn[requests] >= 0]:
            following = int(self.next_turn[request])
            self.env.process(self._later(following, float(self.think_s[following])))

    def _clock(self) -> Generator[simpy.Event, Any, None]:
        """Wake for arrivals while somebody sleeps."""
        while self.next_s < float("inf"):
            if self.sleeping:
                yield self.env.timeout(max(0.0, self.next_s - self.env.now))
                self.deliver(self.env.now)
            else:
                self._awake = self.env.event()
                yield self._awake

    def _later(self, request: int, think_s: float) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(think_s)
        self._arrive(np.array([request]))

    def _release(self, count: int) -> None:
        if not count:
            return
        first, self.taken = self.taken, self.taken + count
        self._arrive(self.pending[first : self.taken])

    def _arrive(self, requests: Ints) -> None:
        """Requests whose arrival time the run itself decides: now."""
        lines_f = self.world.lines_f
        lines_f[requests, ARRIVAL] = self.env.now
        lines_f[requests, DEADLINE] = self.env.now + self.patience_s[requests]
        self._route(requests)

    def _route(self, requests: Ints) -> None:
        if len(self.replicas) == 1:
            self._give(0, requests)
            return
        chosen = self.router.choose(self.replicas, requests)
        for index in set(chosen.tolist()):
            self._give(index, requests[chosen == index])

    def _give(self, index: int, requests: Ints) -> None:
        self.replicas[index].enqueue(requests)
        event = self.sleeping.pop(index, None)
        if event is not None:
            event.succeed()

    def waiting(self) -> int:
        """Requests in the replicas' queues."""
        return sum(int(r.counts[TAIL] - r.counts[HEAD]) for r in self.replicas)

    def completed(self) -> int:
        """Requests that got all their tokens."""
        return int(np.count_nonzero(self.world.lines_i[:, STATUS] == COMPLETED))


def _turns(session: Ints) -> tuple[Ints, Ints]:
    """[n] the next turn of each request's session (-1: none), and the rows that open one."""
    n = session.size
    following = np.full(n, -1)
    if (session < 0).all():
        return following, np.arange(n)
    order = np.argsort(session, kind="stable")
    ranked = session[order]
    same = (ranked[1:] == ranked[:-1]) & (ranked[1:] >= 0)
    following[order[:-1][same]] = order[1:][same]
    later = np.zeros(n, dtype=bool)
    later[following[following >= 0]] = True
    return following, np.flatnonzero(~later)
