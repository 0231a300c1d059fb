"""Generated traffic held against the figures of the traces it was fitted to.

``data/published_traffic.csv`` holds the published figures (of the public files, cited by each
scenario), the rule of ``sim.traffic_rules`` that says how far the generator may be from each, and,
where the rule asks for it, the figure's own error. Arrival statistics of the hour-long traces are
means over many generated hours, since one hour of bursty traffic is itself a draw.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sim.arrivals import Floats
from sim.request_table import RequestTable
from sim.scenarios import generate, scenario
from sim.traffic_rules import allowed
from sim.traffic_stats import Stats, arrival_stats, length_stats, session_stats, window_counts

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
WEEK_S = 7 * DAY_S
REQUESTS = 1_000_000
WEEK_RPS = 1.0
"""The week is thinned to this rate."""
AGENT_USERS = 200


def compare(name: str, seed: int = 0) -> pd.DataFrame:
    """One row per published figure of a scenario: published, generated, allowed, within, rule.

    Raises ValueError for an unknown scenario.
    """
    scenario(name)
    measured = measure(name, np.random.SeedSequence(seed))
    rows = _published()[_published()["scenario"] == name].copy()
    rows["generated"] = [measured.mean[statistic] for statistic in rows["statistic"]]
    spread = [measured.spread.get(statistic, 0.0) for statistic in rows["statistic"]]
    columns = (rows["rule"], rows["published"], rows["error"], spread)
    rows["allowed"] = [
        allowed(*figure, hours=measured.hours) for figure in zip(*columns, strict=True)
    ]
    rows["within"] = (rows["generated"] - rows["published"]).abs() <= rows["allowed"]
    return rows.reset_index(drop=True)


class Measured(NamedTuple):
    """Statistics under the names of the published table."""

    mean: Stats
    spread: Stats = {}
    """Standard deviation of one hour's statistic, for the hour-long traces."""
    hours: int = 0


def measure(name: str, seed: np.random.SeedSequence) -> Measured:
    """The statistics of a generated scenario."""
    if name == "azure-week":
        return Measured(_week(generate(name, REQUESTS, seed, WEEK_RPS, "thin")))
    if name == "agentic":
        return Measured(_closed(generate(name, REQUESTS // 2, seed, users=AGENT_USERS)))
    if name == "reasoning":
        return Measured(_day(generate(name, 3 * REQUESTS // 2, seed)))
    table = generate(name, REQUESTS, seed)
    each = _hours(table.arrival_s)
    means, spreads = (
        {str(k): float(v) for k, v in found.items()} for found in (each.mean(), each.std())
    )
    return Measured(means | length_stats(table), spreads, len(each))


def _hours(arrival_s: Floats) -> pd.DataFrame:
    """Statistics of each whole hour, and Azure code's silences."""
    bounds = np.searchsorted(arrival_s, np.arange(0, arrival_s[-1], HOUR_S))
    hours = [arrival_s[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b - a > 60]
    return pd.DataFrame(
        [
            arrival_stats(hour) | _silences(np.diff(hour)) | {"rate_rps": hour.size / HOUR_S}
            for hour in hours
        ]
    )


def _silences(gaps: Floats) -> Stats:
    long = gaps[gaps >= 30.0]
    return {
        "silences_30s_per_hour": float(long.size),
        "silent_30s_share": float(long.sum() / HOUR_S),
        "within_50ms_share": float((gaps < 0.05).mean()),
    }


def _week(table: RequestTable) -> Stats:
    """Per stream, over one week: its share of the published total rate, daily shape and lengths."""
    stats: Stats = {}
    assert table.client is not None
    for code, name in enumerate(table.clients):
        rows = np.flatnonzero((table.client == code) & (table.arrival_s < WEEK_S))
        stream = table.take(rows)
        hourly = window_counts(stream.arrival_s, HOUR_S)
        ten_min = window_counts(stream.arrival_s, 600.0)
        own = length_stats(stream) | {
            "rate_rps": stream.requests / WEEK_S / _factor(table),
            "10min_peak_to_mean": float(ten_min.max() / ten_min.mean()),
            "hourly_cv": float(hourly.std() / hourly.mean()),
            "hourly_max_to_min": float(hourly.max() / hourly.min()),
        }
        stats |= {f"{name}_{statistic}": value for statistic, value in own.items()}
    return stats


def _factor(table: RequestTable) -> float:
    """The thinning that the note of a generated table names."""
    return float(table.notes[0].split()[-1])


def _day(table: RequestTable) -> Stats:
    """Over one day: shape, concentration on clients, and the gaps of each client."""
    day = table.take(np.flatnonzero(table.arrival_s < DAY_S))
    assert day.client is not None
    hourly, ten_min = (window_counts(day.arrival_s, w) for w in (HOUR_S, 600.0))
    named = np.bincount(day.client, minlength=len(day.clients))[:-1]
    share = np.sort(named)[::-1] / day.requests
    return length_stats(day) | {
        "rate_rps": day.requests / DAY_S,
        "10min_peak_to_mean": float(ten_min.max() / ten_min.mean()),
        "hourly_peak_to_trough": float(hourly.max() / hourly.min()),
        "top_5_share": float(share[:5].sum()),
        "top_10_share": float(share[:10].sum()),
        "client_gap_cv": _client_gap_cv(day),
    }


def _client_gap_cv(day: RequestTable) -> float:
    """Gap CV of each client and hour, weighted by requests; hours under 30 requests left out."""
    frame = pd.DataFrame(
        {"client": day.client, "hour": day.arrival_s // HOUR_S, "arrival_s": day.arrival_s}
    )
    gaps = frame.groupby(["client", "hour"])["arrival_s"].agg(
        lambda times: np.diff(times).std() / np.diff(times).mean() if times.size >= 30 else np.nan
    )
    sizes = frame.groupby(["client", "hour"]).size()
    known = gaps.notna()
    return float(np.average(gaps[known], weights=sizes[known]))


def _closed(table: RequestTable) -> Stats:
    """Sessions, and what their requests repeat after the first of a conversation."""
    assert table.prefix_tokens is not None
    later = table.take(np.flatnonzero(table.prefix_tokens > 0))
    assert later.prefix_tokens is not None
    return (
        length_stats(table)
        | session_stats(table)
        | {
            "repeated_share": float(later.prefix_tokens.sum() / later.prompt_tokens.sum()),
            "new_tokens_p50": float(np.median(later.prompt_tokens - later.prefix_tokens)),
        }
    )


@cache
def _published() -> pd.DataFrame:
    table = pd.read_csv(Path(__file__).parent / "data" / "published_traffic.csv")
    return table.fillna({"error": 0.0})
