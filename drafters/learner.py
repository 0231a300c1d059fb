"""One drafter while it is trained: loss, optimiser, curve and checkpoint."""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drafters.bigrams import Bigrams
from drafters.checkpoint import CONFIG, WEIGHTS, storing, write_drafter
from drafters.corpus import Sequence as Text
from drafters.errors import UserError
from drafters.module import DraftModule
from drafters.objectives import (
    DEFAULT_WEIGHTS,
    STEP_DECAY,
    USERS,
    Weights,
    make_objective,
    metrics,
    trained_depth,
)
from drafters.optimizers import make_optimizers
from drafters.presets import build_drafter, continued
from drafters.target import Target
from policies.registry import parse

SIZES = {
    "dspark": ("layers", "intermediate", "rank"),
    "dspark-gated": ("layers", "intermediate", "rank"),
    "dspark-rnn": ("layers", "intermediate", "rank"),
    "dflash": ("layers", "intermediate"),
    "eagle3": (),
    "mtp": (),
}
"""What can be trained (a family, with the kind of DSpark's head behind a hyphen), and which of its
sizes can be set."""


def learner_name(text: str) -> str:
    """An argparse type: ``dspark``, or with sizes of its own ``dspark:layers=4;rank=64``."""
    try:
        kind, sizes = parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("policy ")) from None
    if kind not in SIZES:
        raise argparse.ArgumentTypeError(f"unknown drafter {kind!r}; known: {', '.join(SIZES)}")
    for size, value in sizes.items():
        if size not in SIZES[kind]:
            settable = ", ".join(SIZES[kind]) or "none"
            raise argparse.ArgumentTypeError(f"{text!r}: sizes of {kind} to set: {settable}")
        if type(value) is not int or value < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: {size} must be a whole number, 1 or more")
    return text


def folder_name(text: str) -> str:
    """``dspark:layers=4;rank=64`` -> ``dspark-layers4-rank64``."""
    return text.replace(":", "-").replace(";", "-").replace("=", "")


STATE = "state.pt"  # what training goes on from, beside the checkpoint
CURVE = "curve.csv"
DAMAGED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading a state raises that is cut short, overwritten or incomplete."""
STEERING = (
    "prompts", "dtype", "seed", "batch", "anchors", "negatives", "longest", "optimizer", "lr", "ce",
    "l1", "confidence", "decay", "hidden", "depth",
)  # fmt: skip
"""Options that decide what a step teaches, beside the drafter's own."""
SAMPLE = 4096  # values of each weight that tell two targets apart


class Learner:
    """State of one drafter's run after ``step`` steps; ``save`` and ``resume`` make it survive a
    kill."""

    def __init__(
        self,
        name: str,
        target: Target,
        args: argparse.Namespace,
        out: Path,
        sequences: Sequence[Text],
        bigrams: Bigrams | None = None,
    ) -> None:
        kind, sizes = parse(name)
        family, _, head = kind.partition("-")
        self.name, self.out, self.step, self.curve = name, out, 0, []
        if args.start:
            self.drafter = continued(args.start, kind, args.gamma, target)
        else:
            chosen = argparse.Namespace(**{**vars(args), **sizes, "head": head or "vanilla"})
            self.drafter = build_drafter(family, target, chosen, bigrams).to(args.device)
            self.drafter.config = replace(self.drafter.config, training=training_keys(family, args))
        self.fixed = fixed_options(kind, self.drafter, target, args) | {
            "responses": digest(sequences)
        }
        self.optimizers = make_optimizers(self.drafter, args.optimizer, args.lr)
        depth = trained_depth(family, args.gamma, args.depth)
        weights = loss_weights(family, args)
        self.objective = make_objective(
            family, depth, weights, args.anchors, args.negatives, args.decay
        )
        self.window: list[tuple[Tensor, Tensor]] = []

    def _learned(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.drafter.named_parameters() if p.requires_grad}

    def update(self, loss: Tensor, stats: Tensor, rate: float) -> None:
        """One step at a learning ``rate``; loss and ``tally`` are kept where they were computed."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.window.append((loss.detach(), stats))
        self.step += 1

    def log(self, minutes: float) -> dict[str, float]:
        """Close the window of steps: its row of the curve. UserError at a loss or weight that is
        not finite, before anything of it is saved."""
        losses = torch.stack([loss for loss, _ in self.window]).cpu()
        for before, loss in enumerate(losses.tolist(), self.step - len(losses)):
            if not math.isfinite(loss):
                raise self._diverged(f"loss became {loss} at step {before}")
        # what a gradient or rate that is not finite leaves, even where no later loss shows it
        if not torch.stack([p.isfinite().all() for p in self._learned().values()]).all():
            raise self._diverged(f"weights are not finite after step {self.step}")
        mean = metrics(torch.stack([stats for _, stats in self.window]).sum(0).cpu())
        row = {"loss": float(losses.mean()), **mean}
        row = {"step": self.step, "minutes": round(minutes, 2)} | {
            k: round(v, 4) for k, v in row.items()
        }
        self.curve.append(row)
        self.window = []
        return row

    def _diverged(self, what: str) -> UserError:
        kept = (self.out / STATE).exists()
        return UserError(
            f"{self.name}: {what}; "
            + ("last checkpoint kept" if kept else "no checkpoint was written yet")
            + "; try a lower --lr"
        )

    def resume(self) -> tuple[int, float]:
        """Take up the last checkpoint, if there is one; steps done and seconds spent. UserError
        for one of another run, or damaged."""
        path = self.out / STATE
        if not path.exists():
            return 0, 0.0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._check_same(state["fixed"])
            if state["drafter"].keys() != self._learned().keys():
                raise ValueError
            self.drafter.load_state_dict(state["drafter"], strict=False)
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.step, self.curve, elapsed_s = state["step"], state["curve"], state["elapsed_s"]
        except DAMAGED:
            raise UserError(
                f"{path} cannot be resumed from: it is damaged or of an earlier version;"
                " delete it to start afresh in this folder, or give another --out"
            ) from None
        return self.step, elapsed_s

    def _check_same(self, fixed: dict[str, Any]) -> None:
        for option, mine in self.fixed.items():
            if fixed[option] != mine:
                raise UserError(
                    f"{self.out / STATE} is of a run with {option} {fixed[option]}, this one has"
                    f" {mine}; give the options of that run to resume it, or another --out"
                )

    def save(self, elapsed_s: float) -> None:
        """Write weights, training state and curve, by renames once all of them are whole."""
        state = {
            "fixed": self.fixed,
            "drafter": self._learned(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": elapsed_s,
            "curve": self.curve,
        }
        with storing(self.out, WEIGHTS, CONFIG, STATE, CURVE) as (weights, config, kept, curve):
            write_drafter(self.drafter, weights, config)
            torch.save(state, kept)
            self._write_curve(curve)

    def _write_curve(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            names = list(self.curve[0]) if self.curve else ["step"]
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(self.curve)


def told(step: int, rows: dict[str, dict[str, float]]) -> str:
    """A line for each drafter: its loss, the acceptance of its first draft, tokens per round."""
    lines = [f"step {step}: loss accept tokens/round"]
    for name, row in rows.items():
        numbers = (row["loss"], row["accept_1"], row["tokens_per_round"])
        lines.append(" ".join([*(f"{x:.3f}" for x in numbers), name]))
    return "\n".join(lines)


def fixed_options(
    kind: str, drafter: DraftModule, target: Target, args: argparse.Namespace
) -> dict[str, Any]:
    """What a run keeps from its first step to its last, as it is checked on resuming."""
    config = drafter.config
    return {
        "target weights": fingerprint(target),
        "--drafter": kind,
        "--start": args.start,
        "--gamma": config.gamma,
        "--layers": config.num_layers,
        "--intermediate": config.shape.intermediate_size,
        "--rank": config.markov_rank,
        "--feature-layers": list(config.target_layer_ids),
        "mask token": config.mask_token_id,
        **{f"--{name}": getattr(args, name) for name in STEERING},
    }


def digest(sequences: Sequence[Text]) -> str:
    """How many texts there are, and eight hex digits of their tokens."""
    said = hashlib.sha256()
    for text in sequences:
        said.update(np.append(text.tokens.numpy(), -text.start).tobytes())
    return f"{len(sequences)} ({said.hexdigest()[:8]})"


def fingerprint(target: Target) -> str:
    """Eight hex digits of a sample of every weight; the same in fp32 and bf16, on any device."""
    weights = [p.detach().flatten() for p in target.parameters()]
    sample = torch.cat([w[:: -(-len(w) // SAMPLE)] for w in weights])
    raw = sample.bfloat16().view(torch.int16).cpu().numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:8]


def training_keys(family: str, args: argparse.Namespace) -> dict[str, Any]:
    """What DeepSpec's config.json says of a drafter's training."""
    if family in STEP_DECAY:
        return {"step_loss_decay": STEP_DECAY[family], "target_model_name_or_path": args.target}
    return {"num_anchors": args.anchors}


def loss_weights(family: str, args: argparse.Namespace) -> Weights:
    """The family's weights with those that the command line changes."""
    given = {"ce": args.ce, "l1": args.l1, "confidence": args.confidence, "hidden": args.hidden}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(DEFAULT_WEIGHTS[family], **changes)


def check_loss_options(args: argparse.Namespace) -> None:
    """UserError for an option of the loss that would do nothing for any ``args.drafter``."""
    families = {parse(name)[0].partition("-")[0] for name in args.drafter}
    for option, users in USERS.items():
        value = getattr(args, option)
        asked = value is not None and (option != "depth" or value > 0)
        if asked and not families & set(users):
            raise UserError(
                f"--{option} {value:g} does nothing for --drafter {' '.join(args.drafter)}; it is"
                f" for {' and '.join(users)}; leave it out"
            )
    if args.depth > args.gamma:
        raise UserError(
            f"--depth {args.depth} is more than the --gamma {args.gamma} tokens that are drafted;"
            f" allowed: 1..{args.gamma}, 0 for the family's own"
        )
