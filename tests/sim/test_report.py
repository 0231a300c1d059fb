"""Pages and traces made from run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from sim import __main__ as lab


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder ``run`` and a frontier in ``edge``."""
    root = tmp_path_factory.mktemp("results")
    bundle = synthetic_bundle(root / "tiny", synthetic_traces(responses=6, response_tokens=30))
    words = ["--bundle", str(bundle), "--requests", "60", "--max-requests", "8"]
    run = ["--policy", "none,confidence", "--out", str(root / "run")]
    edge = ["--policy", "none", "--at", "1,4", "--seeds", "2", "--jobs", "1"]
    assert lab.main(["run", *words, *run]) == 0
    assert lab.main(["frontier", *words, *edge, "--out", str(root / "edge")]) == 0
    return root


def test_page_is_self_contained_and_says_where_from(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert lab.main(["report", str(folders / "run"), str(folders / "edge"), "--out", str(out)]) == 0
    text = out.read_text()
    assert "<script src" not in text
    assert text.count("acceptance: tiny, synthetic") == 2
    assert "confidence against none" in text
    assert text.count("Plotly.newPlot(") >= 6


def test_page_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "holds no result" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_trace_covers_every_step(folders: Path, tmp_path: Path) -> None:
    """Step events have the records' times; requests wait, prefill, decode without gaps."""
    out = tmp_path / "trace.json"
    words = ["trace-out", str(folders / "run"), "--out", str(out), "--policy", "confidence"]
    assert lab.main(words) == 0
    trace = json.loads(out.read_text())
    assert trace["otherData"]["origins"][0].startswith("acceptance: tiny, synthetic")
    events = trace["traceEvents"]
    steps = pd.read_parquet(folders / "run" / "steps.parquet")
    steps = steps[steps["policy"] == "confidence"]
    drawn = [
        e for e in events if e["ph"] == "X" and e["name"] in ("step", "prefill") and not e["pid"]
    ]
    assert len(drawn) == len(steps)
    seconds = (steps["end_s"] - steps["start_s"]).sum()
    assert sum(e["dur"] for e in drawn) == pytest.approx(1e6 * seconds)
    lives = [e for e in events if e["pid"] == 1_000_000 and e["ph"] == "X"]
    assert len(lives) == 3 * 60


def test_trace_of_an_unknown_policy(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["trace-out", str(folders / "run"), "--policy", "nope"]) == 2
    assert "it has: none, confidence" in capsys.readouterr().err
