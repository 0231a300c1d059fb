"""Engines' own logs, as their formats define them, with the censoring each one has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_traces.ingest import (
    MISCOUNTED,
    NONE,
    TRIMMED,
    read_sglang_bench,
    read_sglang_records,
    read_speculation_profile,
    read_vllm_bench,
    read_vllm_requests,
)
from gpu_traces.sps_table import read_sps_table


def save(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def lines(path: Path, *documents: Any) -> Path:
    path.write_text("\n".join(json.dumps(d) for d in documents) + "\n")
    return path


def record(mode: str, *requests: tuple[str, int, int, int], **extra: Any) -> dict[str, Any]:
    """A DecodeStepRecord; requests are (rid, verify_len, correct_drafts, cap_trim)."""
    details = [
        {
            "rid": rid,
            "prefix_len": 100,
            "verify_len": window,
            "correct_drafts": correct,
            "cap_trim": trim,
            "draft_tokens": [1, 2, 3, 4],
        }
        for rid, window, correct, trim in requests
    ]
    return {"forward_ct": 1, "bs": len(requests), "mode": mode, "reqs": details, **extra}


def test_sglang_compact_records_are_right_censored(tmp_path: Path) -> None:
    dump = [
        record("compact", ("a", 3, 2, 0), ("b", 1, 0, 0)),
        record("compact", ("a", 5, 1, 0)),
    ]
    rounds = read_sglang_records(save(tmp_path / "r.json", {"dspark_info_record": dump}))
    assert rounds.censoring == TRIMMED
    table = rounds.table
    assert table[["request", "round", "verified", "accepted"]].to_numpy().tolist() == [
        ["a", 0, 2, 2],
        ["b", 0, 0, 0],
        ["a", 1, 4, 1],
    ]
    marginals = rounds.marginals()
    assert marginals["reached"].tolist() == [2, 2, 0, 0]
    assert marginals["accepted"].tolist() == [2, 1, 0, 0]
    assert marginals["conditional"].tolist()[:2] == [1.0, 0.5]


def test_sglang_cap_accept_records_are_whole_blocks(tmp_path: Path) -> None:
    dump = [record("cap-accept", ("a", 2, 1, 2))]
    rounds = read_sglang_records(save(tmp_path / "r.json", dump))
    assert rounds.censoring == NONE
    assert rounds.table[["verified", "accepted"]].to_numpy().tolist() == [[4, 3]]


def test_sglang_timings_become_latency_samples(tmp_path: Path) -> None:
    timed = {"target_verify_gpu_ms": 5.0, "draft_gpu_ms": 1.5, "verify_tokens_graph_key": 8}
    dump = [record("compact", ("a", 3, 0, 0), ("b", 4, 0, 0), **timed)] * 2
    steps = read_sglang_records(save(tmp_path / "r.json", dump)).steps
    verify = steps[steps["mode"] == "verify"]
    assert verify[["requests", "tokens", "context_tokens"]].to_numpy().tolist() == [[2, 8, 100]] * 2
    assert verify["graph"].all()
    assert verify["repetition"].tolist() == [0, 1]
    draft = steps[steps["mode"] == "draft"]
    assert (
        draft[["tokens", "draft_length", "microseconds"]].to_numpy().tolist()
        == [[8.0, 4.0, 1500.0]] * 2
    )


def test_sglang_records_that_contradict_themselves(tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", [record("compact", ("a", 2, 3, 0))])
    with pytest.raises(ValueError, match=r"r\.json, record 0: 3 correct drafts of 1 verified"):
        read_sglang_records(path)
    both = [record("compact", ("a", 2, 1, 0)), record("cap-accept", ("a", 2, 1, 0))]
    with pytest.raises(ValueError, match="mixes modes cap-accept, compact"):
        read_sglang_records(save(tmp_path / "r.json", both))
    with pytest.raises(ValueError, match="field 'dspark_info_record' is missing"):
        read_sglang_records(save(tmp_path / "r.json", {}))


def test_vllm_rounds_say_when_they_are_miscounted(tmp_path: Path) -> None:
    block = {"per_step_accepted": [3, 0], "per_step_drafted": [3, 3]}
    response = {"id": "r1", "metrics": {"speculative_decoding": block}}
    path = lines(tmp_path / "v.jsonl", response, block)
    fixed, adaptive = read_vllm_requests(path, False), read_vllm_requests(path, True)
    assert (fixed.censoring, adaptive.censoring) == (NONE, MISCOUNTED)
    assert fixed.table["request"].tolist() == ["r1", "r1", "2", "2"]
    assert fixed.marginals()["survival"].tolist() == [0.5, 0.5, 0.5]


def test_vllm_rounds_refuse_malformed_lines(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text('{"per_step_accepted": [1], "per_step_drafted": [3]}\n{oops\n')
    with pytest.raises(ValueError, match=r"v\.jsonl, line 2: not JSON"):
        read_vllm_requests(path, False)
    lines(path, {"per_step_accepted": [4], "per_step_drafted": [3]})
    with pytest.raises(ValueError, match="line 1: round 0 accepted 4 of 3"):
        read_vllm_requests(path, False)
    lines(path, {"per_step_accepted": [4]})
    with pytest.raises(ValueError, match="line 1: field 'per_step_drafted' is missing"):
        read_vllm_requests(path, False)


RUN = {
    "request_rate": "inf",
    "duration": 10.0,
    "completed": 2,
    "total_input_tokens": 30,
    "total_output_tokens": 20,
    "output_throughput": 2.0,
    "mean_ttft_ms": 12.0,
    "p99_itl_ms": None,
}


def test_vllm_bench(tmp_path: Path) -> None:
    run = RUN | {
        "model_id": "m",
        "spec_decode_acceptance_length": 2.5,
        "spec_decode_per_position_acceptance_rates": [0.8, 0.5],
        "input_lens": [10, 20],
        "output_lens": [5, 15],
        "ttfts": [0.1, 0.2],
        "itls": [[0.01], [0.02, 0.03]],
    }
    bench = read_vllm_bench(save(tmp_path / "b.json", run))
    assert (bench.engine, bench.model, bench.request_rate) == ("vllm", "m", np.inf)
    assert (bench.accepted_length, bench.survival) == (2.5, (0.8, 0.5))
    assert bench.milliseconds == {"mean_ttft_ms": 12.0}
    assert bench.requests["itl_s"].tolist() == [[0.01], [0.02, 0.03]]
    assert bench.requests["output_tokens"].tolist() == [5, 15]


def test_sglang_bench_is_one_run_per_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "b.jsonl", RUN | {"accept_length": 3.1}, RUN)
    first, second = read_sglang_bench(path)
    assert (first.accepted_length, second.accepted_length) == (3.1, None)
    assert first.requests.empty
    lines(path, RUN, {"duration": 1.0})
    with pytest.raises(ValueError, match="line 2: field 'request_rate' is missing"):
        read_sglang_bench(path)


def test_speculation_profile_in_either_form(tmp_path: Path) -> None:
    conditional = save(tmp_path / "c.json", {"conditional_accept_rates": [0.9, 0.5]})
    marginal = save(tmp_path / "m.json", {"marginal_accept_rates": [0.9, 0.45]})
    assert read_speculation_profile(conditional) == (0.9, 0.5)
    assert read_speculation_profile(marginal) == pytest.approx((0.9, 0.5))
    rising = save(tmp_path / "r.json", {"marginal_accept_rates": [0.5, 0.9]})
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        read_speculation_profile(rising)
    with pytest.raises(ValueError, match="'marginal_accept_rates' is missing"):
        read_speculation_profile(save(tmp_path / "e.json", {}))


def test_sps_table_one_dimension_floors(tmp_path: Path) -> None:
    table = {
        "sample_batch_tokens": [1, 8, 32],
        "sample_steps_per_sec": [100.0, 80.0, 50.0],
        "max_batch_tokens": 64,
    }
    belief = read_sps_table(save(tmp_path / "s.json", table))
    assert belief.verify_s[[1, 7, 8, 31, 32, 64]] == pytest.approx(
        [0.01, 0.01, 0.0125, 0.0125, 0.02, 0.02]
    )
    assert belief.draft_time_s(100) == 0.0
    assert belief.verify_curve_s(100, 1)[0] == pytest.approx(0.02)


def test_sps_table_additive_interpolates_and_clamps(tmp_path: Path) -> None:
    table = {
        "bias_seconds": 0.004,
        "bs_probes": [1, 11],
        "alpha_seconds": [0.0, 0.001],
        "m_probes": [10, 20],
        "theta_seconds": [0.002, 0.004],
    }
    belief = read_sps_table(save(tmp_path / "s.json", table), gamma=5, max_requests=32)

    def time_s(requests: int, tokens: int) -> float:
        return belief.draft_time_s(requests) + float(belief.verify_curve_s(tokens, 1)[0])

    assert time_s(6, 15) == pytest.approx(0.004 + 0.0005 + 0.003)
    assert time_s(1, 2) == pytest.approx(0.004 + 0.002)
    assert time_s(30, 500) == pytest.approx(0.004 + 0.001 + 0.004)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample_batch_tokens": [8, 8, 32]}, "must strictly increase"),
        ({"sample_batch_tokens": [1, 8]}, "2 probes but 3 values"),
        ({"sample_steps_per_sec": [1, 0, 2]}, "must be above 0"),
        ({"sample_steps_per_sec": "fast"}, "must be a list of numbers"),
        ({"bias_seconds": -1.0}, "bias_seconds must be above 0"),
        ({"bias_seconds": 1.0}, "field 'bs_probes' is missing"),
    ],
)
def test_sps_table_refuses(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    table = {"sample_batch_tokens": [1, 8, 32], "sample_steps_per_sec": [100.0, 80.0, 50.0]}
    with pytest.raises(ValueError, match=says):
        read_sps_table(save(tmp_path / "s.json", table | change))
