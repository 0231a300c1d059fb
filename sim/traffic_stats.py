"""The statistics by which traffic is described and compared with published traces.

CV is that of the gaps between arrivals, IoD the variance over the mean of the counts per window;
both are 1 for Poisson arrivals. Windows that the trace does not fill to the end are left out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from sim.arrivals import Floats
from sim.request_table import RequestTable

WINDOWS_S = (1, 10, 60)
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
LEAST_WINDOWS = 10
"""Fewer windows say nothing about the spread of counts."""

Stats = dict[str, float]


def arrival_stats(arrival_s: Floats) -> Stats:
    """Rate, gap CV, and per window the largest count and the IoD; per minute also the drift."""
    gaps = np.diff(arrival_s)
    span_s = float(arrival_s[-1] - arrival_s[0])
    if span_s <= 0:
        return {"duration_s": 0.0}
    stats = {
        "duration_s": span_s,
        "rate_rps": gaps.size / span_s,
        "gap_cv": float(gaps.std() / gaps.mean()),
    }
    for window_s in WINDOWS_S:
        counts = window_counts(arrival_s, window_s)
        if counts.size >= LEAST_WINDOWS:
            stats[f"{window_s}s_max"] = float(counts.max())
            stats[f"{window_s}s_iod"] = float(counts.var() / counts.mean())
    return stats | _minute_drift(window_counts(arrival_s, 60))


def window_counts(arrival_s: Floats, window_s: float) -> npt.NDArray[np.int64]:
    """Arrivals in each whole window from the first arrival on."""
    since_s = arrival_s - arrival_s[0]
    whole = int(since_s[-1] // window_s)
    return np.bincount((since_s // window_s).astype(np.int64), minlength=whole)[:whole]


def length_stats(table: RequestTable) -> Stats:
    """Mean and quantiles of prompt and output lengths, and how they go together."""
    stats: Stats = {}
    for name, tokens in (("prompt", table.prompt_tokens), ("output", table.output_tokens)):
        stats[f"{name}_mean"] = float(tokens.mean())
        for label, level in QUANTILES.items():
            stats[f"{name}_{label}"] = float(np.quantile(tokens, level))
    if min(np.ptp(table.prompt_tokens), np.ptp(table.output_tokens)) > 0:
        correlation = spearmanr(table.prompt_tokens, table.output_tokens).statistic
        stats["rank_correlation"] = float(correlation)
    if table.prefix_tokens is not None:
        left = table.prompt_tokens - table.prefix_tokens
        stats["prefix_share"] = 1 - float(left.sum() / table.prompt_tokens.sum(dtype=np.int64))
        stats["to_prefill_p50"], stats["to_prefill_p99"] = map(
            float, np.quantile(left, (0.5, 0.99))
        )
    return stats


def session_stats(table: RequestTable) -> Stats:
    """Users and think times of a closed loop."""
    if table.think_s is None or table.session is None:
        return {}
    p50, p90, p99 = np.quantile(table.think_s, (0.5, 0.9, 0.99))
    return {
        "users": float(np.unique(table.session).size),
        "think_p50_s": float(p50),
        "think_p90_s": float(p90),
        "think_p99_s": float(p99),
    }


def describe(table: RequestTable) -> Stats:
    """All statistics of a table. A closed loop has no arrivals of its own, only sessions."""
    own = session_stats(table) if table.think_s is not None else arrival_stats(table.arrival_s)
    return {"requests": float(table.requests)} | own | length_stats(table)


def _minute_drift(counts: npt.NDArray[np.int64]) -> Stats:
    if counts.size < LEAST_WINDOWS:
        return {}
    change = np.abs(np.diff(counts)) / np.maximum(counts[:-1], 1)
    return {
        "minute_min": float(counts.min()),
        "minute_mean": float(counts.mean()),
        "minute_max": float(counts.max()),
        "minute_change_p50": float(np.median(change)),
        "minute_change_max": float(change.max()),
    }
