"""Traffic from the command line: list, describe, convert, check and download request tables.

    python -m sim.traffic list
    python -m sim.traffic describe azure-code --requests 200000
    python -m sim.traffic check azure-code
    python -m sim.traffic fetch azure-2023-conv --out traces
    python -m sim.traffic convert traces/AzureLLMInferenceTrace_conv.csv --out conv.parquet
    python -m sim.traffic convert reasoning --requests 50000 --rate 4 --method thin --out r.parquet

A SOURCE is a scenario's name or a file (formats: ``sim.importers``). Errors are one line, exit
code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sim import options
from sim.fetch import TRACES, fetch
from sim.importers import load
from sim.request_table import RequestTable, clipped, scaled, write_parquet
from sim.scaling import METHODS
from sim.scenarios import SCENARIOS, generate, scenario
from sim.traffic_check import compare
from sim.traffic_rules import RULES
from sim.traffic_stats import describe

DEFAULT_REQUESTS = 100_000


def parser() -> options.Parser:
    """The verbs and their options."""
    made = options.Parser("python -m sim.traffic", (__doc__ or "").partition("\n")[0])
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Verb)
    verbs.add_parser("list", help="scenarios, and public traces that can be fetched")
    told = verbs.add_parser("describe", help="print the statistics of a source")
    _add_source(told)
    told.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    made_into = verbs.add_parser("convert", help="write a source as a request table (Parquet)")
    _add_source(made_into)
    made_into.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    held = verbs.add_parser("check", help="hold scenarios against the published figures")
    held.add_argument("scenarios", metavar="SCENARIO", nargs="*", help="unset: all")
    held.add_argument("--seed", type=options.whole(0), default=0)
    got = verbs.add_parser("fetch", help="download a public trace")
    got.add_argument("name", metavar="NAME", help=f"one of {', '.join(TRACES)}")
    got.add_argument("--out", type=Path, default=Path("traces"), metavar="FOLDER")
    return made


class _Verb(options.Parser):
    """A sub-parser; argparse passes ``prog`` by keyword and the help text as ``description``."""

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog, description)


def _add_source(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("source", metavar="SOURCE", help=f"a file, or one of {', '.join(SCENARIOS)}")
    add("--requests", type=options.whole(1), help=f"scenario: {DEFAULT_REQUESTS:,}; file: all")
    add("--seed", type=options.whole(0), default=0, help="drawing, thinning, spreading ties")
    add("--rate", type=options.positive, help="mean requests per second; unset: as it is")
    add("--method", choices=METHODS, default="time_scale", help="how --rate is reached")
    add(
        "--start-s",
        type=options.positive,
        default=0.0,
        help="scenario: begin this far into the day",
    )
    add("--users", type=options.whole(1), help="closed-loop scenarios: concurrent users")
    add("--context-tokens", type=options.whole(2), help="cut prompts so that requests fit this")
    add("--origin", help="where a plain CSV or Parquet file comes from")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (0, or 2 after one line on stderr for a user's error)."""
    made = parser()
    args = made.parse_args(argv)
    return made.answer(lambda: VERBS[args.verb](args))


def source(args: argparse.Namespace) -> RequestTable:
    """The requests that the options ask for."""
    if args.source in SCENARIOS:
        table = generate(
            args.source,
            args.requests or DEFAULT_REQUESTS,
            np.random.SeedSequence(args.seed),
            args.rate,
            args.method,
            args.users,
            args.start_s,
        )
    else:
        table = _from_file(args)
    return clipped(table, args.context_tokens) if args.context_tokens else table


def _from_file(args: argparse.Namespace) -> RequestTable:
    path = Path(args.source)
    if not path.exists():
        known = ", ".join(SCENARIOS)
        raise ValueError(f"{args.source!r} is no file and no scenario; scenarios: {known}")
    if args.users is not None:
        raise ValueError("--users is for closed-loop scenarios; a file has its own arrivals")
    table = load(path, args.seed, args.origin)
    if args.rate is not None:
        table = scaled(table, args.rate / table.rate_rps, args.method, args.seed)
    if (args.requests or 0) > table.requests:
        raise ValueError(f"{path} has {table.requests:,} requests, --requests {args.requests:,}")
    return table.take(slice(args.requests)) if args.requests else table


def _list(args: argparse.Namespace) -> None:
    console = Console()
    scenarios = Table("scenario", "what it is", "fitted to")
    for name in SCENARIOS:
        made = scenario(name)
        scenarios.add_row(name, made.summary, made.fitted_to)
    console.print(scenarios)
    public = Table("public trace", "what it is", "from")
    for name, trace in TRACES.items():
        public.add_row(name, trace.about, trace.url)
    console.print(public)


def _describe(args: argparse.Namespace) -> None:
    table = source(args)
    stats = describe(table)
    if args.json:
        origin = {"source": table.source, "origin": str(table.origin), "notes": table.notes}
        print(json.dumps(origin | {"stats": stats}))
        return
    console = Console()
    console.print(f"{table.source}: {table.origin}", highlight=False)
    for note in table.notes:
        console.print(f"note: {note}", highlight=False)
    shown = Table("statistic", "value")
    shown.columns[1].justify = "right"
    for name, value in stats.items():
        shown.add_row(name, _short(value))
    console.print(shown)


def _convert(args: argparse.Namespace) -> None:
    if args.out.suffix != ".parquet":
        raise ValueError(f"--out {args.out} must end in .parquet")
    table = source(args)
    write_parquet(table, args.out)
    print(f"{args.out}: {table.requests:,} requests, {table.origin}")


def _check(args: argparse.Namespace) -> None:
    """Print the Markdown table of docs/traffic.md."""
    print("| scenario | statistic | published | generated | allowed | within | rule |")
    print("| --- | --- | ---: | ---: | ---: | --- | --- |")
    used = set()
    for name in args.scenarios or SCENARIOS:
        for row in compare(name, args.seed).to_dict("records"):
            numbers = (_short(row[key]) for key in ("published", "generated", "allowed"))
            within = "yes" if row["within"] else "NO"
            print(f"| {name} | {row['statistic']} | {' | '.join(numbers)} | {within}"
                  f" | {row['rule']} |")  # fmt: skip
            used.add(row["rule"])
    for rule in (name for name in RULES if name in used):
        print(f"\n{rule}: {RULES[rule].why}.")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _fetch(args: argparse.Namespace) -> None:
    print(fetch(args.name, args.out))


VERBS = {
    "list": _list,
    "describe": _describe,
    "convert": _convert,
    "check": _check,
    "fetch": _fetch,
}

if __name__ == "__main__":
    sys.exit(main())
