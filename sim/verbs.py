"""Command lines of the experiments: compare, frontier, capacity, sweep.

Each takes, beside its own options, those of ``python -m sim.run`` for world, deployment and load.
Finished runs are kept in OUT/cells.jsonl: the same command with the same --out goes on where it was
stopped. The result is OUT/<verb>.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sim import cells, experiments, farm, options, setup
from sim.experiments import METRICS, Runner, Words
from sim.folder import provenance
from sim.show import number, origins, terminal

Document = dict[str, Any]


def _own(verb: str) -> options.Parser:
    made = options.Parser(f"python -m sim {verb}", (VERBS[verb].__doc__ or "").split("\n")[0])
    default = "none,fixed-k:k=3,confidence,hardware-aware"
    options.add_policies(made, default)
    made.add_argument("--base-seed", type=options.whole(0), default=0, help="first seed")
    made.add_argument(
        "--jobs", type=options.whole(1), default=os.cpu_count() or 1, help="worker processes"
    )
    made.add_argument("--backend", choices=farm.BACKENDS, default="loky", help="where jobs run")
    made.add_argument(
        "--out", type=Path, default=Path("runs") / verb, metavar="FOLDER",
        help="where finished runs and the result are kept",
    )  # fmt: skip
    made.add_argument("--json", action="store_true", help="end with one JSON document")
    ADD[verb](made)
    return made


def _add_compare(made: options.Parser) -> None:
    made.add_argument(
        "--precision", type=options.positive, default=0.01,
        help="half-width of the paired intervals to reach, as a share of the first policy's mean",
    )  # fmt: skip
    made.add_argument("--replications", type=options.whole(2), default=30, help="most replications")
    made.add_argument(
        "--metric", choices=sorted(METRICS), default="output_tok_s", help="whose precision counts"
    )


def _add_seeds(made: options.Parser, default: int) -> None:
    made.add_argument(
        "--seeds", type=options.whole(1), default=default, help="replications of every point"
    )


def _add_frontier(made: options.Parser) -> None:
    made.add_argument(
        "--at", type=_counts, default="1,2,4,8,16,32,64", metavar="N,N,...",
        help="requests out at any time",
    )  # fmt: skip
    _add_seeds(made, 5)


def _add_capacity(made: options.Parser) -> None:
    made.add_argument(
        "--attainment", type=options.share, default=0.95,
        help="share of requests that must meet their SLO",
    )  # fmt: skip
    made.add_argument(
        "--tolerance", type=options.positive, default=0.02, help="relative width of the bracket"
    )
    _add_seeds(made, 3)


def _add_sweep(made: options.Parser) -> None:
    made.add_argument(
        "--set", action="append", default=[], type=_axis, metavar="OPTION=V,V,...", required=True,
        help="an option of sim.run and its values (with --samples: low,high); repeat for more",
    )  # fmt: skip
    made.add_argument(
        "--samples", type=options.whole(0), default=0,
        help="points of a Latin hypercube instead of the full grid (whole numbers between two"
        " whole ends)",
    )  # fmt: skip
    _add_seeds(made, 3)


def _counts(text: str) -> list[int]:
    return [options.whole(1)(item) for item in text.split(",")]


def _axis(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    known = {a.lstrip("-") for a in cells.setting_parser()._option_string_actions}
    if not equals or not values or name not in known:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be OPTION=value,value with an option of python -m sim.run"
        )
    return name, values.split(",")


def compare(args: argparse.Namespace, words: Words, run: Runner) -> Document:
    """Policies in pairs over replications, against the first one named."""
    return experiments.compare(
        words, args.policy, args.base_seed, run,
        precision=args.precision, limit=args.replications, metric=args.metric,
    )  # fmt: skip


def frontier(args: argparse.Namespace, words: Words, run: Runner) -> Document:
    """Throughput against tok/s/user by sweeping the concurrency of a closed loop."""
    return experiments.frontier(words, args.policy, args.at, _seeds(args), run)


def capacity(args: argparse.Namespace, words: Words, run: Runner) -> Document:
    """Largest load at which each policy still meets the SLO, by bisection."""
    return experiments.find_capacity(
        words, args.policy, _seeds(args), run,
        attainment=args.attainment, tolerance=args.tolerance,
    )  # fmt: skip


def sweep(args: argparse.Namespace, words: Words, run: Runner) -> Document:
    """A grid or Latin hypercube over any option of sim.run."""
    axes = dict(args.set)
    return experiments.sweep(
        words, args.policy, axes, _seeds(args), run, args.samples, args.base_seed
    )


def _seeds(args: argparse.Namespace) -> list[int]:
    return [args.base_seed + k for k in range(args.seeds)]


VERBS: dict[str, Callable[[argparse.Namespace, Words, Runner], Document]] = {
    "compare": compare,
    "frontier": frontier,
    "capacity": capacity,
    "sweep": sweep,
}
ADD: dict[str, Callable[[options.Parser], None]] = {
    "compare": _add_compare,
    "frontier": _add_frontier,
    "capacity": _add_capacity,
    "sweep": _add_sweep,
}


def main(argv: Sequence[str]) -> int:
    """``argv`` begins with the verb; returns the exit code."""
    verb, *rest = argv
    own = _own(verb)
    if {"-h", "--help"} & set(rest):
        own.print_help()
        print("\nand the options of a run:\n")
        cells.setting_parser(own.prog).print_help()
        return 0
    args, words = own.parse_known_args(rest)
    cells.setting_parser(own.prog).parse_args(words)
    if any(word == "--seed" or word.startswith("--seed=") for word in words):
        own.error("--seed is one run's; give --base-seed, from which every run's seed counts up")

    def job() -> None:
        document = _run(verb, args, tuple(words))
        if args.json:
            print(json.dumps(document))

    kept = f"finished runs are kept in {args.out}: the same command goes on from there"
    return own.answer(job, kept)


def _run(verb: str, args: argparse.Namespace, words: Words) -> Document:
    asked = cells.parsed(words)
    if verb in ("frontier", "capacity") and (asked.load or asked.concurrency):
        raise ValueError(f"{verb} sets the load itself; leave --load and --concurrency out")
    _, made = cells.world((*words, "--concurrency", "1") if verb == "frontier" else words)
    setup.check_policies(args.policy, made.traces.gamma)
    store = farm.Store(args.out / "cells.jsonl", farm.made_with(made.hashes))
    document = VERBS[verb](args, words, Runner(store, args.jobs, args.backend))
    document["provenance"] = provenance(args.base_seed, bundles=made.hashes)
    path = args.out / f"{verb}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, default=str) + "\n")
    os.replace(part, path)
    console = terminal()
    console.print(origins(document), highlight=False, soft_wrap=True)
    PRINT[verb](document, console)
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
    return document


def _print_compare(document: Document, console: Console) -> None:
    console.print(
        f"{document['replications']} replications, stopped by {document['stopped_by']}"
        f" (paired half-width {document['precision_reached']:.2%})",
        highlight=False,
    )
    table = Table("policy", *METRICS.values())
    for policy, means in document["policies"].items():
        table.add_row(policy, *(number(means[metric]["mean"]) for metric in METRICS))
    console.print(table)
    for row in document["differences"]:
        head = f"{row['policy']} against {row['against']}, {METRICS[row['metric']]}: "
        if not row["shown"]:
            console.print(head + "no difference shown", highlight=False, soft_wrap=True)
            continue
        console.print(
            f"{head}{row['relative']:+.1%} (95 %: {number(row['low'])} to {number(row['high'])})",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    for policy, runs in document["unstable"].items():
        if runs:
            text = f"{policy}: queue still growing in {runs} of {document['replications']} runs"
            console.print(text, highlight=False, soft_wrap=True)


def _print_frontier(document: Document, console: Console) -> None:
    table = Table("policy", "concurrency", "output tok/s", "tok/s/user", "tokens per round")
    for point in document["points"]:
        cells_ = [
            number(point[metric]["mean"])
            for metric in ("output_tok_s", "tok_s_per_user_p50", "tokens_per_round")
        ]
        table.add_row(point["policy"], str(point["concurrency"]), *cells_)
    console.print(table)


def _print_capacity(document: Document, console: Console) -> None:
    unit = document["none_sustains_rps"]
    console.print(
        f"largest load at which {document['attainment']:.0%} of requests meet their SLO;"
        f" none's raw capacity: {number(unit)} requests/s", highlight=False, soft_wrap=True,
    )  # fmt: skip
    table = Table("policy", *experiments.CAPACITY_COLUMNS, "of raw capacity")
    for policy, row in document["policies"].items():
        share = f"{row['capacity_rps'] / unit:.0%}"
        table.add_row(policy, *experiments.capacity_row(row), share)
    console.print(table)


def _print_sweep(document: Document, console: Console) -> None:
    axes = list(document["axes"])
    table = Table(*axes, "policy", "seed", "output tok/s", "tok/s/user", "E2E p95, s")
    for row in document["rows"]:
        shown = [row[a] for a in axes] + [row["policy"], str(row["seed"])]
        keys = ("output_tok_s", "tok_s_per_user_p50", "e2e_s.p95")
        table.add_row(*map(str, shown), *(number(row[key]) for key in keys))
    console.print(table)


PRINT: dict[str, Callable[[Document, Console], None]] = {
    "compare": _print_compare,
    "frontier": _print_frontier,
    "capacity": _print_capacity,
    "sweep": _print_sweep,
}
