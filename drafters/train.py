"""Train drafters on the target's own responses: ``python -m drafters.train --help``.

Random anchors of each sequence, packed; the family's loss (``drafters.objectives``); AdamW or Muon,
warm-up and cosine over a time budget. Several drafters learn from the same batches, so that the
target runs once for all of them and they compare. A checkpoint is written every few minutes by
rename, so a run killed at any moment resumes from the last one with the same command, on the
batches and anchors it would have had: both depend on the seed and the step alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drafters import generate
from drafters.bigrams import Bigrams, ask_bigrams
from drafters.corpus import Sequence, Supervisor, load_sequences
from drafters.errors import UserError, check_folder, exit_code
from drafters.full_loss import ask, full_loss
from drafters.learner import (
    SIZES,
    STATE,
    Learner,
    check_loss_options,
    folder_name,
    learner_name,
    told,
)
from drafters.losses import DECAY
from drafters.objectives import batch_loss
from drafters.optimizers import OPTIMIZERS
from drafters.progress import progress
from drafters.target import load_target
from gpu_traces.commands import Parser, at_least_zero, positive, whole

WARMUP = 0.04


def learning_rate(peak: float, done: float) -> float:
    """Linear warm-up, then cosine to zero, in the fraction of the run that is done."""
    if done < WARMUP:
        return peak * (done + 1e-3) / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP))))


class Trainer:
    """One run: the target, its responses, and the drafters that learn from them."""

    def __init__(self, args: argparse.Namespace) -> None:
        folders = _folders(args)
        _check(args, folders)
        torch.manual_seed(args.seed)
        self.args = args
        args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
        args.decay = args.decay or DECAY
        self.dtype = getattr(torch, args.dtype)
        responses = args.responses or _generated(args, folders)
        self.target = load_target(args.target, self.dtype, args.device)
        self.sequences = load_sequences(responses, args.longest, self.target.vocab_size)
        bigrams = self._bigrams(folders)
        self.learners = [
            Learner(name, self.target, args, folder, self.sequences, bigrams)
            for name, folder in zip(args.drafter, folders, strict=True)
        ]
        layers = {i for learner in self.learners for i in learner.drafter.feature_layers}
        self.layers = tuple(sorted(layers))
        self.supervisor = Supervisor(self.target, self.layers, args.cache_gb)
        self.step, self.elapsed_s = 0, 0.0

    def _bigrams(self, folders: list[Path]) -> Bigrams | None:
        """For fresh Markov heads; None where there are none."""
        fresh = not self.args.start and not all((f / STATE).exists() for f in folders)
        if fresh and any(name.startswith("dspark") for name in self.args.drafter):
            return ask_bigrams(self.target, self.sequences)
        return None

    def resume(self) -> None:
        """Go on from the checkpoints; a kill between two of them leaves some a little ahead, which
        then wait for the others."""
        found = [learner.resume() for learner in self.learners]
        self.step, self.elapsed_s = min(found)
        if self.step:
            print(f"resuming at step {self.step}, {self.elapsed_s / 60:.1f} min", file=sys.stderr)

    def save(self) -> None:
        for learner in self.learners:
            if learner.step == self.step:
                learner.save(self.elapsed_s)

    def done(self) -> float:
        """Fraction of the run that has passed: of its steps if given, else of its minutes."""
        if self.args.steps:
            return self.step / self.args.steps
        return self.elapsed_s / (60 * self.args.minutes)

    def batches(self) -> Iterator[list[int]]:
        """Endless batches of sequence indices, similar lengths together, reshuffled each epoch; the
        same for the same seed."""
        size, draw = self.args.batch, torch.Generator().manual_seed(self.args.seed)
        while True:
            order = torch.randperm(len(self.sequences), generator=draw).tolist()
            for start in range(0, len(order), 16 * size):
                window = sorted(
                    order[start : start + 16 * size], key=lambda i: len(self.sequences[i].tokens)
                )
                chunks = [window[i : i + size] for i in range(0, len(window), size)]
                for i in torch.randperm(len(chunks), generator=draw).tolist():
                    yield chunks[i]

    def train_step(self, keys: list[int]) -> None:
        """Every drafter's update on one batch, with the same anchors."""
        rate = learning_rate(self.args.lr, self.done())
        for learner, loss, stats in self.losses(keys):
            learner.update(loss, stats, rate)
        self.step += 1

    def losses(self, keys: list[int]) -> Iterator[tuple[Learner, Tensor, Tensor]]:
        """Loss and ``tally`` of each drafter: over the whole vocabulary on an accelerator, over a
        part of it on a CPU."""
        sequences = [self.sequences[i] for i in keys]
        done = 1.0 if self.args.start else self.done()  # past the phases that help a fresh drafter
        if self.args.device != "cpu" or not self.args.negatives:
            yield from self._full_losses(sequences, done)
            return
        told = self.supervisor(keys, sequences)
        for learner in self._due():
            wanted = learner.drafter.feature_layers
            mine = [replace(t, features=columns(t.features, self.layers, wanted)) for t in told]
            with self._precision():
                made = batch_loss(learner.drafter, sequences, mine, learner.objective, done)
            yield learner, *made

    def _full_losses(
        self, sequences: list[Sequence], done: float
    ) -> Iterator[tuple[Learner, Tensor, Tensor]]:
        told = ask(self.target, sequences, self.layers)
        for learner in self._due():
            assert told.features is not None
            features = columns(told.features, self.layers, learner.drafter.feature_layers)
            mine = replace(told, features=features)
            with self._precision():
                made = full_loss(learner.drafter, mine, sequences, learner.objective, done)
            yield learner, *made

    def _due(self) -> Iterator[Learner]:
        """Drafters that have not taken this step, each with the step's own random numbers."""
        for learner in self.learners:
            if learner.step == self.step:
                mixed = np.random.SeedSequence((self.args.seed, self.step)).generate_state(1)
                torch.manual_seed(int(mixed[0]))
                yield learner

    def _precision(self) -> torch.autocast:
        device = self.args.device.split(":")[0]
        return torch.autocast(device, self.dtype, self.dtype != torch.float32)

    def run(self) -> None:
        self.resume()
        saved = time.monotonic()
        with progress() as bar:
            total = self.args.steps or 1000
            task = bar.add_task("training", total=total)
            for keys in islice(self.batches(), self.step, None):
                if self.done() >= 1:
                    break
                began = time.monotonic()
                self.train_step(keys)
                logged = self.step % self.args.log_every == 0
                if logged:
                    self._log(bar, task)
                self.elapsed_s += time.monotonic() - began
                bar.update(task, completed=int(total * self.done()))
                if logged and time.monotonic() - saved > 60 * self.args.save_minutes:
                    self.save()
                    saved = time.monotonic()
            if self.step % self.args.log_every:
                self._log(bar, task)
        self.save()

    def _log(self, bar, task) -> None:  # type: ignore[no-untyped-def]
        rows = {
            learner.name: learner.log(self.elapsed_s / 60)
            for learner in self.learners
            if learner.window
        }
        bar.update(task, description=told(self.step, rows))
        if bar.disable:
            print(json.dumps(rows), flush=True)


def _folders(args: argparse.Namespace) -> list[Path]:
    """Where each drafter is written: one alone into ``--out``, several into folders in it."""
    out = Path(args.out)
    many = len(args.drafter) > 1
    return [out / folder_name(name) if many else out for name in args.drafter]


def _generated(args: argparse.Namespace, folders: list[Path]) -> str:
    """The file of the target's responses to ``--prompts``, made here unless training has begun."""
    path = str(Path(args.out) / "responses.jsonl")
    if any((folder / STATE).exists() for folder in folders):
        if not Path(path).exists():
            raise UserError(
                f"{path}, from which {args.out} has learned, is gone; give another --out"
            )
    else:
        wanted = ["--target", args.target, "--prompts", *args.prompts, "--out", path]
        wanted += ["--seconds", str(60 * args.minutes), "--dtype", args.dtype]
        wanted += ["--device", args.device, "--seed", str(args.seed)]
        generate.generate(generate.parser().parse_args(wanted))
    return path


def _check(args: argparse.Namespace, folders: list[Path]) -> None:
    """UserError for what would only fail after a first while of training."""
    twice = {name for name in args.drafter if args.drafter.count(name) > 1}
    if twice:
        raise UserError(f"--drafter names {', '.join(sorted(twice))} twice; each has one folder")
    sized = [name for name in args.drafter if ":" in name]
    if args.start and sized:
        raise UserError(
            f"--drafter {sized[0]}: a drafter from --start keeps its sizes; leave them out"
        )
    check_loss_options(args)
    for folder in folders:
        check_folder(folder)


def columns(features: Tensor, given: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Features [.., m * d] of the ``wanted`` layers out of those of the ``given``."""
    if given == wanted:
        return features
    parts = features.unflatten(-1, (len(given), -1))
    return torch.cat([parts[..., given.index(i), :] for i in wanted], -1)


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.train", __doc__)
    add = made.add_argument
    add("--drafter", nargs="+", type=learner_name, default=["dspark"], metavar="DRAFTER",
        help=f"one or several, which then learn from the same batches: {', '.join(SIZES)}; with"
        " sizes of its own 'dspark:layers=4;rank=64'")  # fmt: skip
    add("--target", default="smollm2-135m", help="fetched name, folder or hub id")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--responses", help="JSONL from python -m drafters.generate")
    source.add_argument("--prompts", nargs="+", help="files or folders of prompts instead: the"
        " target answers their training half first, for at most --minutes")  # fmt: skip
    add("--out", required=True, help="folder of the checkpoint, of several one folder each in it;"
        " an earlier run there is resumed")  # fmt: skip
    add("--start", default=None, help="a drafter to go on from (folder, shipped name or hub id) in"
        " place of a fresh one; its sizes hold")  # fmt: skip
    add("--minutes", type=positive, default=30.0, help="time budget, minutes")
    add("--steps", type=whole(0), default=0, help="so many steps instead; 0: --minutes")
    add("--layers", type=whole(1), default=2, help="draft layers")
    add("--intermediate", type=whole(0), default=0, help="block families: width of the draft"
        " layers' feed-forward halves; 0: the target's")  # fmt: skip
    add("--rank", type=whole(1), default=32, help="rank of the Markov head")
    add("--gamma", type=whole(1), default=7, help="block size, draft tokens")
    add("--feature-layers", type=int, nargs="+", default=None,
        help="target layer ids (0-based); mtp reads the last alone")  # fmt: skip
    add("--anchors", type=whole(1), default=128, help="anchors per sequence and step")
    add("--batch", type=whole(1), default=4, help="sequences per step")
    add("--negatives", type=whole(0), default=512, help="CPU: sampled tokens beside the text;"
        " 0: the whole vocabulary, as on an accelerator")  # fmt: skip
    add("--longest", type=whole(1), default=768, help="drop longer sequences, tokens")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="muon: for the matrices of layers"
        " (torch 2.9 or later), AdamW for the rest")  # fmt: skip
    add("--lr", type=positive, default=6e-4, help="peak learning rate")
    add("--ce", type=at_least_zero, default=None, help="weight of the CE term (None: the family's)")
    add("--l1", type=at_least_zero, default=None, help="weight of the L1 (TV) term (same)")
    add("--confidence", type=at_least_zero, default=None, help="dspark: weight of the BCE term"
        " (same)")  # fmt: skip
    add("--decay", type=positive, default=None, help="block families: draft position j = 0, 1, ..."
        f" weighs exp(-j / DECAY) (None: {DECAY:g})")  # fmt: skip
    add("--hidden", type=at_least_zero, default=None, help="weight of the hidden regression (same)")
    add("--depth", type=whole(0), default=0, help="eagle3, mtp: steps unrolled, at most gamma;"
        " 0: gamma, 3")  # fmt: skip
    add("--cache-gb", type=at_least_zero, default=8.0, help="memory for target features, GB")
    add("--save-minutes", type=positive, default=3.0, help="time between checkpoints, minutes")
    add("--log-every", type=whole(1), default=20, help="steps between rows of curve.csv")
    add("--dtype", choices=("float32", "bfloat16"), default=None,
        help="matmul precision (None: float32 on a CPU, else bfloat16)")  # fmt: skip
    add("--device", default="cpu", help="torch device")
    add("--seed", type=whole(0), default=0, help="seed of initialisation, batches"
        " and anchors")  # fmt: skip
    return made


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: Trainer(parser().parse_args(argv)).run(),
        "stopped; the same command resumes from the last checkpoint, if one was written",
    )


if __name__ == "__main__":
    sys.exit(main())
