"""Record everything on one machine: ``python -m drafters.campaign --minutes N --out DIR ...``.

    python -m drafters.campaign --minutes 9 --out DIR --device cuda --prompts FILES
    python -m drafters.campaign split --out PARTS            # a target's files, to carry along
    python -m drafters.campaign pack DIR --out PARTS         # results, to carry back
    python -m drafters.campaign unpack PARTS/* --out DIR
    python -m drafters.campaign check DIR
    python -m drafters.campaign report DIR --out docs/recording.md

Stages, in order: invent, generate, train, traces, latency, bundle, evaluate, live, kernels. Each
keeps what it has done, so the same command goes on after any stop, and a machine that is lent in
pieces of N minutes needs it once per piece. Progress and summaries go to stderr, each command's own
output to DIR/logs; the last line of stdout is one JSON document. Exit code 0: all done; 3: time is
up, run the same command again; 1: something failed; 2: a wrong option.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from drafters import campaign_report
from drafters.campaign_check import check
from drafters.campaign_pack import files_under, read_parts, write_parts
from drafters.campaign_run import Campaign
from drafters.campaign_stages import SHARES, Plan, choose_stages, tasks
from drafters.campaign_weights import join_target, split_target
from drafters.errors import UserError, exit_code
from gpu_traces.commands import Parser

DONE, FAILED, GO_ON = 0, 1, 3
WORKING_FILES = ("shards", "responses", "prompts")
"""Folders that only a resumed campaign needs; packed on request."""


def run(args: argparse.Namespace) -> int:
    """One piece of a campaign."""
    stages = choose_stages(args.stages, args.skip)
    _check_options(args, stages)
    if args.target_parts:
        join_target(args.target, args.target_parts)
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    plan = Plan(
        args.out, args.target, tuple(args.prompts), args.device, dtype, args.size, stages,
        tuple(args.arrivals), args.total_minutes,
    )  # fmt: skip
    campaign = Campaign(tasks(plan), args.out, 60 * args.minutes, plan.sized.together)
    finished = campaign.run()
    lines, problems = check(args.out) if finished else ([], [])
    for text in (*lines, *(f"problem: {p}" for p in problems)):
        print(text, file=sys.stderr)
    left = campaign.left_s() / 60
    result: dict[str, Any] = {"finished": finished, "failed": campaign.failed}
    print(json.dumps(result | {"problems": problems, "minutes_left": round(left, 1)}))
    if not finished:
        return GO_ON
    return FAILED if campaign.failed or problems else DONE


def _check_options(args: argparse.Namespace, stages: tuple[str, ...]) -> None:
    if args.minutes <= 0 or args.total_minutes < 0:
        raise UserError(
            f"--minutes {args.minutes:g} must be above 0 and --total-minutes"
            f" {args.total_minutes:g} not below"
        )
    if not args.prompts and {"invent", "generate", "live"} & set(stages):
        raise UserError("stages invent, generate and live need --prompts: JSONL files or folders")
    for path in (*args.prompts, *args.arrivals):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch {torch.__version__} sees no CUDA device")


def pack(args: argparse.Namespace) -> int:
    """Write a campaign's results as tar parts."""
    skipped = () if args.everything else WORKING_FILES

    def wanted(path: Path) -> bool:
        first = path.relative_to(args.folder).parts[0]
        chosen = first in args.only if args.only else first not in skipped
        return chosen and path.name != "state.pt" and ".tmp" not in path.name

    if not args.folder.is_dir():
        raise UserError(f"{args.folder} is no folder")
    for path in write_parts(files_under(args.folder, wanted), args.out, "results", args.part_mib):
        print(path)
    return DONE


def unpack(args: argparse.Namespace) -> int:
    """Join tar parts and extract them."""
    files = read_parts(args.parts, args.out)
    print(f"{len(files)} files in {args.out}")
    return DONE


def split(args: argparse.Namespace) -> int:
    """Write a target's files as tar parts, for --target-parts elsewhere."""
    for path in split_target(args.target, args.out, args.part_mib):
        print(path)
    return DONE


def check_folder(args: argparse.Namespace) -> int:
    """Validate what a campaign recorded."""
    lines, problems = check(args.folder)
    print("\n".join((*lines, *(f"problem: {p}" for p in problems))))
    return FAILED if problems else DONE


def report(args: argparse.Namespace) -> int:
    """Fill the generated part of a page with tables and plots of bundles."""
    campaign_report.write(args.folders, args.out)
    print(f"wrote {args.out}")
    return DONE


def run_parser() -> argparse.ArgumentParser:
    """Options of the campaign itself."""
    made = Parser("python -m drafters.campaign", __doc__)
    add, names = made.add_argument, ", ".join(SHARES)
    add("--minutes", type=float, required=True, help="time that this call may take")
    add("--out", type=Path, required=True, help="folder of the campaign; goes on if it is there")
    add("--stages", nargs="+", default=[], metavar="STAGE", help=f"only these of {names}")
    add("--skip", nargs="+", default=[], metavar="STAGE", help="all but these")
    add("--size", choices=("small", "full"), default="full", help="small: a rehearsal")
    add("--device", default="cpu", help="torch device")
    add("--dtype", choices=("float32", "bfloat16"), help="precision (float32 on CPU, bfloat16)")
    add("--target", default="smollm2-135m", help="fetched name, local folder or hub id")
    add("--target-parts", type=Path, nargs="+", default=[], help="parts of split, any order")
    add("--prompts", nargs="+", default=[], help="JSONL files or folders")
    add("--arrivals", nargs="+", default=[], help="open loops: files with arrival_s; none: made")
    add("--total-minutes", type=float, default=0.0, help="of the whole campaign; 0: the size's")
    made.set_defaults(work=run)
    return made


def verb_parser() -> argparse.ArgumentParser:
    """Options of the verbs beside it."""
    made = Parser("python -m drafters.campaign")
    verbs = made.add_subparsers(dest="verb", required=True)
    for name, work in VERBS.items():
        verb = verbs.add_parser(name, help=(work.__doc__ or "").rstrip("."))
        verb.set_defaults(work=work)
        add = verb.add_argument
        if name in ("pack", "check"):
            add("folder", type=Path, help="folder of a campaign")
        if name == "unpack":
            add("parts", type=Path, nargs="+", help="all parts, any order")
        if name == "report":
            add("folders", type=Path, nargs="+", help="campaigns, or folders of bundles")
        if name != "check":
            add("--out", type=Path, required=True, help="where to write")
        if name == "split":
            add("--target", default="smollm2-135m", help="name known to drafters.fetch")
        if name in ("split", "pack"):
            mib = 33.0 if name == "split" else 15.0
            add("--part-mib", type=float, default=mib, help=f"part size, MiB (default {mib:g})")
        if name == "pack":
            add("--everything", action="store_true", help="responses and shards too")
            add("--only", nargs="+", default=[], metavar="NAME", help="just these files and folders"
                " of it, as drafters, where not all may travel at once")  # fmt: skip
    return made


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "pack": pack,
    "unpack": unpack,
    "split": split,
    "check": check_folder,
    "report": report,
}


def main(argv: list[str] | None = None) -> int:
    """See the module for exit codes."""
    argv = sys.argv[1:] if argv is None else argv
    parser = verb_parser() if argv and argv[0] in VERBS else run_parser()
    args = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return exit_code(lambda: args.work(args), "stopped; the same command goes on where it was")
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
