"""Step latencies of a target with several drafters: ``python -m drafters.campaign_latency``.

Cells are measured band by band (few requests with long contexts, many with short ones), each with a
cache of its own size; repetitions go on until the band's time is spent, at least three. What the
target does is measured once, beside the first drafter, and shared by the bundles of the others.
On CUDA everything is measured from captured graphs, as the live loop runs it, with eager cells
beyond the captured sizes; a second bundle, ``NAME-eager``, holds what ``--no-graphs`` does.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

import drafters
from drafters.base import Drafter
from drafters.errors import UserError, exit_code
from drafters.graphs import wanted
from drafters.grids import Cell, Grid, cells
from drafters.profile import Profiler
from drafters.provenance import measured
from drafters.shapes import random_drafter, random_target
from drafters.target import Target, load_target
from gpu_traces.bundle import check_place, write_bundle
from gpu_traces.commands import Parser, positive
from gpu_traces.files import read_frame

LEAST_REPETITIONS = 3
MOST_REPETITIONS = 15
MOST_TOKENS = 4096
TARGET_MODES = ("verify", "prefill", "overhead")

_BLOCK = (1, 2, 3, 4, 6, 8)
_ANY = 1 << 40
BANDS = {
    "tiny": (Grid((1, 2), (1, 3), (8,), (8, 16), _ANY), Grid((1,), (1, 3), (24,), (8,), _ANY)),
    "cpu": (
        Grid((1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8), (128,), (32, 128, 512), _ANY),
        Grid((1, 4, 16, 32), (2, 8), (384,), (256,), _ANY),
        Grid((1, 4, 8), (2, 8), (1024,), (64, 2048), _ANY),
        Grid((128, 256), (1, 2, 4, 8), (128,), (128,), _ANY),
    ),
    "cuda": (
        Grid((1, 2, 4, 8, 16, 32, 64, 128, 256, 512), _BLOCK, (128,), (128,), _ANY),
        Grid((1, 8, 32, 128, 256), _BLOCK, (512,), (512,), _ANY),
        Grid((1, 8, 32, 64), (1, 4, 8), (2048,), (2048,), _ANY),
        Grid((1, 4, 16), (1, 4, 8), (8192,), (4096, 8192), _ANY),
    ),
}


class Band(Profiler):
    """Times chosen cells, as often as the time allows."""

    def samples(self, chosen: Sequence[Cell], seconds: float) -> list[dict[str, object]]:
        """Rows of the ``steps`` table; each repetition visits the cells in a new order."""
        order, rows, started = random.Random(0), [], time.monotonic()
        for repetition in range(-1, MOST_REPETITIONS):
            if repetition >= LEAST_REPETITIONS and time.monotonic() - started > seconds:
                break
            for cell in order.sample(list(chosen), len(chosen)):
                taken_s = self.seconds(self.prepare(cell))
                if repetition >= 0:
                    rows.append(self._sample(cell, repetition, taken_s))
        return rows


@torch.no_grad()
def measure_pair(
    target: Target,
    drafter: Drafter | None,
    bands: Sequence[Grid],
    seconds: float,
    shared: pd.DataFrame | None = None,
    kinds: Sequence[bool] = (False,),
) -> pd.DataFrame:
    """The ``steps`` table of a pair. ``shared``: rows of the target's own modes, taken over from
    another drafter's table instead of measured again. ``kinds``: with graphs, without, or both."""
    rows: list[dict[str, object]] = []
    gamma = drafter.gamma if drafter else 0
    for index, shapes in enumerate(bands):
        chosen = [c for c in cells(shapes, gamma) if c.tokens <= MOST_TOKENS or c.requests == 1]
        if shared is not None:
            chosen = [c for c in chosen if c.mode not in TARGET_MODES]
        for graphs in kinds:
            band = Band(target, drafter, shapes, graphs)
            mine = [c for c in chosen if band.captures(c)] if graphs else chosen
            rows += band.samples(mine, seconds / len(bands) / len(kinds))
            if index == 0 and shared is None:
                rows += [row | {"graph": graphs} for row in band._overhead()]
            del band
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    made = pd.DataFrame(rows)
    return made if shared is None else pd.concat([shared, made], ignore_index=True)


def without_graphs(steps: pd.DataFrame) -> pd.DataFrame:
    """What an eager engine does, as the live loop with ``--no-graphs``."""
    return steps[~steps["graph"].astype(bool)].reset_index(drop=True)


def as_served(steps: pd.DataFrame) -> pd.DataFrame:
    """What the live loop does: captured graphs where there are any, and eager cells only where no
    graph was captured."""
    graph = steps["graph"].astype(bool)
    largest = steps[graph].groupby("mode")[["tokens", "requests"]].max()
    hidden = steps["mode"].eq("overhead") & ("overhead" in largest.index)
    for mode, size in (("verify", "tokens"), ("prefill", "tokens"), ("draft", "requests")):
        hidden |= (steps["mode"] == mode) & (steps[size] <= largest[size].get(mode, 0))
    return steps[graph | ~hidden].reset_index(drop=True)


def write_steps(path: Path, steps: pd.DataFrame) -> None:
    """Parquet by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    steps.to_parquet(temporary)
    os.replace(temporary, path)


def write_latency_bundles(
    args: argparse.Namespace, name: str, drafter_name: str, gamma: int, steps: pd.DataFrame
) -> None:
    """Latency-only bundles ``name`` and, where graphs were captured, ``name-eager``."""
    kinds = {name: as_served(steps)}
    if steps["graph"].any():
        kinds[f"{name}-eager"] = without_graphs(steps)
    made_up = "random weights of this architecture; " if args.shape else ""
    for title, table in kinds.items():
        folder = args.out / title
        manifest = measured(
            folder, args.shape or args.target, drafter_name, args.device, gamma=gamma,
            command="python -m drafters.campaign_latency " + " ".join(args.command_line),
            seed=0, notes=f"latency only; {made_up}target passes shared by all its drafters",
        )  # fmt: skip
        write_bundle(folder, manifest, {"steps": table}, force=True)
        print(f"wrote {folder}: {len(table)} samples, latency only")


def run(args: argparse.Namespace) -> None:
    """Measure every drafter whose table is not there yet; one that cannot be loaded is told of at
    the end."""
    for name, _ in args.drafters if args.shape else ():
        check_place(args.out / name, force=True)
    dtype = getattr(torch, args.dtype)
    if args.shape:
        target = random_target(args.shape, dtype, args.device)
    else:
        target = load_target(args.target, dtype, args.device)
    shared: pd.DataFrame | None = None
    troubles = []
    for name, source in args.drafters:
        path = args.tables / f"{name}.parquet"
        if not path.exists():
            make = random_drafter if args.shape else drafters.load
            try:
                drafter = make(source, target)
            except UserError as error:
                troubles.append(str(error))
                continue
            seconds = args.seconds / len(args.drafters)
            kinds = (False, True) if wanted(args.graphs, args.device) else (False,)
            steps = measure_pair(target, drafter, BANDS[args.grid], seconds, shared, kinds)
            write_steps(path, steps)
            if args.shape:
                write_latency_bundles(args, name, source, drafter.gamma, steps)
            del drafter
        steps = read_frame(path)
        shared = steps[steps["mode"].isin(TARGET_MODES)]
        print(f"{name}: {len(steps)} samples")
    if troubles:
        raise UserError("; ".join(troubles))


def named_source(text: str) -> tuple[str, str]:
    """An argparse type: ``NAME=SOURCE`` as a pair."""
    name, _, source = text.partition("=")
    if not (name and source):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=SOURCE, as a=dspark-smollm2-135m")
    return name, source


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = Parser("python -m drafters.campaign_latency", __doc__.partition("\n\n")[2])
    add = made.add_argument
    add("--target", default="smollm2-135m", help="fetched name, local folder or hub id")
    add("--shape", default="", help="random target of this architecture instead, as qwen3-8b")
    add("--drafters", nargs="+", required=True, type=named_source,
        help="NAME=SOURCE; SOURCE of drafters.load, or family-layersL with --shape")  # fmt: skip
    add("--tables", type=Path, required=True, help="folder for one Parquet file per drafter")
    add("--out", type=Path, default=Path(), help="with --shape: folder for latency-only bundles")
    add("--grid", choices=tuple(BANDS), default="cpu", help="bands of shapes")
    add("--seconds", type=positive, default=120.0, help="time to repeat in, all drafters together")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision")
    add("--graphs", action=argparse.BooleanOptionalAction, default=None,
        help="also as captured CUDA graphs; on with CUDA")  # fmt: skip
    add("--device", default="cpu", help="torch device")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr; a finished drafter is not measured again."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.command_line = argv
    return exit_code(lambda: run(args), "stopped; finished drafters are kept")


if __name__ == "__main__":
    sys.exit(main())
