"""One self-contained HTML page of run folders and experiments.

    python -m sim report runs/first runs/frontier --out report.html

Every figure says where its numbers come from: measured (machine), published (source) or synthetic.
The page needs no network: plotly's code is inside.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from gpu_traces.files import read_frame
from sim import options
from sim.experiments import CAPACITY_COLUMNS, METRICS, capacity_row
from sim.metrics import tpot_s
from sim.show import COUNTS, LATENCIES, number, origins, remarks, seconds, slo_rows
from sim.state import COMPLETED

Document = dict[str, Any]

STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem}
table {border-collapse: collapse; margin: 1rem 0} td, th {padding: .2rem .8rem; text-align: right}
th:first-child, td:first-child {text-align: left} tr {border-bottom: 1px solid #ddd}
.origin {color: #555}
"""
EXPERIMENTS = ("compare", "frontier", "capacity", "sweep")
POINTS = 400


def page(paths: Sequence[Path]) -> str:
    """The HTML text; raises ValueError for a folder that holds no result."""
    parts = [part for path in paths for part in _sections(path)]
    code = "<script>" + _plotly() + "</script>"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>DSpark Lab report"
        f"</title><style>{STYLE}</style>{code}</head><body>{''.join(parts)}</body></html>"
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text


def _sections(path: Path) -> Iterator[str]:
    """Everything in one folder, as HTML."""
    found = False
    if (path / "summary.json").is_file():
        found = True
        yield from _run_section(path)
    for name in EXPERIMENTS:
        if (path / f"{name}.json").is_file():
            found = True
            document = json.loads((path / f"{name}.json").read_text())
            yield f"<h1>{name}: {html.escape(str(path))}</h1>" + _origin(document)
            yield from SECTIONS[name](document)
    if not found:
        wanted = ", ".join(("summary", *EXPERIMENTS))
        raise ValueError(f"{path}: holds no result ({wanted}.json)")


def _origin(document: Document) -> str:
    lines = origins(document).splitlines()
    if "words" in document:
        lines.append(f"options: {' '.join(document['words'])}")
    return f"<p class='origin'>{'<br>'.join(map(html.escape, lines))}</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _html(figure: Figure, title: str, x: str, y: str) -> str:
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, template="simple_white")
    text: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return text


def _run_section(path: Path) -> Iterator[str]:
    document = json.loads((path / "summary.json").read_text())
    policies = document["policies"]
    yield f"<h1>run: {html.escape(str(path))}</h1>" + _origin(document)
    yield f"<p>{html.escape(document['workload'])}, {document['requests']:,} requests,"
    yield f" {document['replicas']} replicas</p>"
    rows = [
        [f"{title} {rank}", *(seconds(p[key][rank]) for p in policies.values())]
        for key, title in LATENCIES.items()
        for rank in ("p50", "p95", "p99")
    ]
    rows += [[title, *(number(p[key]) for p in policies.values())] for title, key in COUNTS.items()]
    rows += [[title, *cells] for title, cells in slo_rows(policies)]
    yield _table(["", *policies], rows)
    said = [f"{name}: {line}" for name, found in policies.items() for line in remarks(found)]
    yield from (f"<p>{html.escape(line)}</p>" for line in (*said, *document["paired_lines"]))
    requests = read_frame(path / "requests.parquet")
    for key, title in LATENCIES.items():
        if key != "itl_s":
            yield _html(_distribution(requests, key), f"{title} of requests", "seconds", "share")
    yield _html(_positions(policies), "Acceptance by draft position", "position", "share")
    steps = read_frame(path / "steps.parquet")
    yield _html(_over_time(steps), "Verified drafts per step", "seconds", "draft tokens")


def _distribution(requests: pd.DataFrame, key: str) -> Figure:
    """Empirical distribution per policy, on a log axis."""
    done = requests[requests["status"] == COMPLETED]
    ends = {"ttft_s": "first_token_s", "e2e_s": "finish_s"}
    figure = Figure()
    for policy, rows in done.groupby("policy", observed=True):
        if key == "tpot_s":
            values = tpot_s(rows)
        else:
            values = (rows[ends[key]] - rows["arrival_s"]).to_numpy()
        values = np.sort(values[np.isfinite(values)])
        if values.size:
            share = np.linspace(0, 1, min(POINTS, values.size))
            figure.add_scatter(x=np.quantile(values, share), y=share, name=str(policy))
    figure.update_xaxes(type="log")
    return figure


def _positions(policies: Document) -> Figure:
    """Share of the rounds that verified position k in which it was accepted."""
    figure = Figure()
    for name, summary in policies.items():
        seen = [p for p in summary["positions"] if p["verified"]]
        shares = [p["accepted"] / p["verified"] for p in seen]
        figure.add_scatter(x=[p["position"] for p in seen], y=shares, name=name)
    return figure


def _over_time(steps: pd.DataFrame) -> Figure:
    """Mean budget in equal slices of time."""
    figure = Figure()
    for policy, rows in steps.groupby("policy", observed=True):
        cut = pd.cut(rows["start_s"], min(POINTS, max(1, len(rows) // 20)), labels=False)
        means = rows.groupby(cut)[["start_s", "budget_tokens"]].mean()
        figure.add_scatter(x=means["start_s"], y=means["budget_tokens"], name=str(policy))
    return figure


def _frontier(document: Document) -> Iterator[str]:
    figure = Figure()
    points = pd.DataFrame(document["points"])
    for policy, rows in points.groupby("policy", sort=False):
        x, y = rows["tok_s_per_user_p50"], rows["output_tok_s"]
        figure.add_scatter(
            x=[p["mean"] for p in x],
            y=[p["mean"] for p in y],
            error_y={"type": "data", "array": [_half(p) for p in y]},
            text=rows["concurrency"],
            name=str(policy),
            mode="lines+markers",
        )
    title = "Throughput against interactivity (points: requests out; bars: 95 %)"
    yield _html(figure, title, "tok/s/user, median", "output tok/s")


def _half(estimate: Document) -> float:
    return 0.0 if estimate["low"] is None else (estimate["high"] - estimate["low"]) / 2


def _compare(document: Document) -> Iterator[str]:
    yield f"<p>{document['replications']} replications, stopped by {document['stopped_by']}</p>"
    yield _table(
        ["policy", *METRICS.values()],
        [[p, *(number(m[k]["mean"]) for k in METRICS)] for p, m in document["policies"].items()],
    )
    rows = [
        [row["policy"], row["against"], METRICS[row["metric"]], _difference(row)]
        for row in document["differences"]
    ]
    yield _table(["policy", "against", "metric", "paired difference, 95 %"], rows)


def _difference(row: Document) -> str:
    if not row["shown"]:
        return "no difference shown"
    return f"{row['relative']:+.1%} ({number(row['low'])} to {number(row['high'])})"


def _capacity(document: Document) -> Iterator[str]:
    rows = [[policy, *capacity_row(found)] for policy, found in document["policies"].items()]
    yield f"<p>largest load at which {document['attainment']:.0%} of requests meet their SLO</p>"
    yield _table(["policy", *CAPACITY_COLUMNS], rows)


def _sweep(document: Document) -> Iterator[str]:
    shown = [*document["axes"], "policy", "seed", "output_tok_s", "tok_s_per_user_p50", "e2e_s.p95"]
    rows = [
        [number(row[k]) if isinstance(row[k], float) else str(row[k]) for k in shown]
        for row in document["rows"]
    ]
    yield _table(shown, rows)


SECTIONS: dict[str, Callable[[Document], Iterator[str]]] = {
    "compare": _compare,
    "frontier": _frontier,
    "capacity": _capacity,
    "sweep": _sweep,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; exit code 2 after one line for a user's error."""
    made = options.Parser("python -m sim report", (__doc__ or "").split("\n\n")[0])
    made.add_argument("folders", type=Path, nargs="+", help="run folders and experiments' folders")
    made.add_argument("--out", type=Path, default=Path("report.html"), help="page to write")
    args = made.parse_args(argv)

    def job() -> None:
        text = page(args.folders)
        part = args.out.with_name(args.out.name + ".part")
        part.write_text(text)
        part.replace(args.out)
        print(f"written: {args.out}")

    return made.answer(job)


if __name__ == "__main__":
    sys.exit(main())
