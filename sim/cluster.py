"""Where requests come from and which replica serves them: traffic source, router, replicas.

No SimPy event per arrival: arrivals are sorted, and whoever acts at time t first delivers all that
arrived by t. That is exact, since nothing a router looks at changes between two events. Only while
some replica is idle does the clock process wake for the next arrival itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from policies.base import Policy
from policies.cost import CostTable
from sim import commit
from sim import state as s
from sim.group import Group
from sim.prefill import PrefillPool
from sim.replica import Replica
from sim.routers import Router
from sim.state import Ints
from sim.workload import Workload
from sim.world import World


class Cluster:
    """Replicas behind a router, fed by a workload: the ``Source`` and ``Traffic`` of ``sim``.

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
        seed: np.random.SeedSequence,
        *,
        concurrency: int = 0,
        group_size: int = 1,
        retries: int = 3,
        pool: PrefillPool | None = None,
    ) -> None:
        self.env, self.world, self.router, self.concurrency = env, world, router, concurrency
        self.retries, self.pool = retries, pool
        self.patience_s = world.lines_f[:, s.DEADLINE] - workload.arrival_s
        self.think_s = workload.think_s
        self.next_turn, opening = _turns(workload.session)
        self.has_turns = opening.size < workload.requests
        self.pending = opening
        self.due_s = workload.arrival_s[opening]
        self.taken = 0
        self.next_s = self._due_s()
        self.left = workload.requests
        self.home = np.full(workload.requests, -1)
        self.limbo: list[int] = []
        self.sleeping: dict[int, simpy.Event] = {}
        self._awake = env.event()
        self.replicas = [
            Replica(i, world, policy, cost, self, child)
            for i, (policy, cost, child) in enumerate(
                zip(policies, costs, seed.spawn(len(policies)), strict=True)
            )
        ]
        self.group_size = group_size
        self.groups = [
            Group(env, k, self.replicas[first : first + group_size], self)
            for k, first in enumerate(range(0, len(self.replicas), group_size))
        ]
        self._count_up()
        if concurrency:
            self._release(min(concurrency, self.pending.size))
        else:
            env.process(self._clock())

    def deliver(self, now_s: float) -> None:
        """Take in every open-loop request that has arrived by now."""
        if self.next_s > now_s:
            return
        last = int(np.searchsorted(self.due_s, now_s, side="right"))
        arrived, self.taken = self.pending[self.taken : last], last
        self.next_s = self._due_s()
        self._take_in(arrived)

    def _due_s(self) -> float:
        """When the next open-loop request arrives; inf when none is left or the loop is closed."""
        if self.concurrency or self.taken == self.pending.size:
            return float("inf")
        return float(self.due_s[self.taken])

    def idle(self, group: Group) -> simpy.Event:
        """Put a group to sleep until it is given a request."""
        event = self.env.event()
        self.sleeping[group.index] = event
        if not self._awake.triggered:
            self._awake.succeed()
        return event

    def ended(self, replica: Replica, requests: Ints, now_s: float) -> None:
        """Count requests out, and release what waited for their end."""
        self._out(requests)

    def _count_up(self) -> None:
        self.up = [replica for group in self.groups if group.up for replica in group.replicas]

    def failed(self) -> None:
        """A group is down: nothing is routed to it."""
        self._count_up()

    def orphaned(self, requests: Ints) -> None:
        """Send requests of a failed group elsewhere; those retried too often are failed."""
        lines_i, lines_f = self.world.lines_i, self.world.lines_f
        spent = lines_i[requests, s.RETRIES] > self.retries
        lines_i[requests[spent], s.STATUS] = s.FAILED
        lines_f[requests[spent], s.FINISH] = self.env.now
        self._route(requests[~spent])
        if spent.any():
            self._out(requests[spent])

    def recovered(self) -> None:
        """A group is back; hand out what waited for any to be up."""
        self._count_up()
        waiting, self.limbo = np.array(self.limbo, dtype=np.int64), []
        self._route(waiting)

    def waiting(self) -> int:
        """Requests in the replicas' queues."""
        return sum(replica.waiting for replica in self.replicas)

    def _out(self, requests: Ints) -> None:
        self.left -= requests.size
        if self.concurrency:
            self._release(min(requests.size, self.pending.size - self.taken))
        if self.has_turns:
            turns = self.next_turn[requests]
            last = self.world.lines_i[requests, s.REPLICA]
            self.home[turns[turns >= 0]] = last[turns >= 0]
            for following in turns.tolist():
                if following >= 0:
                    think_s = float(self.think_s[following])
                    self.env.process(self._later(think_s, following, self._arrive))

    def _clock(self) -> Generator[simpy.Event, Any, None]:
        """Wake for arrivals while somebody sleeps."""
        while self.next_s < float("inf"):
            if self.sleeping:
                yield self.env.timeout(max(0.0, self.next_s - self.env.now))
                self.deliver(self.env.now)
            else:
                self._awake = self.env.event()
                yield self._awake

    def _later(
        self, delay_s: float, request: int, then: Callable[[Ints], None]
    ) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(delay_s)
        then(np.array([request]))

    def _release(self, count: int) -> None:
        if not count:
            return
        first, self.taken = self.taken, self.taken + count
        self._arrive(self.pending[first : self.taken])

    def _arrive(self, requests: Ints) -> None:
        """Requests whose arrival time the run itself decides: now."""
        commit.stamp(requests, self.world.lines_f, self.patience_s, self.env.now)
        self._take_in(requests)

    def _take_in(self, requests: Ints) -> None:
        """New requests go to the prefill pool where there is one, else straight to a replica."""
        if self.pool is None:
            self._route(requests)
            return
        lines_i, lines_f = self.world.lines_i, self.world.lines_f
        tokens = lines_i[requests, s.PROMPT] - lines_i[requests, s.PREFIX]
        ready_s = self.pool.submit(lines_f[requests, s.ARRIVAL], tokens)
        lines_f[requests, s.FIRST_TOKEN] = ready_s
        for request, at_s in zip(requests.tolist(), ready_s.tolist(), strict=True):
            self.env.process(self._later(max(0.0, at_s - self.env.now), request, self._route))

    def _route(self, requests: Ints) -> None:
        """Give requests to replicas whose group is up; without any, keep them until one is."""
        if not requests.size:
            return
        up = self.up
        if not up:
            self.limbo += requests.tolist()
            return
        if len(up) == 1:
            self._give(up[0], requests)
            return
        chosen = self.router.choose(up, requests)
        if requests.size == 1:
            self._give(up[chosen[0]], requests)
            return
        for index in set(chosen.tolist()):
            self._give(up[index], requests[chosen == index])

    def _give(self, replica: Replica, requests: Ints) -> None:
        if self.has_turns:  # what an earlier turn left in one replica's prefix cache is only there
            away = (self.home[requests] >= 0) & (self.home[requests] != replica.index)
            self.world.lines_i[requests[away], s.PREFIX] = 0
        replica.enqueue(requests)
        event = self.sleeping.pop(replica.index // self.group_size, None)
        if event is not None:
            event.succeed()


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
