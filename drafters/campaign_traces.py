"""Dense coupled traces in two verbs: ``python -m drafters.campaign_traces anchors | bundle``.

``anchors`` drafts at every anchor of the responses of one file, in shards that are kept, until all
are done or its time is spent; which responses come first does not depend on the drafter, so
drafters that got equally far are compared on the same ones. ``bundle`` joins the shards with the
step latencies measured apart, writes the bundle and calibrates it.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import drafters
from drafters.calibrate import calibrate_bundle, write_calibration
from drafters.campaign_latency import as_served, write_latency_bundles
from drafters.errors import UserError, exit_code, naming
from drafters.generate import whole_lines
from drafters.provenance import measured
from drafters.responses import Row, read_responses
from drafters.resume import check_same, claim, digest, models, noted, read_part
from drafters.target import load_target
from drafters.trace import _response_table, check_confidences, dense_group
from gpu_traces.bundle import read_bundle, write_bundle
from gpu_traces.commands import Parser
from gpu_traces.files import read_frame, replacing

SHARD = 16  # responses in a file: what a kill can lose
NOTE = "drafter.json"  # what made the shards beside it


def sorted_responses(path: Path) -> list[Row]:
    """Responses of over one token in the order of their prompts' hashes."""
    whole_lines(path)  # cuts off what a killed run left of a line
    return sorted(read_responses(path), key=lambda r: r["name"])


def maker(args: argparse.Namespace, source: str, rows: list[Row]) -> dict[str, Any]:
    """What shards and bundle must agree on; shards know their responses by number alone."""
    return models(args.target, source) | {"responses": digest(rows), "seed": args.seed}


def anchors(args: argparse.Namespace) -> None:
    """Record shards until all are there or the time is spent."""
    every = sorted_responses(args.responses)
    rows = every[: args.limit] if args.limit else every
    target = load_target(args.target, getattr(torch, args.dtype), args.device)
    drafter = drafters.load(args.drafter, target)
    made_by = maker(args, args.drafter, every) | {"gamma": drafter.gamma, "source": args.drafter}
    made_by |= {name: vars(args)[name] for name in ("limit", "dtype", "device")}
    claim(args.shards / NOTE, made_by)
    started = time.monotonic()
    part, parts = args.part
    for first in range(SHARD * (part - 1), len(rows), SHARD * parts):
        path = args.shards / f"{first:06d}.npz"
        if path.exists():
            continue
        if time.monotonic() - started > args.seconds:
            print(f"{first} of {len(rows)} responses when the time was spent")
            return
        mine = rows[first : first + SHARD]
        made = dense_group(target, drafter, mine, args.seed)
        check_confidences(made["confidence"], f"{first} to {first + len(mine) - 1}")
        counts = [len(row["response_tokens"]) - 1 for row in mine]
        made["request_id"] = np.repeat(np.arange(first, first + len(mine)), counts)
        with naming(path), replacing(path) as temporary:
            np.savez(temporary, **made)
    print(f"all of {len(rows)} responses" + (f", part {part}/{parts}" if parts > 1 else ""))


def part_of(text: str) -> tuple[int, int]:
    """``2/3`` as (2, 3): the second of three processes that share the work."""
    part, parts = (int(word) for word in text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def bundle(args: argparse.Namespace) -> None:
    """Join shards and latencies; write, calibrate, and say what came out."""
    shards = sorted(p for p in args.shards.glob("*.npz") if ".tmp" not in p.name)
    if not shards:
        raise UserError(f"{args.shards} holds no shards; run stage traces first")
    about, rows = noted(args.shards / NOTE), sorted_responses(args.responses)
    check_same(about, maker(args, about.get("source", ""), rows), args.shards)
    made: dict[str, list[np.ndarray]] = {}
    for path in shards:
        part = read_part(path)
        if part is None:
            raise UserError(f"{path} is damaged; remove it and run stage traces again")
        for name, values in part.items():
            made.setdefault(name, []).append(values)
    columns = {name: np.concatenate(parts) for name, parts in made.items()}
    if args.limit:
        kept_rows = columns["request_id"] < args.limit
        columns = {name: values[kept_rows] for name, values in columns.items()}
    recorded = np.unique(columns["request_id"])
    columns["request_id"] = np.searchsorted(recorded, columns["request_id"])
    kept = [rows[i] for i in recorded]
    tables = {"responses": _response_table(kept), "anchors": columns}
    steps = _steps(args, about["source"], about["gamma"])
    if steps is not None:
        tables["steps"] = as_served(steps)
    manifest = measured(
        args.out, args.target, about["source"], args.device, gamma=about["gamma"],
        temperatures=tuple(sorted({float(r["temperature"]) for r in kept})),
        domains=tuple(sorted({str(r["domain"]) for r in kept})),
        command="python -m drafters.campaign_traces " + " ".join(args.command_line),
        seed=args.seed, notes="dense coupled traces; latencies measured apart, nothing beside them",
    )  # fmt: skip
    named = args.drafter_name or Path(about["source"]).name
    coding = {"confidence": args.confidences}
    write_bundle(args.out, replace(manifest, drafter=named), tables, encodings=coding, force=True)
    _calibrate(args.out)
    print(f"wrote {args.out}: {len(kept)} responses, {len(columns['accepted'])} anchors")


def _steps(args: argparse.Namespace, source: str, gamma: int) -> pd.DataFrame | None:
    """The latency table, if it was measured; its eager part becomes a bundle of its own."""
    if not args.steps.exists():
        print(f"no latencies in {args.steps}; the bundle has anchors only", file=sys.stderr)
        return None
    steps = read_frame(args.steps)
    if steps["graph"].any():
        beside = argparse.Namespace(**{**vars(args), "shape": "", "out": args.out.parent})
        write_latency_bundles(beside, args.out.name, source, gamma, steps)
    return steps


def _calibrate(folder: Path) -> None:
    """Put sts+bias into the manifest; too few responses leave the bundle as it is."""
    try:
        fitted, _, _ = calibrate_bundle(read_bundle(folder))
    except UserError as error:
        print(f"not calibrated: {error}", file=sys.stderr)
        return
    write_calibration(read_bundle(folder), fitted["sts+bias"])


def parser() -> argparse.ArgumentParser:
    """Options of both verbs."""
    made = Parser("python -m drafters.campaign_traces", __doc__.partition("\n\n")[2])
    verbs = made.add_subparsers(dest="verb", required=True)
    for name, work in (("anchors", anchors), ("bundle", bundle)):
        verb = verbs.add_parser(name, help=(work.__doc__ or "").splitlines()[0])
        verb.set_defaults(work=work)
        add = verb.add_argument
        add("--target", default="smollm2-135m", help="fetched name, local folder or hub id")
        add("--responses", type=Path, required=True, help="JSONL of drafters.generate")
        add("--shards", type=Path, required=True, help="folder of the shards")
        add("--limit", type=int, default=0, help="responses at most; 0: all")
        add("--device", default="cpu", help="torch device")
        add("--seed", type=int, default=0, help="seed of every draw")
        if name == "anchors":
            add("--drafter", required=True, help="checkpoint folder, shipped name or 'ngram'")
            add("--seconds", type=float, default=1e9, help="start no shard after so long")
            add("--part", type=part_of, default=(1, 1), metavar="I/N",
                help="make every N-th shard only, beside N - 1 other processes")  # fmt: skip
            add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision")
        else:
            add("--drafter-name", default="", help="name in the manifest; empty: the folder's")
            add("--steps", type=Path, required=True, help="Parquet of drafters.campaign_latency")
            add("--out", type=Path, required=True, help="bundle folder")
            add("--confidences", choices=("float16", "uint8"), default="float16", help="stored as a"
                " live run has them, or in a third less, off by at most 0.2 %%")  # fmt: skip
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 after one line on stderr, 130 when stopped."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.command_line = argv
    return exit_code(lambda: args.work(args), "stopped; finished shards are kept")


if __name__ == "__main__":
    sys.exit(main())
