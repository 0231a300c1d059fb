"""Cells: kept, never rerun, resumed after a kill, and run on any of joblib's backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from sim import __main__ as experiments
from sim import cells
from sim.cells import Cell
from sim.farm import Store, run_cells


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A tiny setting."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    bundle = synthetic_bundle(folder, synthetic_traces(responses=6, response_tokens=30))
    return ("--bundle", str(bundle), "--requests", "40", "--max-requests", "4", "--load", "5")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Every cell that is really run."""
    measured: list[Cell] = []
    measure = cells.measure

    def noted(cell: Cell) -> dict[str, Any]:
        measured.append(cell)
        return measure(cell)

    monkeypatch.setattr(cells, "measure", noted)
    return measured


def plan(words: tuple[str, ...]) -> list[Cell]:
    return [Cell(words, policy, seed) for policy in ("none", "confidence") for seed in (0, 1)]


def test_killed_sweep_goes_on(words: tuple[str, ...], tmp_path: Path, runs: list[Cell]) -> None:
    """Half a line at the end of the store is dropped; what was finished is not run again."""
    line = ["sweep", *words[:-2], "--jobs", "1", "--policy", "none", "--seeds", "2"]
    line += ["--set", "load=2,5", "--out", str(tmp_path)]
    assert experiments.main(line) == 0
    whole = json.loads((tmp_path / "sweep.json").read_text())
    store = tmp_path / "cells.jsonl"
    kept = store.read_text().splitlines()
    assert len(kept) == len(runs) == 4
    store.write_text("\n".join(kept[:2]) + "\n" + kept[2][:40])
    assert experiments.main(line) == 0
    assert len(runs) == 6
    assert json.loads((tmp_path / "sweep.json").read_text())["rows"] == whole["rows"]


def test_cells_of_other_code_or_data_are_run_again(
    words: tuple[str, ...], tmp_path: Path, runs: list[Cell]
) -> None:
    path = tmp_path / "cells.jsonl"
    first = run_cells(plan(words), Store(path, "one"), quiet=True)
    assert run_cells(plan(words), Store(path, "one"), quiet=True) == first
    assert len(runs) == 4
    assert run_cells(plan(words), Store(path, "two"), quiet=True) == first
    assert len(runs) == 8


def test_impossible_cells_are_named(
    words: tuple[str, ...], tmp_path: Path, runs: list[Cell]
) -> None:
    """A wrong option is found before anything runs; a wrong limit when its cell does."""
    store = Store(tmp_path / "cells.jsonl")
    with pytest.raises(SystemExit):
        run_cells([*plan(words), Cell((*words, "--load", "x"), "none", 0)], store, quiet=True)
    assert not runs
    with pytest.raises(ValueError, match=r"profiled to 512.* \(in the run .*--max-requests 999"):
        run_cells([Cell((*words, "--max-requests", "999"), "none", 0)], store, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
@pytest.mark.filterwarnings("ignore")
def test_every_backend_gives_the_same(backend: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """Worker processes of joblib, Dask or Ray compute what this process does."""
    pytest.importorskip({"loky": "joblib", "dask": "distributed", "ray": "ray"}[backend])
    here = run_cells(plan(words), Store(tmp_path / "here.jsonl"), quiet=True)
    there = run_cells(plan(words), Store(tmp_path / "there.jsonl"), 2, backend, quiet=True)
    assert there == here
