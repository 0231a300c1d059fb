"""Charts: what is drawn, titles with units, no NaN, origin kept; and the frames they draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from app import charts, frames, theme
from gpu_traces.synthetic import ALIKE, synthetic_traces
from policies import registry
from sim.state import COMPLETED

ORIGIN = "synthetic (a test)"
SUMMARY = {
    "output_tok_s": 100.0,
    "tok_s_per_user_p50": 10.0,
    **{f"{m}_s": {"p50": 0.1, "p95": 0.2, "p99": 0.4} for m in ("ttft", "tpot", "itl", "e2e")},
    "verified_tokens": 30,
    "wasted_tokens": 12,
    "tokens_per_round": 2.8,
    "mean_budget_tokens": 3.0,
    "mean_batch": 1.0,
    "mean_step_s": 0.01,
    "goodput_rps": 1.0,
    "slo_attainment": 0.5,
    "requests_completed": 5,
    "rounds": 10,
    "positions": [
        {"position": 1, "verified": 10, "accepted": 8},
        {"position": 2, "verified": 10, "accepted": 6},
        {"position": 3, "verified": 10, "accepted": 4},
    ],
    "unstable": "",
}


def numbers(figure: go.Figure) -> np.ndarray:
    values = [np.asarray(trace[axis]) for trace in figure.data for axis in "xy"]
    return np.concatenate([v.astype(float) for v in values if v.dtype.kind in "fiu"])


def check(figure: go.Figure, traces: int, x: str, y: str) -> None:
    """Trace count, axis titles, no NaN anywhere, and the origin under the title."""
    assert len(figure.data) == traces
    assert figure.layout.xaxis.title.text == x
    assert figure.layout.yaxis.title.text == y
    assert np.isfinite(numbers(figure)).all()
    assert figure.layout.title.subtitle.text == ORIGIN


def test_throughput_has_a_line_per_policy_in_order_of_concurrency() -> None:
    frame = pd.DataFrame(
        {
            "policy": ["none", "none", "confidence", "confidence"],
            "concurrency": [8, 1, 8, 1],
            "tok_s_per_user": [5.0, 9.0, 8.0, 20.0],
            "output_tok_s": [40.0, 9.0, 64.0, 20.0],
        }
    )
    figure = charts.throughput(frame, ORIGIN, "Frontier")
    check(figure, 2, "Interactivity, median (tok/s/user)", "Output tokens (tok/s)")
    assert list(figure.data[0].x) == [9.0, 5.0]
    assert figure.data[1].line.color == theme.policy_style("confidence").colour


def test_latencies_put_three_ranks_of_two_metrics_per_policy() -> None:
    figure = charts.latencies(frames.comparison({"none": SUMMARY, "fixed-k": SUMMARY}), ORIGIN)
    check(figure, 4, "Time to first token, TTFT (ms)", "Policy")
    assert figure.layout.xaxis2.title.text == "Time per output token, TPOT (ms)"
    assert list(figure.data[0].x) == pytest.approx([100.0, 200.0, 400.0])


def test_acceptance_of_identical_blocks_holds_the_rate_at_every_position() -> None:
    """With 120,000 tokens each estimate is within 4.5 of its own standard errors of the truth."""
    traces = synthetic_traces({"math": 0.8}, gamma=3, responses=600, difficulty=ALIKE)
    frame = frames.acceptance(traces)
    error = frame["conditional_half"] / 1.96
    assert (abs(frame["conditional"] - 0.8) < 4.5 * error).all()
    assert (error < 0.01).all()
    expected = 0.8 ** frame["position"]
    assert (abs(frame["survival"] - expected) < 4.5 * frame["survival_half"] / 1.96).all()
    check(
        charts.acceptance(frame, ORIGIN, "survival"),
        1,
        "Draft position",
        "Prefix accepted through this position",
    )


def test_true_probabilities_are_reliable_and_sharpened_ones_are_not() -> None:
    traces = synthetic_traces({"chat": 0.7}, gamma=4, responses=300)
    sharp = synthetic_traces({"chat": 0.7}, gamma=4, responses=300, overconfidence=2.0)
    good = frames.reliability(traces, traces.confidence, "good")
    bad = frames.reliability(traces, sharp.confidence, "bad")
    assert frames.calibration_error(good) < 0.02 < 0.05 < frames.calibration_error(bad)
    figure = charts.reliability(pd.concat([good, bad]), ORIGIN)
    check(figure, 3, "Predicted survival", "Observed survival")


def test_step_and_draft_time_show_samples_and_curves() -> None:
    cells = pd.DataFrame(
        {
            "mode": ["verify", "verify"],
            "requests": [1, 2],
            "tokens": [4, 8],
            "context_tokens": [128, 1024],
            "draft_length": [0, 0],
            "repetitions": [5, 5],
            "ms": [4.0, 4.2],
        }
    )
    curve = pd.DataFrame({"curve": "model", "tokens": [1, 8], "ms": [4.0, 4.2]})
    figure = charts.step_time(cells, curve, ORIGIN)
    check(figure, 3, "Target tokens in the step, T", "Target pass (ms)")
    line = pd.DataFrame({"length": [1, 1, 2, 2], "requests": [1, 2, 1, 2], "ms": [1.0, 2, 3, 4]})
    check(
        charts.draft_time(cells.iloc[:0], line, ORIGIN), 4, "Requests in the step, R", "Draft (ms)"
    )


def test_step_cells_are_medians_in_milliseconds() -> None:
    shape = {"requests": 1, "tokens": 8, "context_tokens": 0, "draft_length": 0, "graph": True}
    samples = [(mode, us) for mode in ("verify", "draft") for us in (1e3, 9e3, 2e3)]
    steps = pd.DataFrame([{"mode": mode, **shape, "microseconds": us} for mode, us in samples])
    [cell] = frames.step_cells(steps, ("verify",)).to_dict("records")
    assert (cell["ms"], cell["repetitions"]) == (2.0, 3)


def test_timeline_has_a_panel_per_quantity() -> None:
    steps = pd.DataFrame({name: [1.0, 2.0] for name in ("start_s", *charts.TIMELINE)})
    figure = charts.timeline(steps, ORIGIN, "confidence")
    assert len(figure.data) == len(charts.TIMELINE)
    assert figure.layout.yaxis4.title.text == "Step time (ms)"
    assert figure.layout.xaxis4.title.text == "Time since the start (s)"


def requests(seconds: float, count: int = 40) -> pd.DataFrame:
    """Completed requests that each took about ``seconds``, with spread."""
    arrival_s = np.arange(count, dtype=float)
    took_s = seconds * (1 + 0.1 * np.sin(arrival_s))
    return pd.DataFrame(
        {
            "status": COMPLETED,
            "arrival_s": arrival_s,
            "first_token_s": arrival_s + 0.1,
            "finish_s": arrival_s + took_s,
            "generated_tokens": 11,
        }
    )


def test_distribution_rises_from_nobody_to_everybody() -> None:
    times = {"none": frames.request_times(requests(2.0))}
    figure = charts.distribution(times, ORIGIN, "tpot_ms")
    check(figure, 1, "Time per output token, TPOT (ms)", "Share of completed requests")
    assert (np.diff(figure.data[0].x) >= 0).all()
    assert (figure.data[0].y[0], figure.data[0].y[-1]) == (0.0, 1.0)


def test_positions_leave_out_a_policy_that_verified_nothing() -> None:
    idle = {**SUMMARY, "positions": [{"position": 1, "verified": 0, "accepted": 0}]}
    frame = frames.position_rates({"none": idle, "fixed-k": SUMMARY})
    assert frame["accepted"].tolist() == [0.8, 0.6, 0.4]
    check(charts.positions(frame, ORIGIN), 2, "Draft position", "Share of rounds")


def test_verdict_names_the_winner_ties_and_who_cannot_keep_up() -> None:
    fast, slow = requests(1.0), requests(2.0)
    fine, lost = {"unstable": ""}, {"unstable": "queue grew"}
    pair = {"none": slow, "confidence": fast}
    assert frames.verdict(pair, dict.fromkeys(pair, fine)).startswith("**confidence** wins")
    mirrored = fast.assign(finish_s=2 * fast["arrival_s"] + 2.0 - fast["finish_s"])
    tie = {"a": fast, "b": mirrored}
    assert "no difference shown" in frames.verdict(tie, dict.fromkeys(tie, fine))
    assert "only one" in frames.verdict(pair, {"none": fine, "confidence": lost})
    assert "No policy keeps up" in frames.verdict(pair, dict.fromkeys(pair, lost))


def test_differences_are_text_with_an_interval_or_none_shown() -> None:
    row = {"mean": -0.47, "low": -0.513, "high": -0.427, "shown": True}
    assert frames.difference_text(row) == "-470 ms (-513 to -427)"
    assert frames.difference_text({**row, "shown": False}) == "no difference shown"
    assert "too few" in frames.difference_text({**row, "low": None})


def test_thinning_keeps_means_and_short_frames() -> None:
    frame = pd.DataFrame({"x": np.arange(1000.0)})
    assert frames.thin(frame) is frame
    small = frames.thin(frame, most=100)
    assert len(small) == 100
    assert small["x"].mean() == pytest.approx(frame["x"].mean())


def test_styles_depend_on_the_name_alone_and_tell_policies_apart() -> None:
    styles = {name: theme.policy_style(name) for name in registry.names()}
    assert len(set(styles.values())) == len(styles)
    assert theme.policy_style("a-third-party-policy") == theme.policy_style("a-third-party-policy")
    base, variant = theme.policy_style("fixed-k"), theme.policy_style("fixed-k:k=3")
    assert base.colour == variant.colour
    assert base != variant
