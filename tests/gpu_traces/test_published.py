"""Published sources: what they printed holds for what is generated from them, and says so."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from gpu_traces.published import (
    latency_names,
    published_latency,
    published_table,
    published_traces,
    trace_names,
    trace_rates,
)
from gpu_traces.published_check import (
    alpaca,
    expected_calibration_error,
    latency_figure,
    roc_auc,
    threshold_sweep,
)
from gpu_traces.walk import accepted_length
from tests.gpu_traces.test_generator import clustered_error, one_domain


@pytest.mark.parametrize("name", trace_names())
def test_conditional_acceptance_matches_the_source(name: str) -> None:
    """Every domain and position within 4.5 clustered standard errors of the printed value (plus
    0.003: the means are solved on a finite sample); all 156 comparisons together raise a false
    alarm for fewer than one seed in 500.
    """
    whole = published_traces(name, responses=150, seed=4)
    for code, rates in enumerate(trace_rates(name).values()):
        traces = one_domain(whole, code)
        difference, error = clustered_error(traces, rates)
        assert np.all(np.abs(difference) < 4.5 * error + 0.003), (code, difference, error)


@pytest.mark.parametrize(
    ("name", "drafter"),
    [
        ("dspark-qwen3-4b", "DSpark"),
        ("dflash-qwen3-4b", "DFlash"),
        ("eagle3-qwen3-4b", "Eagle3"),
    ],
)
def test_accepted_length_agrees_with_table_1(name: str, drafter: str) -> None:
    """Domain means of Table 1 within 0.1: 0.04 is the gap between the paper's own Fig. 2 and
    Table 1, the rest 3 standard errors and the rounds that a response's end cuts short."""
    table = published_table("paper_table1_accepted_length")
    mine = table[(table["target"] == "Qwen3-4B") & (table["drafter"] == drafter)]
    printed = mine.groupby("domain")["accepted_length_tau_incl_bonus"].mean()
    made = accepted_length(published_traces(name)).set_index("domain")["tokens_per_round"]
    for domain, length in printed.items():
        assert made[str(domain).lower()] == pytest.approx(length, abs=0.1)


@pytest.mark.parametrize("row", published_table("paper_fig6_ece_auc").to_dict("records"))
def test_confidences_are_as_wrong_and_as_sharp_as_the_papers(row: dict[str, float]) -> None:
    """Fig. 6 at positions 1, 3, 5, 7: ECE before and after STS within 0.01, AUC within 0.025. The
    sample has 110,000 rounds (standard errors under 0.003), so the tolerance is the fit's own.
    """
    k = int(row["draft_position"]) - 1
    sample = alpaca()
    before, after, outcome = sample.before[:, k], sample.after[:, k], sample.outcome[:, k]
    raw_error = expected_calibration_error(before, outcome)
    assert raw_error == pytest.approx(row["ece_before"], abs=0.01)
    assert expected_calibration_error(after, outcome) == pytest.approx(row["ece_after"], abs=0.01)
    assert roc_auc(after, outcome) == pytest.approx(row["roc_auc"], abs=0.025)
    assert before.mean() > outcome.mean() + 0.02


def test_calibration_error_and_auc_by_hand() -> None:
    predicted, outcome = np.array([0.1, 0.3, 0.6, 0.9]), np.array([0.0, 1.0, 0.0, 1.0])
    error = expected_calibration_error(predicted, outcome)
    assert error == pytest.approx((0.1 + 0.7 + 0.6 + 0.1) / 4)
    assert roc_auc(predicted, outcome) == pytest.approx(3 / 4)


@pytest.mark.parametrize("domain", ["Math", "Chat"])
def test_threshold_sweep_that_was_not_fitted(domain: str) -> None:
    """Fig. 5: accepted and rejected tokens per step within 0.3 and 0.6 at all ten thresholds."""
    sweep = threshold_sweep(domain, responses=60)
    assert (sweep["accepted"] - sweep["made accepted"]).abs().max() < 0.3
    assert (sweep["rejected"] - sweep["made rejected"]).abs().max() < 0.6


@pytest.mark.parametrize("position", [1, 3, 5, 7])
def test_spread_of_raw_confidences_matches_the_histogram(position: int) -> None:
    """Largest difference between the distribution functions at the 20 bin edges: 0.09 at most."""
    table = published_table("paper_fig6_histogram")
    share = table[table["draft_position"] == position]["sample_share"].to_numpy()
    mine, _ = np.histogram(alpaca().before[:, position - 1], bins=20, range=(0, 1))
    gap = np.cumsum(share / share.sum()) - np.cumsum(mine / mine.sum())
    assert np.abs(gap).max() < 0.09


def test_calibrated_is_the_default_and_differs_from_raw() -> None:
    options = {"responses": 20, "response_tokens": 60}
    calibrated = published_traces("dspark-qwen3-4b", **options)
    raw = published_traces("dspark-qwen3-4b", calibrated=False, **options)
    assert np.array_equal(calibrated.accepted, raw.accepted)
    assert raw.confidence.mean() > calibrated.confidence.mean() + 0.01


def test_origin_is_published_and_the_seed_decides() -> None:
    options = {"responses": 10, "response_tokens": 50}
    one, same, other = (published_traces("dspark-kimi-k3", seed=s, **options) for s in (1, 1, 2))
    assert one.origin.kind == "published"
    assert "Kimi" in one.origin.detail
    assert one.accepted.tobytes() == same.accepted.tobytes()
    assert one.accepted.tobytes() != other.accepted.tobytes()
    assert len(one.domains) == 7


def test_vllm_world_is_the_posts_staircase() -> None:
    """Medians at captured sizes, padding up between them, the cliff behind 1,024 tokens."""
    world = published_latency("vllm-v4-flash-b300")
    assert world.origin.kind == "published"
    assert world.verify_s[16] == pytest.approx(5.5924e-3)
    assert world.verify_s[17] == world.verify_s[24] == pytest.approx(6.0843e-3)
    assert world.verify_s[1024] == pytest.approx(20.634e-3)
    assert world.verify_s[1025] > 0.1
    assert world.draft_s[7, 256] == pytest.approx(5.38e-3)
    assert world.draft_s[1, 9] == world.draft_s[7, 16]
    assert (world.max_requests, world.max_tokens) == (256, 16384)
    with pytest.raises(ValueError, match="257 requests"):
        world.check_range(257, 100)


def test_vllm_belief_agrees_with_the_posts_own_cost_table() -> None:
    """The post plots the table that vLLM built, risers at captured sizes; ceil rebuilds it."""
    table = published_table("vllm_fig2").set_axis(["table", "kind", "size", "ms"], axis=1)
    steps = table[(table["table"] == "verify") & (table["kind"] == "cost_table_step_vertex")]
    inside = steps[steps["size"] <= 1024].groupby("size")["ms"].min() / 1e3
    belief = published_latency("vllm-v4-flash-b300").cost_table("ceil").verify_s
    ratio = belief[inside.index.to_numpy()] / inside.to_numpy()
    assert np.median(np.abs(ratio - 1)) < 0.003


def test_dcut_world_reproduces_its_table() -> None:
    """Time = f(T) + slope * R: every printed cell within 6 %, the median within 2 %."""
    world = published_latency("dcut-qwen3-8b-h20")
    rows = published_table("dcut_cost_table")
    rows = rows[rows["model"] == "Qwen3-8B dense"]
    tokens = (rows["batch_size"] * 16 * rows["keep_ratio"]).astype(int).to_numpy()
    made = world.verify_s[tokens] + world.context_s * 8192 * rows["batch_size"].to_numpy()
    error = np.abs(made / (rows["verify_step_ms"].to_numpy() / 1e3) - 1)
    assert error.max() < 0.06
    assert np.median(error) < 0.02


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="known: dcut-qwen3-8b-h20, vllm-v4-flash-b300"):
        published_latency("tpu")
    with pytest.raises(ValueError, match="known: dflash-qwen3-4b"):
        published_traces("medusa")
    with pytest.raises(ValueError, match="unknown published table 'fig99'"):
        published_table("fig99")
    assert len(latency_names()) == 2


def test_figures_are_well_formed_svg() -> None:
    root = ElementTree.fromstring(latency_figure())
    assert root.tag.endswith("svg")
    assert len([e for e in root.iter() if e.tag.endswith("path")]) > 15
