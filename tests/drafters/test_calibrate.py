"""Calibration against data whose true miscalibration is known.

Accepted lengths are drawn from true conditional probabilities sigmoid(z); the raw confidence is
sigmoid(T z + b). With 40,000 blocks, the standard error of an ECE bin's gap is about 1 % and of
their weighted mean about 0.3 %; bounds below leave 5 of those.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from drafters import calibrate as cal
from drafters.online import OnlineLogistic
from drafters.reliability import area_under_curve, brier, expected_calibration_error, reliability
from gpu_traces.bundle import read_bundle
from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from tests.limits import largest_file

BLOCKS, GAMMA = 40_000, 5


def blocks(scale: float, bias: float, seed: int = 0) -> cal.Anchors:
    rng = np.random.default_rng(seed)
    z = rng.normal(1.0, 1.5, (BLOCKS, GAMMA))
    accepted = np.cumprod(rng.random(z.shape) < expit(z), 1).sum(1)
    fits, weight = np.full(BLOCKS, GAMMA), np.ones(BLOCKS)
    return cal.Anchors(expit(scale * z + bias), accepted, fits, weight, expit(z))


def mean_error(anchors: cal.Anchors, calibration: cal.Calibration) -> float:
    return float(cal.scores(anchors, calibration)["ece"].mean())


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_sts_finds_the_temperature(scale: float) -> None:
    fitted = cal.fit_sts(*blocks(scale, 0.0)[:2])
    step = np.log10(fitted.scales) - np.log10(scale)
    assert np.abs(step).max() <= 0.1 + 1e-9  # two cells of the grid of 0.05
    assert set(fitted.scales) <= set(cal.TEMPERATURES)
    assert mean_error(blocks(scale, 0.0, seed=1), fitted) < 0.015


def test_first_temperature_is_the_grid_minimum() -> None:
    """The definition, position 1: no other temperature of the grid has a lower error."""
    anchors = blocks(2.0, 0.5)
    fitted = cal.fit_sts(*anchors[:2])
    z = np.log(anchors.raw[:, 0] / (1 - anchors.raw[:, 0]))
    hit = (anchors.accepted > 0).astype(float)
    errors = [expected_calibration_error(expit(z / t), hit, bins=15) for t in cal.TEMPERATURES]
    assert fitted.scales[0] == cal.TEMPERATURES[int(np.argmin(errors))]


def test_an_offset_needs_a_bias() -> None:
    plain, platt = (fit(*blocks(1.0, 1.0)[:2]) for fit in (cal.fit_sts, cal.fit_sts_bias))
    fresh = blocks(1.0, 1.0, seed=1)
    assert mean_error(fresh, plain) > 0.04
    assert mean_error(fresh, platt) < 0.015
    assert np.allclose(platt.bias, -1.0, atol=0.2)
    assert np.allclose(platt.scales, 1.0, atol=0.12)


def test_a_position_without_acceptances_stays_off_the_bounds() -> None:
    """The likelihood alone would send the offset to minus infinity; the prior holds it."""
    anchors = blocks(1.0, 0.0)
    accepted = np.minimum(anchors.accepted[:300], GAMMA - 1)
    fitted = cal.fit_sts_bias(anchors.raw[:300], accepted)
    assert -8 < fitted.bias[-1] < -1
    assert 0.2 < fitted.scales[-1] < 5


def test_temperature_keeps_the_ranking_of_position_one() -> None:
    anchors = blocks(2.0, 0.0)
    before = cal.scores(anchors, cal.identity(GAMMA, 1.0))["auc"][0]
    after = cal.scores(anchors, cal.fit_sts(*anchors[:2]))["auc"][0]
    assert after == pytest.approx(before, abs=1e-3)


def test_cut_and_weightless_blocks_do_not_count() -> None:
    """Garbage beyond the response's end, or of weight 0, changes no parameter."""
    clean = blocks(1.5, 0.0)
    raw, cut, weight = clean.raw.copy(), clean.fits.copy(), clean.weight.copy()
    cut[:1000] = 2
    weight[-1000:] = 0
    accepted = clean.accepted.copy()
    accepted[:1000] = np.minimum(accepted[:1000], 2)
    first = cal.fit_sts_bias(raw, accepted, weight, cut)
    raw[:1000, 2:] = 0.999
    raw[-1000:] = 0.001
    second = cal.fit_sts_bias(raw, accepted, weight, cut)
    assert first == second


def test_perfect_and_useless_predictions() -> None:
    y = np.array([0.0, 1.0, 1.0, 0.0])
    assert (brier(y, y), expected_calibration_error(y, y), area_under_curve(y, y)) == (0, 0, 1)
    half = np.full(4, 0.5)
    assert area_under_curve(half, y) == 0.5
    assert brier(half, y) == 0.25
    assert np.isnan(area_under_curve(half, np.ones(4)))
    assert area_under_curve(np.array([0.1, 0.4, 0.3, 0.2]), 1 - y) == 0.0


def test_weights_act_as_repetitions() -> None:
    rng = np.random.default_rng(3)
    p, times = rng.random(200), rng.integers(1, 5, 200)
    y = (rng.random(200) < p).astype(float)
    whole, many = (p, y, times.astype(float)), (np.repeat(p, times), np.repeat(y, times))
    for measure in (expected_calibration_error, brier, area_under_curve):
        assert measure(*whole) == pytest.approx(measure(*many))
    table = reliability(*whole)
    assert table["weight"].sum() == times.sum()
    gaps = (table["weight"] * (table["predicted"] - table["observed"]).abs()).sum() / times.sum()
    assert gaps == pytest.approx(expected_calibration_error(*whole))


def test_online_logistic_learns_from_censored_outcomes() -> None:
    """True slope 0.8, intercepts 0.3 and -0.6; half of the positions are never verified.

    20,000 blocks and forgetting every 3,200 leave a standard error of about 0.06.
    """
    rng = np.random.default_rng(0)
    model = OnlineLogistic(2)
    for _ in range(625):
        max_prob = expit(rng.normal(0.5, 1.5, (32, 2)))
        f = np.log(max_prob / (1 - max_prob))
        stands = rng.random((32, 2)) < expit(0.8 * f + np.array([0.3, -0.6]))
        lengths = rng.integers(0, 3, 32)
        accepted = np.minimum(np.cumprod(stands, 1).sum(1), lengths)
        model.observe(max_prob, lengths, accepted)
    assert np.allclose(model.parameters, [0.8, 0.3, -0.6], atol=0.3)
    told = model.confidences(np.array([[0.5, 0.5]]))[0]
    assert told[0] > told[1]


@pytest.mark.parametrize("center", [4.0, -4.0])
def test_online_logistic_settles_for_a_drafter_whose_certainty_says_nothing(center: float) -> None:
    """Features N(center, 1.5), 29 % accepted: a full Newton step from the start overshoots for ever
    at 4. 19,200 blocks of which the last 3,200 count: standard error 0.008; four of them."""
    rng = np.random.default_rng(1)
    model = OnlineLogistic(1)
    for _ in range(600):
        max_prob = expit(rng.normal(center, 1.5, (32, 1)))
        model.observe(max_prob, np.ones(32), rng.random(32) < 0.29)
    told = model.confidences(expit(rng.normal(center, 1.5, (1000, 1))))
    assert np.abs(told - 0.29).mean() < 0.032


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    rates = {"math": 0.8, "chat": 0.6}
    traces = synthetic_traces(rates, gamma=4, responses=30, response_tokens=60, seed=1)
    return synthetic_bundle(tmp_path / "bundle", traces)


def test_command_writes_the_manifest(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (bundle_folder / "manifest.json").read_text()
    arguments = [str(bundle_folder), "--method", "sts", "--csv", str(tmp_path / "csv")]
    assert cal.main([*arguments, "--dry-run"]) == 0
    assert (bundle_folder / "manifest.json").read_text() == before
    assert cal.main(arguments) == 0
    bundle = read_bundle(bundle_folder)
    written = bundle.manifest.calibration
    assert [c.temperature for c in written] == list(bundle.manifest.temperatures)
    assert all(c.method == "sts" and set(c.bias) == {0.0} for c in written)
    assert {"scores.csv", "reliability.csv"} == {p.name for p in (tmp_path / "csv").iterdir()}
    assert "| T | method | ECE 1 |" in capsys.readouterr().out
    assert cal.main([str(bundle_folder), "--method", "none"]) == 0
    assert json.loads((bundle_folder / "manifest.json").read_text())["calibration"] == []


def test_tables_are_written_whole_or_not_at_all(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with largest_file(500):
        code = cal.main([str(bundle_folder), "--csv", str(tmp_path / "csv")])
    assert code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/csv/scores.csv: File too large\n"
    assert list((tmp_path / "csv").iterdir()) == []


def test_halves_share_no_prompt(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    temperature = bundle.manifest.temperatures[0]
    halves = cal.bundle_anchors(bundle, temperature, walked=False)
    assert sum(len(h.accepted) for h in halves) == bundle.traces.anchors
    walked = cal.bundle_anchors(bundle, temperature, walked=True)
    assert sum(len(h.accepted) for h in walked) < bundle.traces.anchors
    assert all(h.weight.min() > 0 and h.weight.max() <= 1 for h in walked)


def test_bad_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cal.main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
