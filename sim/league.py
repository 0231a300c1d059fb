"""Every policy over scenarios, loads and bundles, in pairs on the same requests; writes a page.

    python -m sim league
    python -m sim league --bundle measured=FOLDER --replications 8

Finished runs are kept in OUT/cells.jsonl: the same command goes on where it was stopped. The result
is OUT/league.json, and the page docs/league.md with its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_traces.bundle import default_bundle
from policies import registry
from sim import cells, farm, league_page, options, setup
from sim.capacity import LOADS
from sim.cells import Cell, Summary
from sim.experiments import Runner, value
from sim.folder import provenance
from sim.league_cells import PLAIN
from sim.metrics import plain
from sim.paired import interval
from sim.scenarios import SCENARIOS

Floats = npt.NDArray[np.float64]
Words = tuple[str, ...]
Document = dict[str, Any]

BUNDLES = ("measured=", "published=published:dspark-qwen3-4b+published:vllm-v4-flash-b300")
REQUESTS = {
    "azure-conv": 600,
    "azure-code": 1500,
    "mooncake-conv": 300,
    "azure-week": 800,
    "reasoning": 100,
    "agentic": 400,
    "poisson": 600,
    "gamma": 600,
}
"""Requests of a run at high load; other loads in proportion, so that all last as long."""
SETTLED = 64
"""Machines that run fewer requests at once settle sooner: their runs are cut by the square root."""
SPEED = "tok_s_per_user_p50"
"""What policies are ranked by."""
METRICS = (
    SPEED,
    "output_tok_s",
    "goodput_rps",
    "ttft_s.p50",
    "ttft_s.p95",
    "tpot_s.p50",
    "tpot_s.p95",
    "e2e_s.p50",
    "e2e_s.p95",
    "tokens_per_round",
    "verified_tokens",
    "wasted_tokens",
    "mean_step_s",
    "believed_step.mean",
    "believed_step.absolute",
)
STATIC, ORACLE = "oracle-static", "oracle"
LONE_PASSES = {"ttft": 200.0, "tpot": 3.0}
"""Service targets in target passes over one token: a machine is held to its own speed."""


@dataclass(frozen=True)
class Setting:
    """One world, traffic and load: what all policies of a cell of the league share."""

    bundle: str
    scenario: str
    load: str
    words: Words


def parse_bundle(text: str) -> tuple[str, Words]:
    """An argparse type: ``LABEL=BUNDLE[+LATENCY]`` -> the label and the words of sim.run.

    An empty bundle is the best measured one that ships.
    """
    label, equals, names = text.partition("=")
    bundle, _, latency = names.partition("+")
    if not equals or not label.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} must be LABEL=BUNDLE or LABEL=BUNDLE+LATENCY")
    return label, ("--bundle", bundle or default_bundle(), "--latency", latency)


def _choice(known: Iterable[str]) -> Any:
    """An argparse type: some of the known names, comma-separated."""
    names = list(known)

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        wrong = [name for name in chosen if name not in names]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} must be one of {', '.join(names)}")
        return chosen

    return parse


def parser() -> options.Parser:
    """The options of the league."""
    made = options.Parser("python -m sim league", (__doc__ or "").split("\n\n")[0])
    made.add_argument(
        "--bundle", type=parse_bundle, action="append", metavar="LABEL=BUNDLE[+LATENCY]",
        help="a world under a name: bundle and latency as in python -m sim.run; repeat for more"
        " (default: the best measured bundle that ships, and the published world)",
    )  # fmt: skip
    made.add_argument(
        "--policy", type=options.policy_list, default=",".join(registry.names()),
        metavar="NAME[,NAME...]", help="policies; all that are registered unless named",
    )  # fmt: skip
    made.add_argument(
        "--scenario", type=_choice(SCENARIOS), default=",".join(REQUESTS), help="traffic"
    )
    made.add_argument("--load", type=_choice(LOADS), default=",".join(LOADS), help="load words")
    made.add_argument("--replications", type=options.whole(2), default=5, help="seeds per cell")
    made.add_argument("--base-seed", type=options.whole(0), default=1, help="first seed")
    made.add_argument(
        "--size", type=options.positive, default=1.0, help="factor on the requests of every run"
    )
    made.add_argument(
        "--jobs", type=options.whole(1), default=os.cpu_count() or 1, help="worker processes"
    )
    made.add_argument(
        "--out", type=Path, default=Path("runs/league"), help="where finished runs are kept"
    )
    made.add_argument("--page", type=Path, default=Path("docs/league.md"), help="page to write")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write the result and the page; exit code 2 for a user's error."""
    made = parser()
    args = made.parse_args(argv)

    def job() -> None:
        document = league(args) | {"command": command(made.prog, argv)}
        path = args.out / "league.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(part, path)
        print("written: " + ", ".join(map(str, [path, *league_page.write(document, args.page)])))

    kept = f"finished runs are kept in {args.out}: the same command goes on from there"
    return made.answer(job, kept)


def command(prog: str, argv: Sequence[str] | None) -> str:
    """The command line without the options that leave its result alone."""
    words = iter(sys.argv[1:] if argv is None else argv)
    kept = [w for w in words if w not in ("--jobs", "--out", "--page") or not next(words, "")]
    return " ".join((prog, *kept))


def league(args: argparse.Namespace) -> Document:
    """Every cell of the league, and what it says of every policy."""
    if PLAIN not in args.policy:
        raise ValueError(f"--policy must hold {PLAIN!r}: speeds are told in terms of it")
    bundles = dict(args.bundle or map(parse_bundle, BUNDLES))
    settings = [
        setting
        for label, words in bundles.items()
        for scenario in args.scenario
        for setting in _settings(label, words, scenario, args.load, args.size)
    ]
    gammas = {s: cells.world(s.words)[1].traces.gamma for s in settings}
    setup.check_policies(args.policy, min(gammas.values()))
    seeds = [args.base_seed + k for k in range(args.replications)]
    data = {f"{s.bundle}/{f}": h for s in settings for f, h in _hashes(s).items()}
    run = Runner(farm.Store(args.out / "cells.jsonl", farm.made_with(data)), args.jobs)
    static = _best_static(settings, gammas, seeds[0], run) if STATIC in args.policy else {}
    plan = [
        Cell(s.words, static[s] if policy == STATIC else policy, seed)
        for s in settings
        for seed in seeds
        for policy in args.policy
    ]
    found = dict(zip(plan, run(plan), strict=True))
    entries = []
    for s in settings:
        names = {p: static[s] if p == STATIC else p for p in args.policy}
        summaries = {p: [found[Cell(s.words, n, seed)] for seed in seeds] for p, n in names.items()}
        entries.append(_entry(s, summaries, names))
    document: Document = plain(
        {
            "origins": {s.bundle: _origin(s, found, plan) for s in settings},
            "seeds": seeds,
            "targets": LONE_PASSES,
            "policies": {p: _nature(p, min(gammas.values())) for p in args.policy},
            "cells": entries,
            "provenance": provenance(args.base_seed),
        }
    )
    return document


def _settings(
    label: str, bundle: Words, scenario: str, loads: Sequence[str], size: float
) -> list[Setting]:
    """The loads of a scenario; a closed loop's are users, as shares of the batch cap."""
    shared = (*bundle, "--scenario", scenario, "--extrapolate", "--prefix-cache")
    closed = ("--concurrency", "1") if scenario == "agentic" else ()
    body = ("--requests", str(max(256, REQUESTS[scenario])))
    _, made = cells.world((*shared, *closed, *body))
    size *= min(1.0, (_users(made) / SETTLED) ** 0.5)
    lone_s = made.latency.step_time_s(0, 0, 1)
    ttft_s, tpot_s = (passes * lone_s for passes in LONE_PASSES.values())
    slo = (
        f"interactive:ttft={ttft_s:.4g};tpot={tpot_s:.4g},agent:ttft={ttft_s:.4g};tpot={tpot_s:.4g}"
    )
    unit = 0.0 if closed else cells.capacity((*shared, *closed, *body))
    found = []
    for load in loads:
        if closed:
            rate = ("--concurrency", str(max(1, round(LOADS[load] * _users(made)))))
        else:
            rate = ("--load", f"{LOADS[load] * unit:.6g}")
        count = max(10, round(size * REQUESTS[scenario] * LOADS[load] / LOADS["high"]))
        words = (*shared, *rate, "--requests", str(count), "--slo", slo)
        found.append(Setting(label, scenario, load, words))
    return found


def _hashes(s: Setting) -> dict[str, str]:
    return cells.world(s.words)[1].hashes


def _users(made: setup.Setup) -> int:
    """Users that count as the capacity of a closed loop: as many as requests may run at once."""
    return made.config.engine.max_requests * made.config.replicas


def _best_static(
    settings: Sequence[Setting], gammas: dict[Setting, int], seed: int, run: Runner
) -> dict[Setting, str]:
    """``oracle-static:k=K`` with the K that did best on the first seed, by setting."""
    trials = {s: [f"{STATIC}:k={k}" for k in range(gammas[s] + 1)] for s in settings}
    plan = [Cell(s.words, policy, seed) for s in settings for policy in trials[s]]
    found = dict(zip(plan, run(plan), strict=True))
    return {
        s: max(trials[s], key=lambda policy: _speed(found[Cell(s.words, policy, seed)]))
        for s in settings
    }


def _speed(summary: Summary) -> float:
    """Median tokens per second of a user; 0 where nobody finished."""
    speed = value(summary, SPEED)
    return speed if np.isfinite(speed) else 0.0


def _nature(policy: str, gamma: int) -> str:
    """lossless, biased or bound."""
    name, parameters = registry.parse(policy)
    made = registry.create(name, gamma, **parameters)
    if type(made).analysis_only:
        return "bound"
    return "biased" if made.anticipating else "lossless"


def _origin(s: Setting, found: dict[Cell, Summary], plan: Sequence[Cell]) -> list[str]:
    first = found[next(cell for cell in plan if cell.words == s.words)]
    return [first["origin"], first["latency_origin"]]


def _entry(s: Setting, summaries: dict[str, list[Summary]], names: dict[str, str]) -> Document:
    """One cell of the league."""
    speeds = {p: np.array([_speed(x) for x in rows]) for p, rows in summaries.items()}
    places = ranks(speeds)
    bound = speeds.get(ORACLE)
    table = {}
    for policy, rows in summaries.items():
        table[policy] = {
            "as": names[policy],
            "rank": places[policy],
            "unstable": sum(bool(x["unstable"]) for x in rows),
            "speeds": speeds[policy].tolist(),
            "regret": None if bound is None else interval(1.0 - speeds[policy] / bound),
            **{m: interval(np.array([value(x, m) for x in rows])) for m in METRICS},
        }
    return {
        "bundle": s.bundle,
        "scenario": s.scenario,
        "load": s.load,
        "load_rps": next(iter(summaries.values()))[0]["load_rps"],
        "users": next(iter(summaries.values()))[0]["concurrency"],
        "words": list(s.words),
        "policies": table,
    }


def ranks(speeds: dict[str, Floats]) -> dict[str, int]:
    """1 + the number of policies shown to be faster, in pairs over the seeds: ties share a rank."""
    return {
        mine: 1 + sum(bool(change(other, speeds[mine])["low"] > 0) for other in speeds.values())
        for mine in speeds
    }


def change(speeds: Floats, base: Floats) -> dict[str, Any]:
    """Relative change in pairs: mean of speeds / base - 1 with its interval."""
    return interval(speeds / np.maximum(base, 1e-12) - 1.0)


if __name__ == "__main__":
    sys.exit(main())
