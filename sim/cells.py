"""One run of an experiment: a cell is one policy at one setting and seed.

A cell's setting is command-line words of ``python -m sim.run`` (world, deployment, load), so that
anything a run can vary, an experiment can vary, and a worker process can build it anew.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from policies import registry
from sim import options, setup
from sim.beliefs import step_error
from sim.capacity import LOADS, RECORDED
from sim.metrics import summarize
from sim.simulate import simulate
from sim.workload import Workload, at_once

Summary = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of an experiment."""

    words: tuple[str, ...]
    """Options of ``python -m sim.run`` without policy and seed."""
    policy: str
    seed: int

    @property
    def key(self) -> str:
        """The same for the same run, in any process."""
        return json.dumps(asdict(self), sort_keys=True)


def setting_parser(prog: str = "python -m sim.run") -> options.Parser:
    """The options that a cell's words may use."""
    made = options.Parser(prog, "World, deployment and load of a run.")
    options.add_load(made)
    options.add_world(made)
    options.add_deployment(made)
    options.add_distortions(made)
    return made


def parsed(words: tuple[str, ...]) -> argparse.Namespace:
    """The words' options; exit code 2 or ValueError after one line."""
    args = setting_parser().parse_args(words)
    if args.concurrency and args.load:
        raise ValueError("--load is for open-loop arrivals; leave it out with --concurrency")
    return args


@lru_cache(maxsize=8)
def world(words: tuple[str, ...]) -> tuple[argparse.Namespace, setup.Setup]:
    """What the words name; raises ValueError with one line."""
    args = parsed(words)
    return args, setup.build(args)


@lru_cache(maxsize=8)
def capacity(words: tuple[str, ...]) -> float:
    """Requests per second that ``none`` sustains in this setting."""
    return world(words)[1].capacity_rps()


def load_rps(words: tuple[str, ...]) -> float | None:
    """Requests per second that the words ask for; None in a closed loop or at the recorded rate."""
    args, _ = world(words)
    if args.concurrency or args.load == RECORDED:
        return None
    text = args.load or "high"
    return setup.load_rps(text, capacity(words) if text in LOADS else 0.0)


@lru_cache(maxsize=4)
def workload(words: tuple[str, ...], seed: int) -> Workload:
    """The requests of one replication: the same for every policy."""
    args, made = world(words)
    if args.concurrency and not made.closed:
        return at_once(made.workload(1.0 if made.scenario == setup.OWN else None, seed))
    return made.workload(load_rps(words), seed)


def measure(cell: Cell) -> Summary:
    """Run a cell; its summary with the load, the policy and the origins."""
    _, made = world(cell.words)
    [(_, name, parameters)] = setup.check_policies([cell.policy], made.traces.gamma)
    work = workload(cell.words, cell.seed)
    records = simulate(made.traces, made.latency, work, name, made.config, cell.seed, **parameters)
    believed = made.latency.cost_table(
        registry.create(name, made.traces.gamma, **parameters).cost_rule
    )
    return summarize(records, made.slos) | {
        "believed_step": step_error(records.steps, believed),
        "policy": cell.policy,
        "seed": cell.seed,
        "load_rps": load_rps(cell.words),
        "concurrency": made.config.concurrency,
        "bundle": made.bundle,
        "origin": str(made.traces.origin),
        "latency": made.latency.name,
        "latency_origin": str(made.latency.origin),
        "scenario": made.scenario,
        "traffic_origin": work.origin,
        "traffic_notes": list(work.notes),
    }
