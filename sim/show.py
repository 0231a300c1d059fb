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
        for line in remarks(summary):
            console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    for line in document.get("paired_lines", []):
        console.print(line, highlight=False, soft_wrap=True)


def origins(document: dict[str, Any]) -> str:
    """Whose acceptance, step times and traffic; for anything that prints results."""
    notes = "".join(f"; {note}" for note in document["traffic_notes"])
    return (
        f"acceptance: {document['bundle']}, {document['origin']}\n"
        f"step times: {document['latency']}, {document['latency_origin']}\n"
        f"traffic: {document['scenario']}, {document['traffic_origin']}{notes}"
    )


def _headline(document: dict[str, Any]) -> str:
    load = "at its recorded rate"
    if document["concurrency"]:
        load = f"closed loop, {document['concurrency']} requests out"
    elif document["load_rps"] is not None:
        load = f"load {number(document['load_rps'])} requests/s"
    return (
        f"{origins(document)}\n{document['requests']:,} requests, {load}"
        f" (none sustains {number(document['capacity_rps'])}/s on"
        f" {document['replicas']} replica{'s' if document['replicas'] > 1 else ''})"
    )


def remarks(summary: dict[str, Any]) -> list[str]:
    """What a reader of one policy's numbers must know."""
    first_s, last_s = summary["window_s"]
    lines = [
        f"rates and latencies from {seconds(first_s)} (MSER-5 cuts"
        f" {summary['requests_before_window']:,} requests as warm-up) to {seconds(last_s)}"
    ]
    if set(summary["requests_by_status"]) - {"completed"}:
        found = (f"{n:,} {status}" for status, n in summary["requests_by_status"].items())
        lines.append(f"requests: {', '.join(found)}")
    if summary["preemptions"] or summary["retries"]:
        evicted, retried = (f"{summary[key]:,}" for key in ("preemptions", "retries"))
        lines.append(f"{evicted} preemptions (KV cache full), {retried} retries (replica failed)")
    if summary["context_tokens_beyond_profile"]:
        text = f"{summary['context_tokens_beyond_profile']:,} cached tokens in a step"
        lines.append(f"extrapolated, {text} were not profiled")
    if summary["unstable"]:
        lines.append(summary["unstable"])
    return lines


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
    times = (seconds(summary["mean_step_s"]) for summary in policies.values())
    table.add_row("mean step time", *times, end_section=True)
    for title, cells in slo_rows(policies):
        table.add_row(title, *cells)
    return table


def slo_rows(policies: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Goodput, and by class the share of requests that met their targets."""
    rows = [("goodput, requests/s", [number(p["goodput_rps"]) for p in policies.values()])]
    for name in dict.fromkeys(c for p in policies.values() for c in p["slo_classes"]):
        cells = [_slo_cell(p["slo_classes"].get(name)) for p in policies.values()]
        rows.append((f"{name}: SLO met, goodput", cells))
    return rows


def _slo_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['attainment']:.1%}, {number(found['goodput_rps'])}/s"
