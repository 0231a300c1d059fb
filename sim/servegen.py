"""A ServeGen pool folder (arXiv 2505.09999) turned into requests.

The folder holds, per client, ``chunk-<id>-trace.csv`` (no header: window start in seconds, rate,
CV, Gamma or Weibull, shape, scale) and ``chunk-<id>-dataset.json`` (window start -> field -> a
dictionary of token count to probability, as text). Requests are drawn client by client and window
by window. Unlike the original sampler, prompt and output lengths are drawn independently and the
number of requests in a window is left to chance.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import gamma

from gpu_traces.schema import Origin
from sim.arrivals import Floats, child, generator
from sim.lengths import Tokens
from sim.request_table import RequestTable

TRACE_COLUMNS = ("t_s", "rate_rps", "cv", "family", "shape", "scale_s")
FAMILIES = ("Gamma", "Weibull")
MOST_REQUESTS = 20_000_000
LENGTH_FIELDS = ("input_tokens", "output_tokens")


def load_servegen(folder: Path, seed: int = 0) -> RequestTable:
    """Requests of all clients of the pool, sorted by arrival.

    Raises ValueError for a folder without clients, a malformed file (named, with the row), or a
    pool that would give more than 20 million requests.
    """
    paths = sorted(folder.glob("chunk-*-trace.csv"), key=lambda p: int(p.name.split("-")[1]))
    if not paths:
        raise ValueError(f"{folder}: no chunk-*-trace.csv; expected a ServeGen pool folder")
    traces = [_read_trace(path) for path in paths]
    expected = sum(float(t["rate_rps"].sum()) * _window_s(t) for t in traces)
    if expected > MOST_REQUESTS:
        raise ValueError(
            f"{folder}: about {expected:,.0f} requests, at most {MOST_REQUESTS:,} are drawn; "
            "keep fewer chunk files or windows"
        )
    drawn = [
        _client(path, trace, child(np.random.SeedSequence(seed), i))
        for i, (path, trace) in enumerate(zip(paths, traces, strict=True))
    ]
    arrival_s, prompts, outputs = (np.concatenate(c) for c in zip(*drawn, strict=True))
    client = np.repeat(np.arange(len(paths), dtype=np.int16), [d[0].size for d in drawn])
    order = np.argsort(arrival_s, kind="stable")
    return RequestTable(
        source=folder.name,
        origin=Origin("published", "drawn from ServeGen client tables, Apache-2.0; NSDI 2026"),
        arrival_s=arrival_s[order],
        prompt_tokens=prompts[order],
        output_tokens=outputs[order],
        client=client[order],
        clients=tuple(path.name.split("-")[1] for path in paths),
        notes=(f"drawn with seed {seed}",),
    )


def _read_trace(path: Path) -> pd.DataFrame:
    trace = pd.read_csv(path, header=None)
    if trace.shape[1] != len(TRACE_COLUMNS):
        raise ValueError(
            f"{path}: {trace.shape[1]} columns, expected {len(TRACE_COLUMNS)}: "
            f"{', '.join(TRACE_COLUMNS)}"
        )
    trace.columns = pd.Index(TRACE_COLUMNS)
    busy = trace[trace["family"].notna() & (trace["rate_rps"] > 0)]
    unknown = ~busy["family"].isin(FAMILIES) | ~(busy["shape"] > 0)
    if unknown.any():
        row = busy.index[unknown][0]
        raise ValueError(f"{path}: row {row} is no Gamma or Weibull law with a shape above 0")
    trace["rate_rps"] = busy["rate_rps"].reindex(trace.index, fill_value=0.0)
    return trace


def _window_s(trace: pd.DataFrame) -> float:
    return float(np.diff(trace["t_s"]).min()) if len(trace) > 1 else 600.0


def _client(
    path: Path, trace: pd.DataFrame, seed: np.random.SeedSequence
) -> tuple[Floats, Tokens, Tokens]:
    """Arrivals, prompt and output lengths of one client."""
    windows = _read_lengths(path.with_name(path.name.replace("-trace.csv", "-dataset.json")))
    if not windows:
        return np.empty(0), np.empty(0, np.int32), np.empty(0, np.int32)
    rng = generator(seed, 0)
    window_s = _window_s(trace)
    busy = trace[trace["rate_rps"] > 0]
    times = [
        start_s + _gaps(rng, rate, family, shape, window_s)
        for start_s, rate, family, shape in zip(
            busy["t_s"], busy["rate_rps"], busy["family"], busy["shape"], strict=True
        )
    ]
    arrival_s = np.concatenate(times) if times else np.empty(0)
    starts = np.array(sorted(windows))
    which = np.maximum(np.searchsorted(starts, arrival_s, side="right") - 1, 0)
    lengths = [np.empty(arrival_s.size, np.int32) for _ in LENGTH_FIELDS]
    for column, (tokens, field) in enumerate(zip(lengths, LENGTH_FIELDS, strict=True)):
        uniform = generator(seed, column + 1).random(arrival_s.size)
        for i, start in enumerate(starts):
            rows = which == i
            values, cumulative = windows[start][field]
            tokens[rows] = values[np.searchsorted(cumulative, uniform[rows] * cumulative[-1])]
    return arrival_s, lengths[0], lengths[1]


def _gaps(
    rng: np.random.Generator, rate_rps: float, family: str, shape: float, window_s: float
) -> Floats:
    """Arrival times inside one window: a renewal process of the fitted family and rate.

    A window starts inside a gap, so the first gap is cut by a uniform share of it.
    """
    count = int(1.5 * rate_rps * window_s) + 32
    times = np.empty(0)
    while not times.size or times[-1] < window_s:
        count *= 2
        raw = rng.gamma(shape, size=count) if family == "Gamma" else rng.weibull(shape, count)
        mean = shape if family == "Gamma" else float(gamma(1 + 1 / shape))
        gaps = raw / (mean * rate_rps)
        gaps[0] *= rng.random()
        times = np.cumsum(gaps)
    return times[times < window_s]


def _read_lengths(path: Path) -> dict[int, dict[str, tuple[Tokens, Floats]]]:
    """Window start -> field -> (token counts, cumulative probability); empty windows left out."""
    if not path.exists():
        raise ValueError(f"{path}: missing; every client needs its length histograms")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        windows = {
            int(start): {f: _histogram(ast.literal_eval(fields[f])) for f in LENGTH_FIELDS}
            for start, fields in raw.items()
            if all(ast.literal_eval(fields[f]) for f in LENGTH_FIELDS)
        }
    except (json.JSONDecodeError, KeyError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path}: not a ServeGen dataset file ({error!r})") from None
    return windows


def _histogram(density: dict[int, float]) -> tuple[Tokens, Floats]:
    values = np.maximum(np.fromiter(density.keys(), np.int32), 1)
    return values, np.cumsum(np.fromiter(density.values(), np.float64))
