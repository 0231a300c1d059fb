"""Where cells run: here, in this machine's processes, or on a cluster; finished ones are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import joblib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sim import cells
from sim.cells import Cell, Summary

BACKENDS = ("loky", "ray", "dask")
WAVE = 4
"""Cells per job that are handed out at once where results can't come back one by one."""


def made_with(data: dict[str, str]) -> str:
    """Digest of the code that makes results and of ``data`` (file -> SHA-256), for ``Store``."""
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    root = Path(__file__).parents[1]
    for room in ("policies", "gpu_traces", "sim"):
        for path in sorted((root / room).glob("*.py")):
            digest.update(path.read_bytes())
    digest.update((root / "sim" / "data" / "scenarios.json").read_bytes())
    return digest.hexdigest()


class Store:
    """Finished cells in a file of JSON lines; safe to kill at any moment and open again.

    Cells that were made with something else (``made_with``: code and data) are not reused.
    """

    def __init__(self, path: Path, made_with: str = "") -> None:
        self.path, self.made_with = path, made_with
        self.done: dict[str, Summary] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # the run was killed while it wrote this line
        if entry.get("made_with", "") == self.made_with:
            self.done[entry["key"]] = entry["summary"]

    def add(self, cell: Cell, summary: Summary) -> None:
        """Keep a result, on disk before in memory."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"key": cell.key, "made_with": self.made_with, "summary": summary}
        with self.path.open("a") as file:
            file.write("\n" * self._unfinished() + json.dumps(entry))
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
    wanted: Iterable[Cell], store: Store, jobs: int = 1, backend: str = "loky", quiet: bool = False
) -> list[Summary]:
    """Summaries in the order of ``wanted``; those in the store are not run again.

    Raises ValueError, naming the cell, when one cannot run; options are checked before any does.
    """
    plan = list(wanted)
    todo = [cell for cell in dict.fromkeys(plan) if cell.key not in store.done]
    for words in dict.fromkeys(cell.words for cell in todo):
        cells.parsed(words)
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("cells", total=len(set(plan)), completed=len(set(plan)) - len(todo))
        for cell, summary in _results(todo, jobs, backend):
            store.add(cell, summary)
            bar.advance(task)
    return [store.done[cell.key] for cell in plan]


def _results(todo: list[Cell], jobs: int, backend: str) -> Iterator[tuple[Cell, Summary]]:
    if jobs == 1 or len(todo) < 2:
        yield from map(_measured, todo)
        return
    with _backend(backend):
        if backend == "ray":
            for first in range(0, len(todo), WAVE * jobs):
                wave = todo[first : first + WAVE * jobs]
                yield from joblib.Parallel(n_jobs=jobs)(joblib.delayed(_measured)(c) for c in wave)
            return
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        yield from parallel(joblib.delayed(_measured)(cell) for cell in todo)


def _measured(cell: Cell) -> tuple[Cell, Summary]:
    try:
        return cell, cells.measure(cell)
    except ValueError as error:
        setting = " ".join((*cell.words, "--policy", cell.policy, "--seed", str(cell.seed)))
        raise ValueError(f"{error} (in the run {setting})") from None


@contextmanager
def _backend(name: str) -> Iterator[None]:
    """A joblib backend: this machine's processes, or a Ray or Dask cluster (extra ``cluster``).

    Ray starts or joins what its environment names; Dask takes the scheduler of its configuration,
    or starts workers here. What was started is stopped at the end.
    """
    try:
        if name == "ray":
            import_module("ray.util.joblib").register_ray()
            stop = import_module("ray").shutdown
        elif name == "dask":
            stop = import_module("dask.distributed").Client().close
        else:
            stop = None
    except ImportError:
        raise ValueError(f"--backend {name} needs: pip install 'dspark-lab[cluster]'") from None
    try:
        with joblib.parallel_config(backend=name):
            yield
    finally:
        if stop is not None:
            stop()
