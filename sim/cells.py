"""Many runs: a cell is one policy at one setting and seed; finished cells are kept and never rerun.

A cell's setting is command-line words of ``python -m sim.run`` (world, deployment, load), so that
anything a run can vary, an experiment can vary, and a worker process can build it anew.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sim import options, setup
from sim.capacity import LOADS, RECORDED
from sim.metrics import summarize
from sim.simulate import simulate
from sim.workload import Workload, at_once

BACKENDS = ("loky", "ray", "dask")
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
    return made


@lru_cache(maxsize=8)
def world(words: tuple[str, ...]) -> tuple[argparse.Namespace, setup.Setup]:
    """What the words name; raises ValueError with one line."""
    args = setting_parser().parse_args(words)
    if args.concurrency and args.load:
        raise ValueError("--load is for open-loop arrivals; leave it out with --concurrency")
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
    records = simulate(
        made.traces,
        made.latency,
        workload(cell.words, cell.seed),
        name,
        made.config,
        cell.seed,
        **parameters,
    )
    return summarize(records, made.slos) | {
        "policy": cell.policy,
        "seed": cell.seed,
        "load_rps": load_rps(cell.words),
        "concurrency": made.config.concurrency,
        "origin": str(made.traces.origin),
        "latency_origin": str(made.latency.origin),
    }


class Store:
    """Finished cells in a file of JSON lines; safe to kill at any moment and open again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Summary] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # the run was killed while it wrote this line
        self.done[entry["key"]] = entry["summary"]

    def add(self, cell: Cell, summary: Summary) -> None:
        """Keep a result, on disk before in memory."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(
                "\n" * self._unfinished() + json.dumps({"key": cell.key, "summary": summary})
            )
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[cell.key] = summary

    def _unfinished(self) -> bool:
        """Whether a killed run left half a line at the end."""
        if not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"


def run_cells(
    cells: Iterable[Cell], store: Store, jobs: int = 1, backend: str = "loky", quiet: bool = False
) -> list[Summary]:
    """Summaries in the order of ``cells``; those in the store are not run again."""
    wanted = list(cells)
    todo = [cell for cell in dict.fromkeys(wanted) if cell.key not in store.done]
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("cells", total=len(set(wanted)), completed=len(set(wanted)) - len(todo))
        for cell, summary in _results(todo, jobs, backend):
            store.add(cell, summary)
            bar.advance(task)
    return [store.done[cell.key] for cell in wanted]


def _results(todo: list[Cell], jobs: int, backend: str) -> Iterator[tuple[Cell, Summary]]:
    if jobs == 1 or len(todo) < 2:
        for cell in todo:
            yield cell, measure(cell)
        return
    with _backend(backend):
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        yield from parallel(joblib.delayed(_measured)(cell) for cell in todo)


def _measured(cell: Cell) -> tuple[Cell, Summary]:
    return cell, measure(cell)


def _backend(name: str) -> AbstractContextManager[Any]:
    """A joblib backend: this machine's processes, or a Ray or Dask cluster (extra ``cluster``)."""
    try:
        if name == "ray":
            import_module("ray.util.joblib").register_ray()
        elif name == "dask":
            # Becomes the default client; dask's configuration names the scheduler.
            import_module("dask.distributed").Client()
    except ImportError:
        raise ValueError(f"--backend {name} needs: pip install 'dspark-lab[cluster]'") from None
    config: AbstractContextManager[Any] = joblib.parallel_config(backend=name)
    return config
