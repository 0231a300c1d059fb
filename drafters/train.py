"""Train a drafter on the target's own responses: ``python -m drafters.train --help``.

Random anchors of each sequence, packed; the family's loss (``drafters.objectives``); AdamW, warm-up
and cosine over a time budget. A checkpoint is written every few minutes by rename, so a run killed
at any moment resumes from the last one with the same command.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from drafters.checkpoint import save_drafter
from drafters.corpus import Supervisor, load_sequences
from drafters.errors import UserError, exit_code
from drafters.full_loss import full_loss
from drafters.objectives import (
    DEFAULT_WEIGHTS,
    Weights,
    batch_loss,
    make_objective,
    metrics,
    trained_depth,
)
from drafters.presets import build_drafter
from drafters.progress import progress
from drafters.target import load_target

WARMUP = 0.04


def learning_rate(peak: float, done: float) -> float:
    """Linear warm-up, then cosine to zero, in the fraction of the run that is done."""
    if done < WARMUP:
        return peak * (done + 1e-3) / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP))))


def loss_weights(args: argparse.Namespace) -> Weights:
    """The family's weights with those that the command line changes."""
    given = {"ce": args.ce, "l1": args.l1, "confidence": args.confidence}
    given["hidden"] = args.hidden
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(DEFAULT_WEIGHTS[args.drafter], **changes)


class Trainer:
    """State of one run; ``save`` and ``resume`` make it survive a kill."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.out = args, Path(args.out)
        self.dtype = getattr(torch, args.dtype)
        self.target = load_target(args.target, self.dtype, args.device)
        self.drafter = build_drafter(args.drafter, self.target, args).to(args.device)
        self.sequences = load_sequences(args.responses, args.longest)
        self.supervisor = Supervisor(self.target, self.drafter.feature_layers, args.cache_gb)
        learned = [p for p in self.drafter.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=args.lr, weight_decay=0.0)
        self.step, self.elapsed_s, self.curve = 0, 0.0, []
        depth = trained_depth(args.drafter, args.gamma, args.depth)
        self.objective = make_objective(
            args.drafter, depth, loss_weights(args), args.anchors, args.negatives
        )

    def resume(self) -> None:
        path = self.out / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.drafter.load_state_dict(state["drafter"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]
            self.curve = state["curve"]
            print(f"resuming at step {self.step}, {self.elapsed_s / 60:.1f} min", file=sys.stderr)

    def save(self) -> None:
        """Write weights, training state and curve, each by rename."""
        self.out.mkdir(parents=True, exist_ok=True)
        save_drafter(self.drafter, self.out)
        learned = {n: p for n, p in self.drafter.named_parameters() if p.requires_grad}
        state = {
            "drafter": learned,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "curve": self.curve,
        }
        temporary = self.out / "state.pt.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "state.pt")
        self._save_curve()

    def _save_curve(self) -> None:
        temporary = self.out / "curve.csv.tmp"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, fieldnames=list(self.curve[0]) if self.curve else ["step"]
            )
            writer.writeheader()
            writer.writerows(self.curve)
        temporary.replace(self.out / "curve.csv")

    def done(self) -> float:
        """Fraction of the run that has passed: of its steps if given, else of its minutes."""
        if self.args.steps:
            return self.step / self.args.steps
        return self.elapsed_s / (60 * self.args.minutes)

    def batches(self):  # type: ignore[no-untyped-def]
        """Endless batches of sequence indices, similar lengths together, reshuffled each epoch."""
        size = self.args.batch
        while True:
            order = torch.randperm(len(self.sequences)).tolist()
            for start in range(0, len(order), 16 * size):
                window = sorted(
                    order[start : start + 16 * size], key=lambda i: len(self.sequences[i].tokens)
                )
                chunks = [window[i : i + size] for i in range(0, len(window), size)]
                for i in torch.randperm(len(chunks)).tolist():
                    yield chunks[i]

    def train_step(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        """One update; loss and ``tally`` of the batch, left where they were computed."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args.lr, self.done())
        device = self.args.device.split(":")[0]
        with torch.autocast(device, self.dtype, self.dtype != torch.float32):
            loss, stats = self.loss(keys)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.detach(), stats

    def loss(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        """Over the whole vocabulary on an accelerator, over a part of it on a CPU."""
        sequences = [self.sequences[i] for i in keys]
        if self.args.device != "cpu" or not self.args.negatives:
            return full_loss(self.drafter, self.target, sequences, self.objective, self.done())
        told = self.supervisor(keys, sequences)
        return batch_loss(self.drafter, sequences, told, self.objective, self.done())

    def run(self) -> None:
        self.resume()
        saved = time.monotonic()
        window: list[tuple[Tensor, Tensor]] = []
        with progress() as bar:
            task = bar.add_task("training", total=1000)
            for keys in self.batches():
                if self.done() >= 1:
                    break
                began = time.monotonic()
                window.append(self.train_step(keys))
                if len(window) == self.args.log_every:
                    self._log(window, bar, task)
                    window = []
                self.elapsed_s += time.monotonic() - began
                bar.update(task, completed=int(1000 * self.done()))
                if not window and time.monotonic() - saved > 60 * self.args.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self._check([loss for loss, _ in window])
        self.save()

    def _check(self, losses: list[Tensor]) -> None:
        """Stop at a loss that is not finite, before anything of it is saved."""
        for before, loss in enumerate(map(float, losses), self.step - len(losses)):
            if not math.isfinite(loss):
                raise UserError(f"loss became {loss} at step {before}; last checkpoint kept")

    def _log(self, window: list[tuple[Tensor, Tensor]], bar, task) -> None:  # type: ignore[no-untyped-def]
        losses = torch.stack([loss for loss, _ in window]).cpu()
        self._check(list(losses))
        mean = metrics(torch.stack([stats for _, stats in window]).sum(0).cpu())
        row = {"loss": float(losses.mean()), **mean}
        minutes = round(self.elapsed_s / 60, 2)
        row = {k: round(v, 4) for k, v in row.items()}
        self.curve.append({"step": self.step, "minutes": minutes, **row})
        text = f"loss {row['loss']:.3f} tokens/round {row['tokens_per_round']:.3f}"
        bar.update(task, description=f"step {self.step} {text}")
        if bar.disable:
            print(json.dumps(self.curve[-1]), flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m drafters.train",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--drafter", choices=tuple(DEFAULT_WEIGHTS), default="dspark", help="family")
    add("--target", default="smollm2-135m", help="fetched name, folder or hub id")
    add("--responses", required=True, help="JSONL from python -m drafters.generate")
    add("--out", required=True, help="folder of the checkpoint; an earlier run there is resumed")
    add("--minutes", type=float, default=30.0, help="time budget of the optimisation, minutes")
    add("--steps", type=int, default=0, help="optimise so many steps instead; 0: use --minutes")
    add("--layers", type=int, default=2, help="draft layers")
    add("--rank", type=int, default=32, help="rank of the Markov head")
    add("--head", choices=("vanilla", "gated", "rnn"), default="vanilla", help="Markov head")
    add("--gamma", type=int, default=7, help="block size, draft tokens")
    add("--feature-layers", type=int, nargs="+", default=None, help="target layer ids (0-based)")
    add("--anchors", type=int, default=128, help="anchors per sequence and step")
    add("--batch", type=int, default=4, help="sequences per step")
    add("--negatives", type=int, default=512, help="CPU: sampled tokens beside the target's own;"
        " 0: the whole vocabulary, as on an accelerator")  # fmt: skip
    add("--longest", type=int, default=768, help="drop longer sequences, tokens")
    add("--lr", type=float, default=6e-4, help="peak learning rate")
    add("--ce", type=float, default=None, help="weight of the CE term (None: the family's)")
    add("--l1", type=float, default=None, help="weight of the L1 (TV) term (same)")
    add("--confidence", type=float, default=None, help="weight of the confidence term (same)")
    add("--hidden", type=float, default=None, help="weight of the hidden regression (same)")
    add("--depth", type=int, default=0, help="eagle3, mtp: steps unrolled; 0: gamma, 3")
    add("--cache-gb", type=float, default=8.0, help="memory for target features, GB")
    add("--save-minutes", type=float, default=3.0, help="time between checkpoints, minutes")
    add("--log-every", type=int, default=20, help="steps between rows of curve.csv")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="matmul precision")
    add("--device", default="cpu", help="torch device")
    add("--seed", type=int, default=0, help="seed of initialisation and anchors")
    return made


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: Trainer(parser().parse_args(argv)).run(),
        "stopped; the same command resumes from the last checkpoint",
    )


if __name__ == "__main__":
    sys.exit(main())
