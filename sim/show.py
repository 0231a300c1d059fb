"""Results for people: tables on the terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E"}
COUNTS = {
    "output tok/s": "output_tok_s",
    "tok/s/user, median": "tok_s_per_user_p50",
    "requests completed": "requests_completed",
    "tokens per round": "tokens_per_round",
    "verified tokens": "verified_tokens",
    "accepted tokens": "accepted_tokens",
    "wasted tokens": "wasted_tokens",
    "mean budget, tokens": "mean_budget_tokens",
    "mean batch, requests": "mean_batch",
}


WIDE = 400
"""Columns of output that goes to no terminal: a table is never folded there."""


def terminal() -> Console:
    """Where results are printed."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def seconds(value: float | None) -> str:
    """Seconds with a unit that suits their size."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def number(value: float | None) -> str:
    """Three to four significant figures, thousands separated."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_run(document: dict[str, Any], console: Console) -> None:
    """The result of ``python -m sim.run``."""
    console.print(_headline(document), highlight=False, soft_wrap=True)
    console.print(_table(document["policies"]))
    for name, summary in document["policies"].items():
        if summary["context_tokens_beyond_profile"]:
            text = f"{summary['context_tokens_beyond_profile']:,} cached tokens in a step"
            console.print(f"{name}: extrapolated, {text} were not profiled", soft_wrap=True)
        if summary["unstable"]:
            console.print(f"[bold]{name}: {summary['unstable']}[/bold]", soft_wrap=True)
    for line in document.get("paired_lines", []):
        console.print(line, highlight=False, soft_wrap=True)


def _headline(document: dict[str, Any]) -> str:
    load = document["load_rps"]
    traffic = (
        f"load {number(load)} requests/s"
        if load is not None
        else f"closed loop, {document['concurrency']} requests out"
    )
    return (
        f"acceptance: {document['bundle']}, {document['origin']}\n"
        f"step times: {document['latency']}, {document['latency_origin']}\n"
        f"traffic: {document['scenario']}, {document['requests']:,} requests, {traffic}"
        f" (none sustains {number(document['capacity_rps'])}/s on"
        f" {document['replicas']} replica{'s' if document['replicas'] > 1 else ''})"
    )


def _table(policies: dict[str, Any]) -> Table:
    """One column per policy, one line per metric; latencies as p50 / p95 / p99."""
    table = Table()
    table.add_column("")
    for name in policies:
        table.add_column(name, justify="right", overflow="fold")
    for key, title in LATENCIES.items():
        for rank in ("p50", "p95", "p99"):
            cells = [seconds(summary[key][rank]) for summary in policies.values()]
            table.add_row(f"{title} {rank}", *cells, end_section=rank == "p99")
    for title, key in COUNTS.items():
        table.add_row(title, *(number(summary[key]) for summary in policies.values()))
    table.add_row("mean step time", *(seconds(s["mean_step_s"]) for s in policies.values()))
    return table
