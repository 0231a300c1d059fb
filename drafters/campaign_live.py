"""Live runs under many policies and loads with the models loaded once:
``python -m drafters.campaign_live --help``.

Closed loops at each concurrency at temperature 0, where a simulator that replays the drafter's
traces takes the same rounds one for one; then open loops at temperature 1 under arrival files. A
run is a folder as ``drafters.decode`` writes it; those that are there are not run again. Arrival
files that were not given are made from what the machine does in a closed loop: as steady as Poisson
at 60 % of its rate, and the same rate in bursts (gamma gaps, coefficient of variation 2.5).
"""

from __future__ import annotations

import argparse
import copy
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import drafters
from drafters import decode
from drafters.base import Drafter
from drafters.campaign_warm import warm
from drafters.chat import encode_chat, stop_tokens
from drafters.devices import usable
from drafters.engine import Engine, EngineConfig, make_runner
from drafters.errors import UserError, exit_code
from drafters.generate import spread
from drafters.graphs import wanted
from drafters.limits import check_live
from drafters.policy_choice import Choice, choose, named
from drafters.prompts import Prompt, load_prompts
from drafters.runner import Runner
from drafters.target import Target, load_target, load_tokenizer
from drafters.traffic import Arrival, make_requests, read_arrivals
from gpu_traces.bundle import read_bundle
from gpu_traces.commands import Parser, positive, whole

POLICIES = ("none", "fixed-k", "fixed-k:k=3", "threshold", "confidence", "vllm", "goodput")
LOAD = 0.6  # of the closed loop's request rate
BURST_CV = 2.5
MADE = ("steady", "bursty")
REHEARSED = 24  # requests at most


@dataclass(frozen=True)
class Cell:
    """One run: a closed loop, or an open one under an arrival file."""

    policy: str
    concurrency: int
    arrivals: Path | None = None

    @property
    def name(self) -> str:
        policy = "".join(c if c.isalnum() or c in "-." else "-" for c in self.policy)
        return f"{policy}-{self.arrivals.stem if self.arrivals else f'c{self.concurrency}'}"


class Live:
    """Models, prompts and policies, ready for cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        args.device = usable(args.device)
        self.args = args
        self.target: Target = load_target(args.target, getattr(torch, args.dtype), args.device)
        self.drafter = drafters.load(args.drafter, self.target)
        asked = spread(load_prompts(args.prompts, "eval"), 0)
        self.prompts = [replace(prompt, temperature=None, max_tokens=None) for prompt in asked]
        tokenizer = load_tokenizer(args.target)
        self.stops = stop_tokens(args.target, tokenizer)
        encoded = [encode_chat(tokenizer, prompt.text) for prompt in self.prompts]
        fits = [i for i, e in enumerate(encoded) if len(e) + args.max_new <= args.max_context]
        self.prompts = [self.prompts[i] for i in fits]
        self.encoded = [encoded[i] for i in fits]
        self.choices: dict[str, Choice] = {}
        self.graphs = wanted(args.graphs, args.device)
        self._rehearsed: set[tuple[str, float]] = set()
        self._runners: dict[tuple[bool, int], Runner] = {}

    def choice(self, policy: str) -> Choice:
        """A fresh policy with the beliefs that the drafter's bundle gives it."""
        if policy not in self.choices:
            bundle = str(self.args.bundle)
            warm([policy], bundle)
            self.choices[policy] = choose(policy, self.target, self.drafter, bundle, self.graphs)
        return copy.deepcopy(self.choices[policy])

    def run(self, cell: Cell) -> float:
        """Run a cell and write its folder; returns completed requests per second."""
        choice, temperature = self.choice(cell.policy), 1.0 if cell.arrivals else 0.0
        self._rehearse(cell, temperature)
        engine = self._engine(choice, cell.concurrency)
        for request in make_requests(
            *self._prompts(cell), choice.domains, self.args.max_new, temperature
        ):
            engine.submit(request)
        self._serve(engine)
        done = decode.summarise(engine, engine.now_s())
        self._write(cell, engine, choice)
        print(f"{cell.name}: {decode.table(done, [])}", flush=True)
        return float(done["requests_completed"] / done["wall_s"])

    def _engine(self, choice: Choice, concurrency: int) -> Engine:
        drafter = None if choice.policy.draft_lengths == () else self.drafter
        runner = self._runner(drafter, drafter.gamma if drafter else choice.cost.gamma)
        return Engine(
            self.target, drafter, choice.policy, choice.cost, self._config(concurrency),
            self.stops, choice.calibration, runner=runner,
        )  # fmt: skip

    def _rehearse(self, cell: Cell, temperature: float) -> None:
        """Decode a little before the first run of a policy at a temperature: compilers then have
        nothing left to do while time is measured."""
        if (cell.policy, temperature) in self._rehearsed:
            return
        self._rehearsed.add((cell.policy, temperature))
        choice = self.choice(cell.policy)
        engine = self._engine(choice, cell.concurrency)
        few = slice(0, min(REHEARSED, cell.concurrency))
        given = self.prompts[few], self.encoded[few], []
        for i, request in enumerate(make_requests(*given, choice.domains, 4, temperature)):
            engine.submit(replace(request, max_new=3 + i % 4))
        engine.start()
        while engine.busy:
            engine.step()

    def _config(self, concurrency: int) -> EngineConfig:
        return EngineConfig(
            max_requests=concurrency,
            max_step_tokens=max(2048, 10 * concurrency),
            max_context=self.args.max_context,
            graphs=self.graphs,
            seed=self.args.seed,
        )

    def _runner(self, drafter: Drafter | None, gamma: int) -> Runner | None:
        """With graphs, one for all runs at any concurrency, so that they are captured once."""
        if not self.graphs:
            return None
        key = drafter is None, gamma
        if key not in self._runners:
            config = self._config(max(self.args.concurrency))
            self._runners[key] = make_runner(self.target, drafter, gamma, config)
        return self._runners[key]

    def _serve(self, engine: Engine) -> None:
        """Until all is served or the run's time is over; a signal leaves the run unwritten."""
        stop, over = decode.Stop(), threading.Event()

        def end() -> None:
            over.set()
            stop.asked = True

        limit = threading.Timer(self.args.seconds_per_run, end)
        with stop.on_signals():
            engine.start()
            limit.start()
            decode.serve(engine, stop)
        limit.cancel()
        if stop.asked and not over.is_set():
            raise KeyboardInterrupt

    def _prompts(
        self, cell: Cell
    ) -> tuple[Sequence[Prompt], Sequence[Sequence[int]], Sequence[Arrival]]:
        if cell.arrivals:
            return self.prompts, self.encoded, read_arrivals(cell.arrivals)
        count = min(len(self.prompts), max(self.args.least, 2 * cell.concurrency))
        return self.prompts[:count], self.encoded[:count], []

    def _write(self, cell: Cell, engine: Engine, choice: Choice) -> None:
        told = {
            "out": self.args.out / cell.name, "policy": cell.policy, "force": True,
            "drafter": "" if cell.policy == "none" else self.args.drafter,
        }  # fmt: skip
        decode.write(argparse.Namespace(**{**vars(self.args), **told}), engine, choice.domains, [])


def make_arrivals(folder: Path, rate_per_s: float, count: int, seed: int = 0) -> list[Path]:
    """Two arrival files of the same mean rate, unless they are there; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(seed), []
    for name, cv in zip(MADE, (1.0, BURST_CV), strict=True):
        gaps = rng.gamma(1 / cv**2, cv**2 / rate_per_s, count)
        paths.append(folder / f"{name}.csv")
        if not paths[-1].exists():
            temporary = paths[-1].with_suffix(".tmp")
            frame = pd.DataFrame({"arrival_s": (np.cumsum(gaps) - gaps[0]).round(6)})
            frame.to_csv(temporary, index=False)
            temporary.replace(paths[-1])
    return paths


def _rate(folder: Path) -> float:
    """Completed requests per second of a closed loop that was written."""
    requests = read_bundle(folder).live_requests
    if requests is None or requests["e2e_s"].isna().all():
        raise UserError(f"{folder}: no request was completed; allow more --seconds-per-run")
    ends_s = requests["arrival_s"] + requests["e2e_s"]
    return float(ends_s.notna().sum() / ends_s.max())


def _check(args: argparse.Namespace) -> None:
    """UserError for what would fail, or be left out, after hours."""
    gamma = read_bundle(args.bundle).manifest.gamma
    for policy in args.policies:
        check_live(named(policy, gamma), sampled=True)
    for path in args.arrivals or ():
        read_arrivals(path)
    stems = [path.stem for path in args.arrivals or ()]
    if len(set(stems)) < len(stems):
        raise UserError(f"arrival files {', '.join(stems)} name the runs; give each its own name")


def run(args: argparse.Namespace) -> None:
    """All cells, closed loops first; the time left is looked at before each."""
    started, live = time.monotonic(), None
    _check(args)
    closed = [Cell(p, c) for c in args.concurrency for p in args.policies]
    middle = sorted(args.concurrency)[len(args.concurrency) // 2]
    reference = Cell(args.policies[1] if len(args.policies) > 1 else args.policies[0], middle)
    closed.sort(key=lambda cell: cell != reference)  # arrival rates come from this one
    skipped = 0

    def attempt(cells: Sequence[Cell]) -> None:
        nonlocal live, skipped
        for cell in cells:
            if (args.out / cell.name / "manifest.json").exists():
                continue
            if time.monotonic() - started > args.seconds:
                skipped += 1
                continue
            live = live or Live(args)
            live.run(cell)

    attempt(closed[:1])
    files = args.arrivals or make_arrivals(
        args.out / "arrivals", LOAD * _rate(args.out / reference.name), args.arrival_count
    )
    attempt([Cell(p, middle, path) for path in files for p in args.policies])
    attempt(closed[1:])
    print(f"{skipped} runs left out when the time was spent" if skipped else "all runs done")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = Parser("python -m drafters.campaign_live", __doc__.partition("\n\n")[2])
    add = made.add_argument
    add("--target", default="smollm2-135m", help="fetched name, local folder or hub id")
    add("--drafter", required=True, help="checkpoint folder, shipped name or 'ngram'")
    add("--bundle", required=True, help="trace bundle: cost table and calibration")
    add("--prompts", nargs="+", required=True, help="JSONL files or folders")
    add("--out", type=Path, required=True, help="folder of the runs")
    add("--policies", nargs="+", default=list(POLICIES), help="name:parameter=value;...")
    add(
        "--concurrency", type=whole(1), nargs="+", default=[1, 8, 32, 128, 256], help="closed loops"
    )
    add("--arrivals", type=Path, nargs="*", help="open loops: CSV or Parquet with arrival_s")
    add("--arrival-count", type=whole(1), default=200, help="requests of an arrival file made here")
    add("--least", type=whole(1), default=8, help="requests of a closed loop at least")
    add("--max-new", type=whole(1), default=128, help="output tokens of a request at most")
    add("--max-context", type=whole(2), default=640, help="tokens of a request at most")
    add("--seconds", type=positive, default=1e9, help="start no run after so long")
    add("--seconds-per-run", type=positive, default=60.0, help="end a run after so long")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision")
    add("--graphs", action=argparse.BooleanOptionalAction, default=None,
        help="run steps as captured CUDA graphs; on with CUDA")  # fmt: skip
    add("--device", default="cpu", help="torch device")
    add("--seed", type=whole(0), default=0, help="seed of every draw")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr; runs that are there are kept."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.command_line = ["python -m drafters.campaign_live", *argv]
    return exit_code(lambda: run(args), "stopped; the same command goes on with the next run")


if __name__ == "__main__":
    sys.exit(main())
