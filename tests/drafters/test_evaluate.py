"""Measures on a trace worked by hand, and the command on a synthetic bundle.

One response of 6 tokens, gamma = 2, anchors t = 0..4:

    t           0     1     2     3     4
    accepted    2     0     1     1     0
    confidence  .9,.3 .9,.9 .4,.9 .9,.9 .9,.9

Full blocks: 0 (+3) -> 3 (+2): 2 rounds. One draft a round: 0 (+2) -> 2 (+2) -> 4 (+1): 3 rounds.
Threshold 0.5: 0 (l = 1, +2) -> 2 (l = 0, +1) -> 3 (l = 2, +2): 3 rounds, 3 drafts verified.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drafters import comparison, evaluate, measures
from gpu_traces.bundle import Bundle, read_bundle
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from tests.limits import largest_file

CONFIDENCE = [[0.9, 0.3], [0.9, 0.9], [0.4, 0.9], [0.9, 0.9], [0.9, 0.9]]


def worked() -> AcceptanceTraces:
    small = synthetic_traces({"math": 0.5}, gamma=2, responses=1, response_tokens=30)
    alone = np.zeros(1)
    return replace(
        small,
        request_id=alone.astype(np.int64),
        domain=alone.astype(np.int16),
        temperature=np.ones(1, dtype=np.float32),
        prompt_tokens=np.full(1, 3, dtype=np.int32),
        response_tokens=np.full(1, 6, dtype=np.int32),
        first_anchor=np.array([0, 5]),
        confidence=np.array(CONFIDENCE, dtype=np.float32),
        accepted=np.array([2, 0, 1, 1, 0], dtype=np.int8),
        alpha=np.full((5, 2), 0.5, dtype=np.float32),
        max_prob=np.full((5, 2), 0.5, dtype=np.float32),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(synthetic_bundle(tmp_path / "worked", worked()))


def test_rounds_by_hand(bundle: Bundle) -> None:
    full, single = measures.played(bundle), measures.played(bundle, 1)
    assert full[["rounds", "tokens", "verified"]].values.tolist() == [[2, 5, 4]]
    assert single[["rounds", "tokens", "verified"]].values.tolist() == [[3, 5, 3]]
    assert measures.accepted_lengths(bundle)["tokens_per_round"].tolist() == [2.5] * 3


def test_threshold_by_hand(bundle: Bundle) -> None:
    sweep = measures.threshold_sweep(bundle)
    table = sweep[sweep["domain"] == "math"].set_index("threshold").loc[0.5]
    assert table["rounds"] == 3
    assert table["tokens_per_round"] == pytest.approx(5 / 3)
    assert table["verified_per_round"] == pytest.approx(1.0)
    assert table["rejected"] == pytest.approx(1 / 3)
    assert table["rate"] == pytest.approx(5 / 6)


def test_lengths_by_hand(bundle: Bundle) -> None:
    for _, table in measures.length_sweep(bundle).groupby("domain"):  # the domain, and all
        assert table["tokens_per_round"].tolist() == [pytest.approx(5 / 3), 2.5]


def test_conditional_by_hand(bundle: Bundle) -> None:
    """Walked anchors 0 and 3: both accept position 1; anchor 3 rejects position 2."""
    assert measures.conditional_acceptance(bundle)["conditional"].tolist() == [1.0, 0.5]


def test_interval_takes_prompts_as_draws() -> None:
    """Equal prompts: no spread. Copies of one prompt's rows don't narrow the interval."""
    rows = pd.DataFrame(
        {"prompt_key": ["a", "b", "c"], "domain": "x", "rounds": 10, "tokens": [20, 30, 25]}
    ).assign(verified=0)
    once = measures.summarise(rows, ["domain"]).iloc[0]
    twice = measures.summarise(pd.concat([rows, rows]), ["domain"]).iloc[0]
    assert once["tokens_per_round"] == twice["tokens_per_round"] == 2.5
    assert once["half_width"] == pytest.approx(1.96 * np.sqrt(50) / 30)
    assert twice["half_width"] == pytest.approx(once["half_width"])
    same = measures.summarise(rows.assign(tokens=25), ["domain"]).iloc[0]
    assert same["half_width"] == 0


def test_command_writes_tables_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"math": 0.8, "chat": 0.6}
    folders = []
    for name, seed in (("one", 0), ("two", 1)):
        traces = synthetic_traces(rates, gamma=3, responses=20, response_tokens=50, seed=seed)
        folders.append(str(synthetic_bundle(tmp_path / name, replace(traces, name=name))))
    out = tmp_path / "out"
    assert evaluate.main([*folders, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "## Tokens per round" in text
    assert (out / "report.md").read_text().strip() == text.strip()
    accepted = pd.read_csv(out / "accepted_length.csv")
    assert accepted["drafter"].unique().tolist() == ["one", "two"]
    overall = accepted.query("domain == 'all'")
    assert len(overall) == 2
    assert overall["tokens_per_round"].between(1, 4).all()
    page = (out / "report.html").read_text()
    titles = ("Conditional acceptance", "Reliability", "Verified", "Time of a full-length round")
    assert all(title in page for title in titles)
    assert evaluate.main([folders[0], folders[0]]) == 2
    assert "names repeat" in capsys.readouterr().err
    assert evaluate.main([*folders, "--out", __file__]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith(f"{__file__} is no folder that can be written to\n")
    assert captured.err.count("\n") == 1
    assert captured.out == "", "refused before the work"


def test_depths_of_a_family_are_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two depths of one family, one given twice, and a family of one depth, which has no sweep."""
    folders = []
    for i, (family, layers) in enumerate([("dspark", 4), ("dspark", 1), ("mtp", 1), ("dspark", 4)]):
        traces = synthetic_traces({"math": 0.9 - 0.1 * i}, gamma=3, responses=20, seed=i)
        folders.append(synthetic_bundle(tmp_path / f"b{i}", replace(traces, name=f"b{i}")))
        path = folders[-1] / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest |= {"drafter_family": family, "drafter_layers": layers}
        path.write_text(json.dumps(manifest))
    out = tmp_path / "out"
    assert evaluate.main([*map(str, folders), "--out", str(out)]) == 0
    accepted, sweep = (
        pd.read_csv(out / f"{name}.csv") for name in ("accepted_length", "depth_sweep")
    )
    overall = accepted.query("domain == 'all'").set_index("drafter")["tokens_per_round"]
    swept = sweep.query("domain == 'all'").set_index("layers")["tokens_per_round"]
    assert set(sweep["family"]) == {"dspark"}
    assert swept[4] == overall["b0"] > swept[1] == overall["b1"]
    assert "| dspark | all |" in capsys.readouterr().out
    assert "Draft layers" in (out / "report.html").read_text()
    assert evaluate.main([str(folders[0]), str(folders[2])]) == 0
    assert "by draft layers" not in capsys.readouterr().out


def test_a_full_disk_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = synthetic_traces({"math": 0.8}, gamma=3, responses=20, response_tokens=50, seed=0)
    folder, out = synthetic_bundle(tmp_path / "bundle", traces), tmp_path / "out"
    with largest_file(50):
        assert evaluate.main([str(folder), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out / 'accepted_length.csv'}: File too large\n"
    assert list(out.iterdir()) == []


def told(**columns: list[object]) -> pd.DataFrame:
    return comparison.in_order(pd.DataFrame(columns))


def test_tables_keep_the_given_order_and_hide_what_is_too_few() -> None:
    """Drafters and domains as they came; a position that 19 blocks reached is a dash."""
    table = comparison.by_position(
        told(
            domain=["math", "math", "code", "code"],
            drafter=["b", "a", "b", "a"],
            position=[1] * 4,
            conditional=[0.5, 0.25, 0.75, 1.0],
            reached=[20, 30, 99, 19],
        )
    )
    text = comparison.markdown(table).splitlines()[2:]
    assert text == [
        "| math | b | 0.500 |", "| math | a | 0.250 |", "| code | b | 0.750 |", "| code | a | - |"
    ]  # fmt: skip


def test_shorter_blocks_leave_dashes() -> None:
    sweep = told(
        drafter=["long", "long", "short"],
        domain=["all"] * 3,
        draft_length=[1, 2, 1],
        tokens_per_round=[1.5, 2.0, 1.25],
    )
    rows = comparison.markdown(comparison.by_length(sweep)).splitlines()
    assert rows == ["| drafter | 1 | 2 |", "| --- | --- | --- |", "| long | 1.50 | 2.00 |",
                    "| short | 1.25 | - |"]  # fmt: skip


def test_thresholds_show_the_rate() -> None:
    sweep = told(
        drafter=["a", "a"],
        domain=["all", "math"],
        threshold=[0.5, 0.5],
        tokens_per_round=[3.0, 9.0],
        rejected=[1.0, 9.0],
        rate=[0.75, 0.5],
    )
    rows = comparison.markdown(comparison.by_threshold(sweep)).splitlines()
    assert rows[2:] == ["| a | 3.00 / 1.00 / 0.750 |"]


def test_reliability_means_weigh_the_bins() -> None:
    """Position 1 by hand, (3 x 0.9 + 1 x 0.1) / 4 = 0.7; of seven positions every other."""
    one = {"method": "none", "drafter": "a", "weight": 1.0, "predicted": 0.5, "observed": 0.25}
    rows = [one | {"position": k} for k in range(2, 8)]
    rows += [
        one | {"position": 1, "weight": 3.0, "predicted": 0.9, "observed": 0.8},
        one | {"position": 1, "predicted": 0.1, "observed": 0.0},
        one | {"position": 1, "method": "sts", "predicted": 0.6, "observed": 0.6},
    ]
    table = comparison.reliability(comparison.in_order(pd.DataFrame(rows)))
    assert comparison.markdown(table).splitlines() == [
        "| drafter | method | 1 | 3 | 5 | 7 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | none | 0.700 → 0.600 | 0.500 → 0.250 | 0.500 → 0.250 | 0.500 → 0.250 |",
        "| a | sts | 0.600 → 0.600 | - | - | - |",
    ]
