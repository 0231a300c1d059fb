"""The league: ranks that respect ties, restarts, what its pages say, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from sim import league


def test_ties_share_a_rank_and_only_what_is_shown_counts() -> None:
    """a is 10 % faster than c on every seed; b is far faster than both on one, slower on two."""
    base = np.array([10.0, 20.0, 15.0])
    speeds = {"a": 1.1 * base, "b": base * [1.3, 0.9, 1.0], "c": base}
    assert league.ranks(speeds) == {"a": 1, "b": 1, "c": 2}


def test_equal_runs_are_no_difference() -> None:
    """Identical results have an interval of width 0 around 0."""
    speeds = np.array([3.0, 4.0])
    assert league.ranks({"x": speeds, "y": speeds.copy()}) == {"x": 1, "y": 1}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("league")
    bundle = synthetic_bundle(folder / "tiny", synthetic_traces(responses=10, response_tokens=40))
    return [
        "--bundle", f"tiny={bundle}", "--scenario", "azure-conv,agentic", "--load", "low,high",
        "--policy", "none,fixed-k,vllm,goodput,oracle,oracle-static", "--replications", "2",
        "--size", "0.05", "--jobs", "1", "--out", str(folder / "out"),
        "--page", str(folder / "docs" / "league.md"),
    ]  # fmt: skip


def test_league_runs_restarts_and_writes_its_pages(words: list[str]) -> None:
    """Bounds bound, k of oracle-static is the search's, a second run adds no cell."""
    out, page = Path(words[-3]), Path(words[-1])
    assert league.main(words) == 0
    document = json.loads((out / "league.json").read_text())
    assert [(c["scenario"], c["load"]) for c in document["cells"]] == [
        ("azure-conv", "low"), ("azure-conv", "high"), ("agentic", "low"), ("agentic", "high"),
    ]  # fmt: skip
    for cell in document["cells"]:
        table = cell["policies"]
        assert min(entry["rank"] for entry in table.values()) == 1
        assert table["oracle"]["regret"]["mean"] == 0.0
        assert table["oracle-static"]["as"].startswith("oracle-static:k=")
        assert (
            np.mean(table["oracle"]["wasted_tokens"]["mean"])
            <= table["vllm"]["wasted_tokens"]["mean"]
        )
    done = (out / "cells.jsonl").read_text()
    before = page.read_text()
    assert league.main(words) == 0
    assert (out / "cells.jsonl").read_text() == done
    assert page.read_text() == before
    assert "| `goodput` |" in before
    assert "synthetic" in before
    assert (page.parent / "img" / "league_tiny.svg").read_text().startswith("<svg")
    assert "## tiny, azure-conv" in (page.parent / "league-cells.md").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--scenario", "moon"], "'moon' must be one of azure-conv"),
        (["--bundle", "x"], "'x' must be LABEL=BUNDLE"),
        (["--load", "high,huge"], "'huge' must be one of low"),
    ],
)
def test_errors_are_one_line(extra: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        league.main(extra)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_yardstick_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """Speeds are told in terms of plain decoding; nothing runs without it."""
    assert league.main(["--policy", "vllm"]) == 2
    assert "--policy must hold 'none'" in capsys.readouterr().err
