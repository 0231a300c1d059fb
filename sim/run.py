"""Simulate production traffic under one or more verification policies.

    python -m sim.run --policy confidence --load high
    python -m sim.run --policy none,fixed-k:k=7,hardware-aware --load 12.5 --json
    python -m sim.run --policy hardware-aware --concurrency 64 --export policy.json

Prints tables, writes a run folder (summary.json, requests.parquet, steps.parquet, stalls.parquet,
outcomes.parquet, provenance.json) and, with --json, ends with one JSON document on one line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_traces.files import can_hold
from policies import registry
from policies.export import PolicyFile, write_policy
from sim import options, setup, show
from sim.folder import check_target, provenance, run_folder
from sim.metrics import summarize
from sim.paired import paired_lines, paired_table
from sim.simulate import simulate
from sim.workload import Workload, at_once


def parser() -> options.Parser:
    """Every option of a plain run."""
    made = options.Parser("python -m sim.run", (__doc__ or "").split("\n\n")[0])
    options.add_policies(made, "confidence")
    options.add_load(made)
    options.add_world(made)
    options.add_deployment(made)
    options.add_distortions(made)
    group = made.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER",
        help="run folder to write (an earlier run there is replaced); unset: runs/<time>",
    )  # fmt: skip
    group.add_argument(
        "--json", action="store_true", help="end with one JSON document, the last line of stdout"
    )
    group.add_argument(
        "--export", type=Path, default=None, metavar="FILE",
        help="write the first policy as a file that the live loop runs",
    )  # fmt: skip
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code (0, or 2 after one line on stderr for a user's error)."""
    made = parser()
    args = made.parse_args(argv)

    def job() -> None:
        document = run(args)
        if args.json:
            print(json.dumps(document))

    return made.answer(job)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate what the options ask for, write the run folder, print; returns the JSON document."""
    started = time.perf_counter()
    if args.concurrency and args.load:
        raise ValueError("--load is for open-loop arrivals; leave it out with --concurrency")
    out = args.out or Path("runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    check_target(out)
    if args.export:
        _check_export(args.export)
    world = setup.build(args)
    policies = setup.check_policies(args.policy, world.traces.gamma)
    console = show.terminal()
    capacity = world.capacity_rps()
    load = None if args.concurrency else setup.load_rps(args.load or "high", capacity)
    workload = traffic(world, load)
    document = _header(args, world, workload, capacity, load)
    requests = {}
    with run_folder(out) as folder:
        for label, name, parameters in policies:
            records = simulate(
                world.traces, world.latency, workload, name, world.config, args.seed, **parameters
            )
            document["policies"][label] = summarize(records, world.slos)
            requests[label] = records.requests
            folder.add(label, records)
        document["paired"] = paired_table(requests)
        document["paired_lines"] = paired_lines(document["paired"])
        document["wall_s"] = time.perf_counter() - started
        document["run"] = str(out)
        folder.close({"summary": document, "provenance": _provenance(args, world)})
    if args.export:
        _export(args.export, world, policies[0], document)
    show.print_run(document, console)
    console.print(f"run folder: {out}", highlight=False, soft_wrap=True)
    return document


def traffic(world: setup.Setup, load_rps: float | None) -> Workload:
    """The requests of a run: open loop at a rate, or what its closed loop is fed with."""
    if world.config.concurrency and not world.closed:
        return at_once(world.workload(1.0 if world.scenario == setup.OWN else None))
    return world.workload(load_rps)


def _header(
    args: argparse.Namespace,
    world: setup.Setup,
    workload: Workload,
    capacity: float,
    load: float | None,
) -> dict[str, Any]:
    return {
        "bundle": world.bundle,
        "origin": str(world.traces.origin),
        "latency": world.latency.name,
        "latency_origin": str(world.latency.origin),
        "scenario": world.scenario,
        "workload": workload.name,
        "traffic_origin": workload.origin,
        "traffic_notes": list(workload.notes),
        "seed": args.seed,
        "requests": workload.requests,
        "replicas": args.replicas,
        "concurrency": args.concurrency,
        "max_requests": world.config.engine.max_requests,
        "max_step_tokens": world.config.engine.max_step_tokens,
        "prefill": args.prefill,
        "domains": list(world.traces.domains),
        "capacity_rps": capacity,
        "load_rps": load,
        "policies": {},
    }


def _check_export(path: Path) -> None:
    """ValueError where no file can be written, before anything is simulated."""
    can_hold(path)
    if path.is_dir():
        raise ValueError(f"--export {path} is a folder; name a file, as {path / 'policy.json'}")


def _export(
    path: Path, world: setup.Setup, policy: setup.PolicyWords, document: dict[str, Any]
) -> None:
    """Write the first policy with its beliefs and what it gained here over the others."""
    label, name, parameters = policy
    gamma = world.traces.gamma
    rule = registry.create(name, gamma, **parameters).cost_rule
    found = document["policies"]
    gains = {
        other: {"output_tok_s": found[label]["output_tok_s"], "other": row["output_tok_s"]}
        for other, row in found.items()
        if other != label
    }
    keys = ("bundle", "origin", "latency", "latency_origin", "scenario", "load_rps", "concurrency")
    write_policy(
        path,
        PolicyFile(
            policy=name,
            parameters=parameters,
            gamma=gamma,
            cost=world.latency.cost_table(rule),
            calibration=world.calibration,
            provenance={key: document[key] for key in keys}
            | {"bundle_sha256": world.hashes, "seed": document["seed"]}
            | {"simulated": gains, "paired": document["paired"], "run": document["run"]},
        ),
    )


def _provenance(args: argparse.Namespace, world: setup.Setup) -> dict[str, Any]:
    return provenance(args.seed, options=vars(args), bundles=world.hashes)


if __name__ == "__main__":
    sys.exit(main())
