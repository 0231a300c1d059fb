"""The disturbances that policies are held against: matrices of policies by settings.

Closed loops without prefill in the published world unless a matrix says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Words = tuple[str, ...]

CPU = ("--bundle", "smollm2-dspark-cpu")
PUBLISHED = ("--bundle", "published:dspark-qwen3-4b", "--latency", "published:vllm-v4-flash-b300")
LOOP = ("--scenario", "azure-conv", "--prefill", "none", "--requests", "1200")
BUSY: Words = (*PUBLISHED, *LOOP, "--concurrency", "128")
FIELD = ("fixed-k", "threshold", "confidence", "sglang", "tensorrt-llm", "hardware-aware", "vllm")
OURS = ("goodput", "goodput:history=false")
LAGS = (0, 1, 2, 4)
ABLATIONS = (
    "goodput",
    "goodput:selective=false",
    "goodput:history=false",
    "goodput:timing=false",
    "goodput:plain_path=false",
)


@dataclass(frozen=True)
class Matrix:
    """Policies by settings."""

    title: str
    note: str
    rows: tuple[str, ...]
    columns: tuple[tuple[str, Words], ...]
    shared: bool = True
    """Whether 100 % is the best of the whole matrix or of each column."""
    metric: str = "output_tok_s"


def _swept(
    option: str, values: Sequence[object], base: Words = BUSY
) -> tuple[tuple[str, Words], ...]:
    return tuple((f"{text}", (*base, option, str(text))) for text in values)


def _loops(counts: Sequence[int]) -> tuple[tuple[str, Words], ...]:
    return tuple(
        (f"{n} at a time", (*PUBLISHED, *LOOP[:-1], str(300 + 8 * n), "--concurrency", str(n)))
        for n in counts
    )


def _machines(*words: str) -> tuple[tuple[str, Words], ...]:
    names = ("synthetic:dense", "synthetic:moe", "synthetic:coarse", "published:vllm-v4-flash-b300")
    return tuple(
        (name.partition(":")[2], (*PUBLISHED[:2], "--latency", name, *LOOP, *words))
        for name in names
    )


MATRICES = (
    Matrix(
        "Age of the confidences that size the budget",
        "A lag of 0 anticipates: it is not lossless, and bounds what confidences can tell; the"
        " oracle knows the labels.",
        (
            *(f"{policy}:lag={n}" for policy in ("hardware-aware", "vllm") for n in LAGS),
            "goodput",
            "oracle",
        ),
        _loops((1, 3, 8, 32, 128)),
        shared=False,
    ),
    Matrix(
        "Calibration: confidences' logits divided by a temperature",
        "128 requests at a time. Below 1 the drafter is too sure of itself, above 1 too timid.",
        (*FIELD, *OURS),
        _swept("--confidence-temperature", (0.5, 0.7, 1.0, 1.4, 2.0)),
    ),
    *(
        Matrix(
            f"Lookup rule of the cost table: {label}",
            "128 requests at a time; the rule replaces the policy's own.",
            ("confidence", "hardware-aware", "vllm", "goodput"),
            _swept("--lookup", ("linear", "ceil", "stairs", "floor"), words),
        )
        for label, words in _machines("--concurrency", "128")[2:]
    ),
    Matrix(
        "Table profiled at another context",
        "The bundle recorded on a CPU, 2 requests at a time, contexts of mooncake-conv"
        " without prefill: cached tokens per request while the table was profiled.",
        ("none", "mtp-1", "hardware-aware", "vllm", "goodput", "goodput:timing=false"),
        _swept(
            "--profiled-context", (0, 2000, 8000, 32000),
            (*CPU, "--scenario", "mooncake-conv", "--prefill", "none", "--requests", "60",
             "--extrapolate", "--concurrency", "2"),
        ),
    ),
    Matrix(
        "Churn: how long requests stay",
        "64 requests at a time; mean answers of 28, 211 and 1,527 tokens.",
        (*FIELD, "goodput"),
        tuple(
            (scenario, (*PUBLISHED, "--scenario", scenario, *LOOP[2:-1], requests,
                        "--concurrency", "64"))
            for scenario, requests in (("azure-code", "3000"), ("azure-conv", "900"),
                                       ("reasoning", "200"))
        ),
        shared=False,
    ),
    Matrix(
        "A drafter gone stale in mid-run",
        "128 requests at a time; from half of the requests on each right draft is wrong with this"
        " chance, and the confidences do not know.",
        (*FIELD, *OURS),
        _swept("--drift", (0.0, 0.1, 0.3, 0.6)),
        shared=False,
    ),
    Matrix(
        "Shape of the cost curve",
        "64 requests at a time. dense: a line; moe: experts are read as tokens touch them; coarse:"
        " few captured sizes; the last one is the published machine.",
        ("none", *FIELD, "goodput"),
        _machines("--concurrency", "64"),
        shared=False,
    ),
    Matrix(
        "Ablation of goodput, speed",
        "Tokens per second of a user, open loops but for the first. Without selective drafting"
        " everyone always drafts gamma.",
        ABLATIONS,
        (
            ("published, 128 at a time", BUSY),
            ("published, azure-conv high",
             (*PUBLISHED, "--scenario", "azure-conv", "--requests", "1500", "--load", "high")),
            *(
                (f"CPU, {scenario} {load}", (*CPU, "--scenario", scenario, "--extrapolate",
                                             "--requests", requests, "--load", load))
                for scenario, requests, load in (("azure-conv", "150", "low"),
                                                 ("azure-code", "1200", "high"),
                                                 ("reasoning", "40", "low"))
            ),
        ),
        shared=False,
        metric="tok_s_per_user_p50",
    ),
)  # fmt: skip
