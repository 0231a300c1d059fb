"""Traces, latency samples and whole bundles made up from given rates: for tests and what-ifs.

The confidence is the generator's acceptance probability q when it is calibrated, or
sigmoid(overconfidence * logit q).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_traces.bundle import write_bundle
from gpu_traces.calibration import calibrate
from gpu_traces.generator import ALIKE, Difficulty, draw_traces, solve_means
from gpu_traces.latency import LatencyModel, linear
from gpu_traces.manifest import Manifest
from gpu_traces.schema import AcceptanceTraces

__all__ = [
    "ALIKE",
    "Difficulty",
    "synthetic_bundle",
    "synthetic_steps",
    "synthetic_traces",
    "trace_tables",
]

DEFAULT_RATES = {"math": 0.88, "code": 0.82, "chat": 0.65}


def synthetic_traces(
    acceptance: Mapping[str, float | Sequence[float]] | None = None,
    *,
    gamma: int = 7,
    responses: int = 60,
    response_tokens: int = 200,
    difficulty: Difficulty | None = None,
    overconfidence: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    name: str = "synthetic",
) -> AcceptanceTraces:
    """Traces whose walked conditional acceptance per domain and position is ``acceptance``.

    ``acceptance``: domain -> one rate or gamma rates. ``responses`` per domain, log-normal lengths
    with mean ``response_tokens``. Equal arguments give equal bytes.
    """
    given = DEFAULT_RATES if acceptance is None else acceptance
    rates = tuple(_rates(domain, value, gamma) for domain, value in given.items())
    shape = difficulty or Difficulty()
    means = solve_means(rates, shape)
    traces = draw_traces(tuple(given), means, shape, responses, response_tokens, seed)
    return replace(
        traces,
        name=name,
        temperature=np.full(traces.responses, temperature, dtype=np.float32),
        confidence=calibrate(traces.alpha, 1.0 / overconfidence),
    )


def _rates(domain: str, value: float | Sequence[float], gamma: int) -> tuple[float, ...]:
    rates = (float(value),) * gamma if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(rates) != gamma or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"acceptance of {domain!r} needs {gamma} rates in 0..1, got {rates}")
    return rates


def synthetic_steps(
    model: LatencyModel, *, repetitions: int = 5, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """A ``steps`` table as a profiler would measure it in the world ``model``, with its noise."""
    rows: list[tuple[Any, ...]] = []
    captured = set(model.captured_sizes)
    for tokens in map(int, model.profile_sizes()):
        requests = min(max(1, tokens // (model.gamma + 1)), model.max_requests)
        for context in (128, 1024, 4096):
            seconds = model.verify_s[tokens] + model.context_s * requests * context
            rows.append(("verify", requests, tokens, context, 0, tokens in captured, seconds))
    grid = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if r <= model.max_requests]
    for requests in sorted({*grid, model.max_requests}):
        for length in range(1, model.gamma + 1):
            for context in (128, 1024, 4096):
                read = model.draft_context_s * requests * context
                seconds = model.draft_s[length, requests] + read
                tokens = requests * length
                rows.append(("draft", requests, tokens, context, length, False, seconds))
    rows.append(("overhead", 1, 1, 128, 0, False, max(model.overhead_s, 1e-9)))
    names = ("mode", "requests", "tokens", "context_tokens", "draft_length", "graph", "seconds")
    table = {
        n: np.repeat(np.array(c), repetitions)
        for n, c in zip(names, zip(*rows, strict=True), strict=True)
    }
    noise = np.random.default_rng(seed).standard_normal(table["mode"].size)
    table["microseconds"] = 1e6 * table.pop("seconds") * np.exp(model.spread * noise)
    table["repetition"] = np.tile(np.arange(repetitions), len(rows))
    keep = table["microseconds"] > 0
    return {name: values[keep] for name, values in table.items()}


def synthetic_bundle(
    folder: Path | str,
    traces: AcceptanceTraces | None = None,
    model: LatencyModel | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write traces and latency samples as a bundle of kind synthetic; returns its folder.

    The traces' confidences are stored as raw ones, with no calibration to apply.
    """
    traces = traces or synthetic_traces()
    model = model or linear(2e-3, 1e-5, 5e-4, 1e-6, gamma=traces.gamma)
    manifest = Manifest(
        name=Path(folder).name,
        kind="synthetic",
        hardware="none",
        device="cpu",
        driver="",
        target="synthetic",
        target_sha256="",
        drafter="synthetic",
        drafter_sha256="",
        gamma=traces.gamma,
        temperatures=tuple(sorted({float(t) for t in traces.temperature})),
        domains=traces.domains,
        command=traces.origin.detail,
        seed=0,
        commit="",
        created="1970-01-01T00:00:00Z",
    )
    tables = {**trace_tables(traces), "steps": synthetic_steps(model)}
    write_bundle(folder, manifest, tables, force=force)
    return Path(folder)


def trace_tables(traces: AcceptanceTraces) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """The ``responses`` and ``anchors`` tables of traces."""
    count = np.diff(traces.first_anchor)
    position = np.arange(traces.anchors) - np.repeat(traces.first_anchor[:-1], count)
    names = np.array(traces.domains, dtype=object)[traces.domain]
    responses = {
        "request_id": traces.request_id,
        "prompt_key": traces.request_id.astype(str),
        "domain": names,
        "dataset": np.full(traces.responses, traces.origin.kind, dtype=object),
        "temperature": traces.temperature,
        "prompt_tokens": traces.prompt_tokens,
        "response_tokens": traces.response_tokens,
    }
    anchors = {
        "request_id": np.repeat(traces.request_id, count),
        "position": position,
        "context_tokens": np.repeat(traces.prompt_tokens, count) + position,
        "confidence": traces.confidence,
        "accepted": traces.accepted,
        "alpha": traces.alpha,
        "max_prob": traces.max_prob,
    }
    return {"responses": responses, "anchors": anchors}
