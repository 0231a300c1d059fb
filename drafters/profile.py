"""Measure step latencies over a grid of shapes: ``python -m drafters.profile --out BUNDLE``.

Every cell runs the live loop's own code (``drafters.runner``), with captured graphs where it has
them, on made-up sequences, because time does not depend on what the tokens are. All cells are
visited once per repetition, in a new order, so that a machine that slows down or speeds up does so
for all of them; the first round warms up and is not kept. ``--shape`` measures random weights of a
real architecture: latency only.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from drafters.base import Drafter, Proposal
from drafters.devices import usable
from drafters.engine import Engine, EngineConfig
from drafters.errors import UserError, exit_code
from drafters.graphs import next_size, wanted
from drafters.grids import GRIDS, Cell, Grid, cells, grid, lengths_of
from drafters.limits import in_memory
from drafters.paging import BlockPool
from drafters.progress import progress
from drafters.provenance import measured
from drafters.request import Request, Running
from drafters.runner import Block, Runner
from drafters.target import Target, load_target
from gpu_traces.bundle import check_place, write_bundle
from gpu_traces.commands import Parser, whole
from gpu_traces.fit import fit_latency
from gpu_traces.schema import Origin
from policies.cost import no_cost
from policies.registry import create

COMMITTED = 3  # tokens that the drafter takes in before it drafts, a typical round's gain
OVERHEAD_STEPS = 12
TARGET = "smollm2-135m"


class Profiler:
    """Runs cells on one pair of models, as captured graphs or eagerly."""

    def __init__(
        self, target: Target, drafter: Drafter | None, shapes: Grid, graphs: bool = False
    ) -> None:
        self.target, self.drafter, self.shapes, self.graphs = target, drafter, shapes, graphs
        self.gamma = drafter.gamma if drafter else 0
        longest = max(*shapes.contexts, *shapes.prefill)
        slots, room = max(shapes.requests), longest + self.gamma + 2
        self.pool = self._pool(shapes)
        paged = self.pool if graphs else None
        self.runner = Runner(target, drafter, self.gamma, slots, room, paged, graphs)
        width = len(self.runner.feature_layers) * target.shape.hidden_size
        self.features = target.norm.weight.new_zeros(longest, width)
        self._made = 0

    def _pool(self, shapes: Grid) -> BlockPool:
        """Blocks for the largest cell."""
        pool = BlockPool(0, 16)
        wanted = [cell.requests * self._blocks(pool, cell) for cell in cells(shapes, self.gamma)]
        return BlockPool(max(wanted), pool.block_tokens)

    def _blocks(self, pool: BlockPool, cell: Cell) -> int:
        """Blocks of each request of a cell."""
        return pool.needed(max(cell.context_tokens, cell.tokens // cell.requests) + self.gamma + 2)

    def captures(self, cell: Cell) -> bool:
        """Whether a cell runs as a captured graph."""
        if cell.mode == "draft":
            return self.runner.drafts.captures
        passes = cell.mode in ("verify", "prefill")
        return self.graphs and passes and next_size(self.runner.sizes, cell.tokens) > 0

    @torch.no_grad()
    def run(self) -> pd.DataFrame:
        """The ``steps`` table: every repetition of every cell, and the overhead of real steps."""
        shapes, order = cells(self.shapes, self.gamma), random.Random(0)
        samples = []
        with progress() as bar:
            task = bar.add_task("cells", total=len(shapes) * (self.shapes.repetitions + 1))
            for repetition in range(-1, self.shapes.repetitions):
                for cell in order.sample(shapes, len(shapes)):
                    seconds = self.seconds(self.prepare(cell))
                    if repetition >= 0:
                        samples.append(self._sample(cell, repetition, seconds))
                    bar.advance(task)
        return pd.DataFrame(samples + self._overhead())

    def _sample(self, cell: Cell, repetition: int, seconds: float) -> dict[str, object]:
        """A row of the table; a captured pass is one over the tokens that it is padded to."""
        captured = self.captures(cell)
        padded = captured and cell.mode != "draft"
        return vars(cell) | {
            "tokens": next_size(self.runner.sizes, cell.tokens) if padded else cell.tokens,
            "graph": captured,
            "repetition": repetition,
            "microseconds": 1e6 * seconds,
        }

    def seconds(self, work: Callable[[], object]) -> float:
        """What ``work`` takes on an idle device."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize()

    def prepare(self, cell: Cell) -> Callable[[], object]:
        """A cell's pass or draft, ready to be timed."""
        rows = [self._row(cell, slot) for slot in range(cell.requests)]
        if cell.mode == "prefill":
            return lambda: self.runner.verify(rows, [cell.tokens], None, [])
        if cell.mode == "refill":
            rows[0].cached, rows[0].pending = cell.tokens, [self.features[: cell.tokens]]
            return lambda: self.runner.drafts.extend(rows)
        if cell.mode == "draft":
            for row in rows:
                row.extended = max(0, cell.context_tokens - COMMITTED)
                count = row.cached - row.extended
                if self.runner.drafts.captures:
                    row.kept = 0, count
                else:
                    row.pending = [self.features[:count]]
            return lambda: self.runner.drafts.begin(rows).block()
        lengths, block = lengths_of(cell), None
        if max(lengths):
            tokens = torch.zeros(cell.requests, max(lengths), dtype=torch.long)
            raw = np.zeros(tokens.shape)
            block = Block(tokens.tolist(), raw, Proposal(tokens.to(self.runner.device), None, None))
        return lambda: self.runner.verify(rows, [], block, lengths)

    def _row(self, cell: Cell, slot: int) -> Running:
        prefills = cell.mode in ("prefill", "refill")
        prompt = (1,) * (cell.tokens if prefills else cell.context_tokens)
        row = Running(Request(request_id=0, name="", prompt=prompt, max_new=1), list(prompt))
        if not prefills:
            row.tokens.append(1)
            row.cached = len(prompt)
        row.drafted = cell.draft_length or self.gamma
        each = self._blocks(self.pool, cell)
        row.slot, row.number = slot, self._made
        row.blocks = list(range(slot * each, (slot + 1) * each))
        self._made += 1
        return row

    def _overhead(self) -> list[dict[str, object]]:
        """Time of real steps outside drafting and the target pass, at the fewest and most
        requests."""
        samples = []
        some = self.shapes.requests
        for requests in sorted({some[0], some[len(some) // 2]}):
            log = self._live_steps(requests)
            for i in range(2, len(log["step"])):
                cell = Cell("overhead", requests, log["tokens_planned"][i], 0)
                seconds = 1e-6 * (log["plan_us"][i] + log["overhead_us"][i])
                samples.append(self._sample(cell, i - 2, seconds))
        return samples

    def _live_steps(self, requests: int) -> dict[str, list[float]]:
        policy = create("fixed-k" if self.gamma else "none", self.gamma or 1)
        cost = no_cost(max(self.gamma, 1))
        config = EngineConfig(
            max_requests=requests, max_context=16 + 8 * OVERHEAD_STEPS, graphs=self.graphs
        )
        engine = Engine(self.target, self.drafter, policy, cost, config)
        for i in range(requests):
            new = config.max_context - 8
            engine.submit(Request(request_id=i, name=str(i), prompt=(1,) * 8, max_new=new))
        engine.start()
        while engine.busy and len(engine.log) < OVERHEAD_STEPS:
            engine.step()
        return engine.log.columns


def measure(
    target: Target, drafter: Drafter | None, shapes: Grid, graphs: bool = False
) -> pd.DataFrame:
    """The ``steps`` table (``gpu_traces.schema``) of these models on this machine."""
    with in_memory(
        f"{max(shapes.requests)} requests, contexts of {max(shapes.contexts)} and prompts of"
        f" {max(shapes.prefill)} tokens do not fit into memory beside the models; measure a"
        " smaller grid"
    ):
        return Profiler(target, drafter, shapes, graphs).run()


def summary(steps: pd.DataFrame, gamma: int) -> str:
    """Medians per shape, and how well a latency model fits them."""
    shape = ["mode", "requests", "tokens", "context_tokens", "draft_length", "ragged"]
    table = steps.groupby(shape)["microseconds"].median().div(1e3).round(2).rename("median ms")
    _, report = fit_latency(steps, origin=Origin("measured", "this machine"), gamma=gamma)
    return f"{table.reset_index().to_string(index=False)}\nfit: {report}"


def load_models(args: argparse.Namespace) -> tuple[Target, Drafter | None]:
    """The models that the options name, loaded or of random weights."""
    import drafters
    from drafters.shapes import random_drafter, random_target

    _check_names(args)
    dtype = getattr(torch, args.dtype)
    with in_memory(f"the models do not fit into the memory of {args.device}; give smaller ones"):
        if args.shape:
            target = random_target(args.shape, dtype, args.device)
        else:
            target = load_target(args.target or TARGET, dtype, args.device)
        if args.drafter_shape:
            return target, random_drafter(args.drafter_shape, target)
        return target, drafters.load(args.drafter, target) if args.drafter else None


def _check_names(args: argparse.Namespace) -> None:
    """UserError where two options name one model, or a drafter shape is none."""
    from drafters.shapes import parse_shape

    for option, shape, model, name in (
        ("--shape", args.shape, "target", args.target),
        ("--drafter-shape", args.drafter_shape, "drafter", args.drafter),
    ):
        if shape and name:
            raise UserError(
                f"{option} {shape} and --{model} {name} both name the {model}; give one of them"
            )
    if args.drafter_shape:
        parse_shape(args.drafter_shape)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = Parser("python -m drafters.profile", __doc__)
    add = made.add_argument
    add("--target", default="", help=f"fetched name, local folder or hub id; empty: {TARGET}")
    add("--drafter", default="", help="drafter folder, shipped name or 'ngram'; empty: none")
    add("--shape", default="", help="random target of this architecture, as qwen3-8b")
    add("--drafter-shape", default="", help="random drafter, as dspark-5L (family, layers)")
    add("--grid", choices=tuple(GRIDS), default="cpu", help="shapes to measure")
    add("--repetitions", type=whole(0), default=0, help="kept rounds; 0: the grid's own")
    add("--out", type=Path, required=True, help="bundle folder to write")
    add("--force", action="store_true", help="overwrite --out")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision")
    add("--device", default="cpu", help="torch device")
    add("--graphs", action=argparse.BooleanOptionalAction, default=None,
        help="passes and drafts as captured CUDA graphs; on with CUDA")  # fmt: skip
    add("--threads", type=whole(0), default=0, help="CPU threads; 0: torch's choice")
    add("--hardware", default="", help="machine name in the manifest; empty: detected")
    return made


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    check_place(args.out, args.force)
    args.device = usable(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    target, drafter = load_models(args)
    shapes = grid(args.grid)
    if args.repetitions:
        shapes = replace(shapes, repetitions=args.repetitions)
    steps = measure(target, drafter, shapes, wanted(args.graphs, args.device))
    gamma = drafter.gamma if drafter else 0
    print(summary(steps, gamma))
    made_up = ": random weights of this architecture" if args.shape or args.drafter_shape else ""
    manifest = measured(
        args.out,
        args.shape or args.target or TARGET,
        args.drafter_shape or args.drafter,
        args.device,
        args.hardware,
        gamma=gamma,
        command="python -m drafters.profile " + " ".join(args.command_line),
        seed=0,
        notes=f"latency only{made_up}",
    )
    write_bundle(args.out, manifest, {"steps": steps}, force=args.force)
    print(f"wrote {args.out}: {len(steps)} samples, latency only")


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 after one line on stderr, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.command_line = argv
    return exit_code(lambda: run(args), "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
