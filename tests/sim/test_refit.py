"""Fits: traffic made with known parameters gives them back, and files the numbers that ship."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim import refit
from sim.arrivals import Modulated, OnOff
from sim.fit_arrivals import SLOW_S, excess, modulated, on_off
from sim.fit_sessions import agentic
from sim.traffic_rules import RULES, Z, allowed

SHARED = Path(__file__).parents[3] / "shared" / "traffic"
HOURS = 20


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public traces are not here")
def test_the_numbers_that_ship_come_from_the_public_files() -> None:
    shipped = json.loads(refit.SHIPPED.read_text())
    assert not refit.differences(shipped, json.loads(json.dumps(refit.refit(SHARED))))


def test_excess_of_one_component_by_hand() -> None:
    """exp(C) - 1 is sigma^2 exp(-u / tau) for small sigma: X = 2 s^2 (r - 1 + e^-r) / r^2."""
    for ratio in (0.1, 1.0, 30.0):
        by_hand = 1e-4 * 2 * (ratio - 1 + np.exp(-ratio)) / ratio**2
        assert excess(5.0 * ratio, [(0.01, 5.0)]) == pytest.approx(by_hand, rel=2e-3)


def test_a_wandering_rate_is_recovered() -> None:
    """Twenty hours, each fitted alone: means within 4.5 standard errors, and 10 % of the value."""
    process = Modulated(20.0, ((0.3, SLOW_S), (0.4, 5.0)))
    found = []
    for seed in range(HOURS):
        times = process.first(80_000, np.random.SeedSequence(seed))
        fit = modulated(times[times < 3600], [(0.2, SLOW_S), (0.2, 2.0)])
        found.append([x for component in fit["components"] for x in component] + [fit["gap_cv"]])
    slow, slow_s, fast, fast_s, gap_cv = np.array(found).T
    assert (slow_s == SLOW_S).all()
    assert (gap_cv == 1.0).all()
    for values, truth in ((slow, 0.3), (fast, 0.4), (fast_s, 5.0)):
        error = values.std(ddof=1) / np.sqrt(HOURS)
        assert abs(values.mean() - truth) < 4.5 * error + 0.1 * truth


def test_bursts_and_silences_are_recovered() -> None:
    burst = Modulated(12.0, ((0.5, 3.0),), gap_cv=1.4)
    process = OnOff(burst, on_s=30.0, on_cv=0.5, off_s=60.0, off_cv=0.5)
    fit = on_off(process.first(100_000, np.random.SeedSequence(3)), [(0.3, 1.0)])
    assert fit["rate_rps"] == pytest.approx(12.0, rel=0.05)
    assert fit["on_s"] == pytest.approx(30.0, rel=0.1)
    assert fit["off_s"] == pytest.approx(60.0, rel=0.1)
    assert fit["gap_cv"] == pytest.approx(1.4, rel=0.1)
    assert fit["components"][0] == pytest.approx([0.5, 3.0], rel=0.15)


def test_sessions_by_hand() -> None:
    """A fresh conversation that grows by 100 and is rebuilt once; a resumed one of two turns."""
    requests = pd.DataFrame(
        {
            "session_id": ["a"] * 4 + ["b"] * 2,
            "prompt_tokens": [1000, 1100, 1200, 600, 130_000, 130_100],
            "output_tokens": [5, 6, 7, 8, 9, 10],
            "prefix_tokens": [0, 960, 1088, 64, 0, 129_984],
        }
    )
    # Rebuilt contexts are known in one size only; the others are filled to be able to count.
    sizes = [60_000, 110_000, 145_000, 155_000, 170_000, 200_000]
    for k, size in enumerate(sizes):
        rows = {"session_id": f"c{k}", "output_tokens": 1}
        for prompt, prefix in ((size, 0), (size // 2, 64)):
            row = pd.DataFrame([rows | {"prompt_tokens": prompt, "prefix_tokens": prefix}])
            requests = pd.concat([requests, row], ignore_index=True)
    fit = agentic(requests)
    assert fit["resumed_share"] == pytest.approx(5 / 8)
    assert fit["fresh"]["turns"][-1] == 4
    assert fit["new_tokens"][0] == 112
    assert fit["reset"]["probability"]["fresh"][0] == pytest.approx(1 / 3, abs=1e-3)
    assert fit["reset"]["size_ratio"][0] == [0.5] * 9


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refit.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "AzureLLMInferenceTrace_conv.csv is missing" in error
    assert error.count("\n") == 1


def test_rules_by_hand() -> None:
    assert allowed("hour", 10.0, 0.0, 2.0, 16) == Z * 2.0
    assert allowed("theory", 10.0, 0.0, 2.0, 16) == Z * 0.5
    assert allowed("session", 100.0, 4.0, 0.0, 0) == Z * 4.0 + 10.0
    assert allowed("pixel", 100.0, 11.0, 0.0, 0) == 11.0 + 2.0
    assert all(rule.why for rule in RULES.values())
