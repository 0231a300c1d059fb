"""One drafter while it is trained: loss, optimiser, curve and checkpoint."""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from drafters.bigrams import Bigrams
from drafters.checkpoint import save_drafter, storing
from drafters.errors import UserError
from drafters.objectives import DEFAULT_WEIGHTS, Weights, make_objective, metrics, trained_depth
from drafters.presets import build_drafter, continued
from drafters.target import Target
from policies.registry import parse

SIZES = {
    "dspark": ("layers", "rank"),
    "dspark-gated": ("layers", "rank"),
    "dspark-rnn": ("layers", "rank"),
    "dflash": ("layers",),
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


class Learner:
    """State of one drafter's run; ``save`` and ``resume`` make it survive a kill."""

    def __init__(
        self,
        name: str,
        target: Target,
        args: argparse.Namespace,
        out: Path,
        bigrams: Bigrams | None = None,
    ) -> None:
        kind, sizes = parse(name)
        family, _, head = kind.partition("-")
        self.name, self.out, self.curve = name, out, []
        if args.start:
            self.drafter = continued(args.start, kind, args.gamma, target)
        else:
            chosen = argparse.Namespace(**{**vars(args), **sizes, "head": head or "vanilla"})
            self.drafter = build_drafter(family, target, chosen, bigrams).to(args.device)
        learned = [p for p in self.drafter.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=args.lr, weight_decay=0.0)
        depth = trained_depth(family, args.gamma, args.depth)
        weights = loss_weights(family, args)
        self.objective = make_objective(
            family, depth, weights, args.anchors, args.negatives, args.decay
        )
        self.window: list[tuple[Tensor, Tensor]] = []

    def update(self, loss: Tensor, stats: Tensor, rate: float) -> None:
        """One step of the optimiser; loss and ``tally`` are kept where they were computed."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), 1.0)
        self.optimizer.step()
        self.window.append((loss.detach(), stats))

    def log(self, step: int, minutes: float) -> dict[str, float]:
        """Close the window of steps that ends at ``step``: its row of the curve. UserError at a
        loss that is not finite, before anything of it is saved."""
        losses = torch.stack([loss for loss, _ in self.window]).cpu()
        for before, loss in enumerate(losses.tolist(), step - len(losses)):
            if not math.isfinite(loss):
                raise UserError(
                    f"{self.name}: loss became {loss} at step {before}; last checkpoint kept"
                )
        mean = metrics(torch.stack([stats for _, stats in self.window]).sum(0).cpu())
        row = {"loss": float(losses.mean()), **mean}
        row = {"step": step, "minutes": round(minutes, 2)} | {
            k: round(v, 4) for k, v in row.items()
        }
        self.curve.append(row)
        self.window = []
        return row

    def resume(self) -> tuple[int, float]:
        """Take up the last checkpoint, if there is one; steps done and seconds spent."""
        path = self.out / STATE
        if not path.exists():
            return 0, 0.0
        state = torch.load(path, weights_only=True)
        self.drafter.load_state_dict(state["drafter"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = state["curve"]
        return state["step"], state["elapsed_s"]

    def save(self, step: int, elapsed_s: float) -> None:
        """Write weights, training state and curve, each by rename."""
        self.out.mkdir(parents=True, exist_ok=True)
        save_drafter(self.drafter, self.out)
        learned = {n: p for n, p in self.drafter.named_parameters() if p.requires_grad}
        state = {
            "drafter": learned,
            "optimizer": self.optimizer.state_dict(),
            "step": step,
            "elapsed_s": elapsed_s,
            "curve": self.curve,
        }
        with storing(self.out / STATE) as path:
            torch.save(state, path)
        self._save_curve()

    def _save_curve(self) -> None:
        with storing(self.out / "curve.csv") as path, path.open("w", newline="") as file:
            names = list(self.curve[0]) if self.curve else ["step"]
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(self.curve)


def loss_weights(family: str, args: argparse.Namespace) -> Weights:
    """The family's weights with those that the command line changes."""
    given = {"ce": args.ce, "l1": args.l1, "confidence": args.confidence, "hidden": args.hidden}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(DEFAULT_WEIGHTS[family], **changes)
