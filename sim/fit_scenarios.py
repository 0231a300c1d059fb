"""Fit the numbers of ``data/scenarios.json`` from a public trace in its published format.

    python -m sim.fit_scenarios AzureLLMInferenceTrace_conv.csv
    python -m sim.fit_scenarios deepseek-r1/          (a ServeGen pool folder)

Prints one JSON document per client of the trace (one in all where it names none, the ten largest
and the rest where there are more): length quantiles at ``sim.lengths.LEVELS``, the gap CV, the
excess variance of counts that ``Modulated`` has to explain, and the rate of each hour for a trace
of a day or more. Prefix reuse, where recorded, by prompt length. The shipped ``azure-week``,
``reasoning`` and ``agentic`` numbers were fitted alike, but to digitised curves, compacted length
histograms and per-session files instead of requests.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.arrivals import Floats
from sim.importers import load
from sim.lengths import fit
from sim.options import Parser
from sim.request_table import RequestTable
from sim.traffic_stats import window_counts

HOUR_S = 3600.0
LARGEST_CLIENTS = 10
LEAST_WINDOWS = 10
WINDOWS_S = (1, 10, 60, 300)
SHARE_LEVELS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
PROMPT_LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def fitted(table: RequestTable) -> dict[str, Any]:
    """The parameters of one stream of requests."""
    gaps = np.diff(table.arrival_s)
    numbers: dict[str, Any] = {
        "requests": table.requests,
        "rate_rps": _digits(table.rate_rps),
        "gap_cv": _digits(gaps.std() / gaps.mean()),
        "excess_variance": _excess(table.arrival_s),
        "prompt": fit(table.prompt_tokens.astype(np.float64)).values,
        "output": fit(table.output_tokens.astype(np.float64)).values,
    }
    if table.arrival_s[-1] >= 24 * HOUR_S:
        counts = window_counts(table.arrival_s, HOUR_S)
        numbers["hourly_rps"] = [_digits(c / HOUR_S) for c in counts]
    if table.prefix_tokens is not None:
        numbers["reuse"] = _reuse(table)
    return numbers


def _excess(arrival_s: Floats) -> dict[str, float]:
    """Per window: the squared CV of the rate behind the counts, (IoD - 1) / mean."""
    excess = {}
    for window_s in WINDOWS_S:
        counts = window_counts(arrival_s, window_s)
        if counts.size >= LEAST_WINDOWS:
            mean = counts.mean()
            excess[f"{window_s}s"] = _digits((counts.var() / mean - 1) / mean)
    return excess


def _reuse(table: RequestTable) -> dict[str, Any]:
    """How often a prompt repeats more than the common first block, and which share of it."""
    assert table.prefix_tokens is not None
    first_block = int(np.median(table.prefix_tokens))
    edges = (0, *(int(q) for q in np.quantile(table.prompt_tokens, PROMPT_LEVELS)))
    size = np.searchsorted(edges, table.prompt_tokens, side="right") - 1
    follows = table.prefix_tokens > first_block
    share = table.prefix_tokens / table.prompt_tokens
    return {
        "first_block_tokens": first_block,
        "from_prompt_tokens": edges,
        "probability": [_digits(follows[size == i].mean()) for i in range(len(edges))],
        "levels": SHARE_LEVELS,
        "share": [
            [_digits(q) for q in np.quantile(share[follows & (size == i)], SHARE_LEVELS)]
            for i in range(len(edges))
        ],
    }


def by_client(table: RequestTable) -> Iterator[tuple[str, RequestTable]]:
    """The largest clients one by one, then the others together; the whole table without clients."""
    if table.client is None:
        yield table.source, table
        return
    order = np.argsort(-np.bincount(table.client, minlength=len(table.clients)), kind="stable")
    for code in order[:LARGEST_CLIENTS]:
        yield table.clients[code], table.take(np.flatnonzero(table.client == code))
    others = np.flatnonzero(np.isin(table.client, order[LARGEST_CLIENTS:]))
    if others.size:
        yield "others", table.take(others)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the fits of one trace; exit code 2 and one line for a user's error."""
    made = Parser("python -m sim.fit_scenarios", (__doc__ or "").partition("\n")[0])
    made.add_argument("trace", type=Path, help="a file or ServeGen folder (see sim.importers)")
    args: argparse.Namespace = made.parse_args(argv)

    def job() -> None:
        for name, requests in by_client(load(args.trace)):
            print(json.dumps({"name": name} | fitted(requests)))

    return made.answer(job)


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    sys.exit(main())
