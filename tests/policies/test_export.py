"""The policy file and the engines' files: round trips, refusals, and the engines' own rules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from policies import engines
from policies.cost import CostTable, densify
from policies.export import (
    Calibrated,
    PolicyFile,
    breakpoints,
    main,
    read_policy,
    write_policy,
)
from policies.registry import get, names

GAMMA = 7
EXPORTABLE = [name for name in names() if not get(name).analysis_only]


def stairs() -> CostTable:
    """A belief with stairs, a drafter, and every scalar set."""
    verify_s = densify([1, 8, 16, 64, 128], [5e-3, 6e-3, 8e-3, 9e-3, 2e-2], "ceil", 512)
    requests = np.arange(65.0)
    draft_s = np.outer(np.arange(GAMMA + 1) > 0, 1e-3 + 2e-5 * np.maximum(requests, 8))
    return CostTable(draft_s, verify_s, 1e-9, 2e-4, 3e-6, (1, 8, 16, 64, 128))


def exported(name: str, **parameters: object) -> PolicyFile:
    """A policy file calibrated with unequal scales, at T = 0 with a bias."""
    scales = tuple(1.0 + 0.1 * k for k in range(GAMMA))
    calibration = (
        Calibrated(0.0, scales, (0.5,) * GAMMA),
        Calibrated(1.0, scales, (0.0,) * GAMMA),
    )
    return PolicyFile(name, parameters, GAMMA, stairs(), calibration, {"command": "test"})


@pytest.mark.parametrize("name", EXPORTABLE)
def test_round_trip(name: str, tmp_path) -> None:
    """What is read is what was written: parameters with defaults, and the dense tables exactly."""
    write_policy(tmp_path / "policy.json", exported(name))
    back = read_policy(tmp_path / "policy.json")
    assert back.policy == name
    assert back.parameters == exported(name).config()
    assert back.calibration == exported(name).calibration
    assert back.provenance == {"command": "test"}
    np.testing.assert_allclose(back.cost.verify_s, stairs().verify_s, rtol=1e-12)
    np.testing.assert_allclose(back.cost.draft_s, stairs().draft_s, rtol=1e-12)
    scalars = ("context_s", "adaptive_s", "adaptive_token_s", "refill_s", "tiers")
    assert all(getattr(back.cost, k) == getattr(stairs(), k) for k in scalars)
    assert back.make().name == name
    assert len(json.loads((tmp_path / "policy.json").read_text())["cost"]["verify"]["sizes"]) < 20


def test_breakpoints_are_enough_and_few() -> None:
    """A line needs two points, a stair two a step; random curves come back from theirs."""
    assert breakpoints(np.arange(100.0)) == [0, 99]
    curve = np.repeat([1.0, 2.0], 50)
    assert breakpoints(curve) == [0, 49, 50, 99]
    noisy = np.random.default_rng(0).random(50)
    at = breakpoints(noisy)
    np.testing.assert_allclose(np.interp(np.arange(50), at, noisy[at]), noisy)


@pytest.mark.parametrize("name", ["oracle", "oracle-static"])
def test_analysis_only_is_refused(name: str) -> None:
    """A bound can't leave the lab."""
    with pytest.raises(ValueError, match=f"policy '{name}' is for analysis only"):
        exported(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema_version 9, known: 1"),
        ({"kind": "else"}, "is not a policy file"),
        ({"policy": "nope"}, "unknown policy 'nope'; known: "),
        ({"policy": "oracle"}, "analysis only"),
        ({"parameters": {"lag": "two"}}, "lag='two' must be of type int"),
        ({"parameters": {"speed": 2}}, "has no parameter 'speed'"),
        ({"gamma": 5}, "needs 5 scales"),
        ({"calibration": [{"temperature": 1, "scales": [0.0] * 7, "bias": [0] * 7}]}, "scales > 0"),
        ({"cost": {}}, "has no field"),
        ({"calibration": [{}]}, "policy.json"),
    ],
)
def test_a_bad_file_gets_one_clear_line(change: dict, message: str, tmp_path) -> None:
    """Every refusal names the file or the field, in one line."""
    path = tmp_path / "policy.json"
    write_policy(path, exported("hardware-aware"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as caught:
        read_policy(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_garbage_is_refused(content: str, tmp_path) -> None:
    """Truncated and foreign files are named, not traced back."""
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        read_policy(path)
    with pytest.raises(ValueError, match="No such file"):
        read_policy(tmp_path / "absent.json")


def test_sglang_additive_table_means_the_same_cost() -> None:
    """SGLang's own lookup of the exported table gives draft + verify seconds of the belief."""
    cost = stairs()
    table = engines.to_sglang(exported("sglang"))["sps_table.json"]
    assert "bias_seconds" in table  # SGLang tells the kind by this key
    for requests in (1, 5, 20, 64):
        drafts = np.arange(0, 512 - requests)
        believed = cost.draft_time_s(requests) + cost.verify_curve_s(requests, drafts.size)
        read = engines.additive_lookup_s(table, requests, drafts)
        np.testing.assert_allclose(read, believed, rtol=1e-9)


def test_sglang_1d_table_is_the_diagonal() -> None:
    """At a probe the exported table gives the step time of full blocks; between, the one below."""
    cost = stairs()
    table = engines.to_sglang(exported("sglang", table="1d"))["sps_table.json"]
    believed = cost.verify_s[8] + cost.draft_s[-1, 1]
    assert engines.sps_lookup_s(table, 8) == pytest.approx(believed)
    assert engines.sps_lookup_s(table, 12) == engines.sps_lookup_s(table, 9)


@pytest.mark.parametrize(
    ("check", "table", "message"),
    [
        (engines.check_sps_table, {"sample_batch_tokens": [2, 2]}, "strictly increasing"),
        (engines.check_sps_table, {"sample_steps_per_sec": [1.0]}, "one per probe"),
        (engines.check_sps_table, {"max_batch_tokens": 1}, "reach the last probe"),
        (engines.check_additive_table, {"bias_seconds": 0.0}, "bias_seconds must be > 0"),
        (engines.check_additive_table, {"m_probes": [3, 1]}, "strictly increasing"),
        (engines.check_additive_table, {"alpha_seconds": [1.0] * 99}, "one per entry"),
    ],
)
def test_the_engines_own_rules(check, table: dict, message: str) -> None:
    """A table that SGLang would refuse is refused here."""
    spec = exported("sglang", table="1d" if check is engines.check_sps_table else "additive")
    good = engines.to_sglang(spec)["sps_table.json"]
    check(good)
    with pytest.raises(ValueError, match=message):
        check(good | table)


def test_vllm_configs() -> None:
    """Static policies become the batch-size table, adaptive ones the switch."""
    by_batch = exported("per-batch-size", table="1-8:9/9-32:3")
    config = engines.to_vllm(by_batch)["speculative_config.json"]
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 8, 7], [9, 32, 3]]
    assert config["num_speculative_tokens"] == GAMMA
    adaptive = engines.to_vllm(exported("vllm"))["speculative_config.json"]
    assert adaptive["enable_adaptive_verification"] is True
    with pytest.raises(ValueError, match="policy 'dcut' has no form that vLLM loads"):
        engines.to_vllm(exported("dcut"))


def test_sglang_calibration_and_adaptive_files() -> None:
    """STS temperatures go through unchanged; the adaptive file is keyed by batch size."""
    sts = engines.to_sglang(exported("sglang"))["sts.json"]
    assert sts["temperatures"] == list(exported("sglang").calibration[1].scales)
    rules = engines.to_sglang(exported("sglang-adaptive"))["speculative_adaptive_config.json"]
    assert rules["1"] == {"candidate_steps": [1, 3, 5, 7], "down_hysteresis": -0.25}
    assert rules["64"]["candidate_steps"] == [0]
    fixed = engines.to_sglang(exported("fixed-k", k=4))["speculative_adaptive_config.json"]
    assert fixed == {"1": {"candidate_steps": [4], "down_hysteresis": 0.0}}


def test_ascend_and_tensorrt_llm() -> None:
    """Parameter names of the engines, values of the policy."""
    ascend = engines.to_ascend(exported("ascend", threshold=0.7))["additional_config.json"]
    parameters = ascend["dynamic_spec_config"]["method_params"]
    assert parameters["budget_threshold"] == 0.7
    assert parameters["budget_update_interval"] == 16
    limited = engines.to_tensorrt_llm(exported("tensorrt-llm", max_concurrency=32))
    assert limited["speculative_config.json"]["max_concurrency"] == 32
    table = engines.to_tensorrt_llm(exported("per-batch-size", table="1-8:5/9-64:2/65-128:0"))
    assert table["speculative_config.json"] == {"max_draft_len": 5, "max_concurrency": 64}
    with pytest.raises(ValueError, match="never speculates"):
        engines.to_tensorrt_llm(exported("none"))


def test_command(tmp_path, capsys) -> None:
    """Converts a file; a refusal is one line, exit code 2 and no output file."""
    write_policy(tmp_path / "policy.json", exported("goodput"))
    arguments = [str(tmp_path / "policy.json"), "--out", str(tmp_path / "out"), "--engine"]
    assert main([*arguments, "sglang"]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"sps_table.json", "sts.json"}
    capsys.readouterr()
    assert main([*arguments, "vllm"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: policy 'goodput' has no form")
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "speculative_config.json").exists()


def test_sglang_refuses_a_bias() -> None:
    """Its file has no place for one; dropping it silently would shift every decision."""
    one = Calibrated(1.0, (1.0,) * GAMMA, (0.1,) * GAMMA)
    biased = PolicyFile("sglang", {}, GAMMA, stairs(), (one,))
    with pytest.raises(ValueError, match="--method sts"):
        engines.sts_file(biased)
