"""The robustness matrices: what they run, what the page says, restarts, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from policies.registry import get, parse
from sim import robustness, run
from sim.cells import setting_parser
from sim.matrices import MATRICES, Matrix


def test_every_matrix_names_known_policies_and_options() -> None:
    """All rows are registered, all columns parse, and labels tell columns apart."""
    for matrix in MATRICES:
        for policy in matrix.rows:
            get(parse(policy)[0])
        for _, words in matrix.columns:
            setting_parser().parse_args(words)
        assert len(dict(matrix.columns)) == len(matrix.columns)


def test_page_holds_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small matrix: the best of the column is 100 %; a second run adds nothing."""
    bundle = synthetic_bundle(tmp_path / "tiny", synthetic_traces(responses=8, response_tokens=30))
    words = ("--bundle", str(bundle), "--scenario", "azure-conv", "--requests", "30",
             "--prefill", "none", "--concurrency", "4")  # fmt: skip
    columns = tuple((p, (*words, "--drift", p)) for p in ("0.0", "0.5"))
    small = Matrix("Title", "Note.", ("none", "fixed-k"), columns, shared=False)
    monkeypatch.setattr(robustness, "MATRICES", (small,))
    call = ["--replications", "2", "--jobs", "1", "--out", str(tmp_path / "out")]
    call += ["--page", str(tmp_path / "page.md")]
    assert robustness.main(call) == 0
    text = (tmp_path / "page.md").read_text()
    assert "## Title\n\nNote.\n" in text
    assert "100.0 ± 0.0" in text
    done = (tmp_path / "out" / "cells.jsonl").read_text()
    assert robustness.main(call) == 0
    assert (tmp_path / "out" / "cells.jsonl").read_text() == done
    assert (tmp_path / "page.md").read_text() == text


def test_unknown_matrix_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert robustness.main(["--matrix", "99"]) == 2
    assert "--matrix 99 must lie in 1.." in capsys.readouterr().err


def test_drift_of_own_prompts_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Poisson arrivals of the bundle's own prompts have no later half of other responses."""
    assert run.main(["--drift", "0.2"]) == 2
    assert "--drift needs a scenario" in capsys.readouterr().err
