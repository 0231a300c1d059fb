"""Replicas in time: the SimPy process that steps a group of them, and its outages.

A plain deployment has groups of one. In a data-parallel group all ranks step together and the
slowest sets the pace (expert-parallel layers make them wait for each other); a rank without
requests steps along.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import simpy

from sim.replica import Replica
from sim.state import Ints


@dataclass(frozen=True)
class Outage:
    """A group that is down from ``start_s`` for ``length_s`` seconds."""

    group: int
    start_s: float
    length_s: float


class Traffic(Protocol):
    """What a group asks of the world around it."""

    def deliver(self, now_s: float) -> None:
        """Queue every request that has arrived by now at the replica it is routed to."""

    def idle(self, group: Group) -> simpy.Event:
        """An event that fires when the group has been given work."""

    def failed(self) -> None:
        """A group is down."""

    def orphaned(self, requests: Ints) -> None:
        """These requests have lost their replica."""

    def recovered(self) -> None:
        """A group is back."""


class Group:
    """Replicas that step together."""

    def __init__(
        self, env: simpy.Environment, index: int, replicas: list[Replica], traffic: Traffic
    ) -> None:
        self.env, self.index, self.replicas, self.traffic = env, index, replicas, traffic
        self.up = True
        self.after_step: Callable[[Replica], None] | None = None
        self.process = env.process(self.run())

    def run(self) -> Generator[simpy.Event, Any, None]:
        """Steps back to back while there is work, sleep while there is none, repair when cut."""
        self.traffic.deliver(self.env.now)
        while True:
            try:
                yield from self._steps()
            except simpy.Interrupt as outage:
                length_s: Any = outage.cause
                yield from self._repair(length_s)

    def _steps(self) -> Generator[simpy.Event, Any, None]:
        env = self.env
        while True:
            start_s = env.now
            active = []
            for replica in self.replicas:
                if replica.admit(start_s):
                    active.append(replica)
            if not active:
                if not any(replica.waiting for replica in self.replicas):
                    yield self.traffic.idle(self)
                continue  # one rank's ended request may have sent another its successor
            plans, longest_s = [], 0.0
            for replica in active:
                plan, step_time_s = replica.plan(start_s)
                plans.append(plan)
                longest_s = max(longest_s, step_time_s)
            yield env.timeout(longest_s)
            self.traffic.deliver(env.now)  # what arrived meanwhile is routed on the loads of then
            for replica, plan in zip(active, plans, strict=True):
                replica.advance(plan, start_s, env.now)
                if self.after_step is not None:
                    self.after_step(replica)

    def _repair(self, length_s: float) -> Generator[simpy.Event, Any, None]:
        """Lose the step under way and all that was held; come back empty."""
        self.up = False
        self.traffic.failed()
        self.traffic.deliver(self.env.now)
        dropped = [replica.drop_all() for replica in self.replicas]
        self.traffic.orphaned(np.concatenate(dropped))
        yield self.env.timeout(length_s)
        self.up = True
        self.traffic.recovered()

    def outage(self, plan: Outage) -> Generator[simpy.Event, Any, None]:
        """The SimPy process of one outage; nothing happens to a group that is down already."""
        yield self.env.timeout(plan.start_s)
        if self.up:
            self.process.interrupt(plan.length_s)


def random_outages(
    groups: int, mtbf_s: float, mttr_s: float, until_s: float, seed: np.random.SeedSequence
) -> tuple[Outage, ...]:
    """Exponential times up (mean ``mtbf_s``) and down (mean ``mttr_s``), fixed before the run."""
    rng = np.random.default_rng(seed)
    found = []
    for group in range(groups):
        now_s = rng.exponential(mtbf_s)
        while now_s < until_s:
            down_s = rng.exponential(mttr_s)
            found.append(Outage(group, now_s, down_s))
            now_s += down_s + rng.exponential(mtbf_s)
    return tuple(found)
