"""Converters from a policy file to the files and options that real engines load.

Formats, from the released packages: SGLang 0.5.23 (``--speculative-dspark-sps-table-path``, one- or
two-dimensional; ``--speculative-dspark-confidence-sts-path``; the adaptive-steps file), vLLM 0.33
(``--speculative-config``), vllm-ascend 0.30 (``additional_config``), TensorRT-LLM's
``max_concurrency``. Each ``check_*`` repeats the rules by which the engine would refuse its file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from policies.base import Floats
from policies.cost import CostTable
from policies.export import PolicyFile, breakpoints
from policies.per_batch_size import check_table, parse_table
from policies.sglang_adaptive import parse_slots

Json = dict[str, Any]
MAX_BATCH = 4096
"""Last batch size written where a rule has no end."""


def _rising(name: str, values: list[Any]) -> None:
    if not values or any(b <= a for a, b in zip(values, values[1:], strict=False)):
        raise ValueError(f"{name} must be non-empty and strictly increasing, got {values[:8]}")


def sps_table(cost: CostTable) -> Json:
    """SGLang's 1-D table: steps per second by verified tokens, on the diagonal of full blocks."""
    tokens = np.array([t for t in breakpoints(cost.verify_s) if t > 0])
    requests = np.minimum(-(-tokens // (cost.gamma + 1)), cost.draft_s.shape[1] - 1)
    seconds = cost.verify_s[tokens] + cost.draft_s[-1, requests]
    table = {
        "sample_batch_tokens": tokens.tolist(),
        "sample_steps_per_sec": (1.0 / seconds).tolist(),
        "max_batch_tokens": int(tokens[-1]),
    }
    check_sps_table(table)
    return table


def check_sps_table(table: Json) -> None:
    """ValueError unless SGLang would load this 1-D table."""
    tokens, rates = table["sample_batch_tokens"], table["sample_steps_per_sec"]
    _rising("sample_batch_tokens", tokens)
    if len(tokens) != len(rates) or not all(np.isfinite(r) and r > 0 for r in rates):
        raise ValueError("sample_steps_per_sec must be positive, one per probe")
    if table["max_batch_tokens"] < tokens[-1]:
        raise ValueError("max_batch_tokens must reach the last probe")


def sps_lookup_s(table: Json, tokens: int) -> float:
    """Seconds that SGLang reads from a 1-D table: the largest probe not above ``tokens``."""
    probe = np.searchsorted(table["sample_batch_tokens"], tokens, side="right") - 1
    return 1.0 / float(table["sample_steps_per_sec"][max(0, int(probe))])


def additive_table(cost: CostTable) -> Json:
    """SGLang's additive table: T(R, K) = bias + alpha(R) + theta(R + K); alpha is the drafting."""
    tokens = [t for t in breakpoints(cost.verify_s) if t > 0]
    requests = [r for r in breakpoints(cost.draft_s[-1]) if r > 0]
    bias = float(cost.verify_s[tokens[0]])
    table = {
        "bias_seconds": bias,
        "bs_probes": requests,
        "alpha_seconds": cost.draft_s[-1, requests].tolist(),
        "m_probes": tokens,
        "theta_seconds": (cost.verify_s[tokens] - bias).tolist(),
    }
    check_additive_table(table)
    return table


def check_additive_table(table: Json) -> None:
    """ValueError unless SGLang would load this additive table."""
    if not table["bias_seconds"] > 0:
        raise ValueError(f"bias_seconds must be > 0, got {table['bias_seconds']}")
    for probes, values in (("bs_probes", "alpha_seconds"), ("m_probes", "theta_seconds")):
        _rising(probes, table[probes])
        if len(table[probes]) != len(table[values]) or not np.isfinite(table[values]).all():
            raise ValueError(f"{values} must be finite, one per entry of {probes}")


def additive_lookup_s(table: Json, requests: int, drafts: Floats) -> Floats:
    """Seconds that SGLang reads from an additive table: interpolated, clamped at both ends."""
    alpha = np.interp(requests, table["bs_probes"], table["alpha_seconds"])
    theta = np.interp(requests + drafts, table["m_probes"], table["theta_seconds"])
    seconds: Floats = table["bias_seconds"] + alpha + theta
    return seconds


def sts_file(exported: PolicyFile) -> Json:
    """SGLang's calibration file, for the highest sampling temperature: it knows no bias."""
    entries = sorted(exported.calibration, key=lambda entry: entry.temperature)
    if any(b != 0 for entry in entries[-1:] for b in entry.bias):
        raise ValueError(
            "SGLang reads calibration without bias; calibrate the bundle with --method sts first"
        )
    fit = exported.provenance.get("calibration", {})
    return {
        "temperatures": list(entries[-1].scales) if entries else [1.0] * exported.gamma,
        "dataset": str(fit.get("dataset", "unknown")),
        "num_samples": int(fit.get("num_samples", 0)),
        "ece_before": list(fit.get("ece_before", [])),
        "ece_after": list(fit.get("ece_after", [])),
    }


def batch_ranges(exported: PolicyFile) -> list[tuple[int, int, int]]:
    """[first batch, last batch, k] of a policy whose length depends on the batch size alone."""
    config, name = exported.config(), exported.policy
    if name == "per-batch-size":
        return [(a, b, min(k, exported.gamma)) for a, b, k in parse_table(config["table"])]
    fixed = {"none": 0, "mtp-1": 1, "fixed-k": config.get("k")}.get(name)
    if fixed is None:
        raise ValueError(f"policy {name!r} is no function of the batch size alone")
    return [(1, MAX_BATCH, int(fixed))]


STATIC = ("none", "mtp-1", "fixed-k", "per-batch-size")
COST_TABLE = ("sglang", "vllm", "hardware-aware", "tensorrt-llm", "confidence", "atom", "goodput")
"""Policies that decide by a cost table: an engine with its own scheduler can use the table."""


def _unsupported(exported: PolicyFile, engine: str, allowed: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"policy {exported.policy!r} has no form that {engine} loads; it can take: "
        f"{', '.join(allowed)}"
    )


def to_vllm(exported: PolicyFile) -> dict[str, Any]:
    """vLLM: the value of ``--speculative-config``."""
    config: Json = {"method": "dspark", "num_speculative_tokens": exported.gamma}
    if exported.policy in STATIC:
        ranges = batch_ranges(exported)
        check_table(ranges)
        config["num_speculative_tokens_per_batch_size"] = [list(row) for row in ranges]
    elif exported.policy in ("vllm", "hardware-aware"):
        config["enable_adaptive_verification"] = True
    else:
        raise _unsupported(exported, "vLLM", (*STATIC, "vllm", "hardware-aware"))
    return {"speculative_config.json": config}


def to_sglang(exported: PolicyFile) -> dict[str, Any]:
    """SGLang: cost table and calibration of its DSpark planner, or the adaptive-steps file."""
    if exported.policy in COST_TABLE:
        one_dimensional = exported.config().get("table") == "1d"
        table = sps_table(exported.cost) if one_dimensional else additive_table(exported.cost)
        return {"sps_table.json": table, "sts.json": sts_file(exported)}
    if exported.policy == "sglang-adaptive":
        slots = parse_slots(exported.config()["slots"])
    elif exported.policy in STATIC:
        slots = [(first, [k], 0.0) for first, _, k in batch_ranges(exported)]
    else:
        raise _unsupported(exported, "SGLang", (*COST_TABLE, "sglang-adaptive", *STATIC))
    rules = {
        str(first): {"candidate_steps": steps, "down_hysteresis": down}
        for first, steps, down in slots
    }
    return {"speculative_adaptive_config.json": rules}


def to_ascend(exported: PolicyFile) -> dict[str, Any]:
    """vllm-ascend: the value of ``--additional-config``."""
    if exported.policy != "ascend":
        raise _unsupported(exported, "vllm-ascend", ("ascend",))
    config = exported.config()
    parameters = {
        "budget_update_interval": config["interval"],
        "budget_threshold": config["threshold"],
        "initial_verify_budget_per_req": config["initial"],
        "min_verify_tokens": config["min_length"],
    }
    return {"additional_config.json": {"dynamic_spec_config": {"method_params": parameters}}}


def to_tensorrt_llm(exported: PolicyFile) -> dict[str, Any]:
    """TensorRT-LLM: speculation options; a batch-size table becomes its last speculating batch."""
    options: Json = {"max_draft_len": exported.gamma}
    if exported.policy == "tensorrt-llm":
        limit = exported.config()["max_concurrency"]
        return {"speculative_config.json": options | ({"max_concurrency": limit} if limit else {})}
    if exported.policy not in STATIC:
        raise _unsupported(exported, "TensorRT-LLM", ("tensorrt-llm", *STATIC))
    used = [(last, k) for _, last, k in batch_ranges(exported) if k > 0]
    if not used:
        raise ValueError("policy never speculates: leave TensorRT-LLM's speculative_config out")
    options["max_draft_len"] = max(k for _, k in used)
    options["max_concurrency"] = used[-1][0]
    return {"speculative_config.json": options}


ENGINES: dict[str, Callable[[PolicyFile], dict[str, Any]]] = {
    "vllm": to_vllm,
    "sglang": to_sglang,
    "vllm-ascend": to_ascend,
    "tensorrt-llm": to_tensorrt_llm,
}
"""Engine name -> converter from a policy file to {file name: JSON document}."""
