"""Train a drafter on the target's own responses: ``python -m drafters.train --help``.

Random anchors of each sequence, packed; the paper's three-term loss; AdamW, warm-up and cosine over
a time budget. Early training is CE-heavy because the L1 term has little gradient while the drafter
gives the right token no probability yet. A checkpoint is written every few minutes by rename, so a
run killed at any moment resumes from the last one with the same command.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drafters.block import BlockDrafter
from drafters.checkpoint import save_drafter
from drafters.corpus import Sequence, Supervision, Supervisor, load_sequences
from drafters.errors import UserError
from drafters.losses import ce_and_l1, position_weights, with_negatives
from drafters.presets import build_drafter
from drafters.progress import progress
from drafters.target import load_target

WARMUP = 0.04
CE_HEAVY = 0.15  # share of the run in which the loss moves from CE to the paper's weights


@dataclass(frozen=True)
class Weights:
    """Loss weights (a_ce, a_l1, a_conf)."""

    ce: float
    l1: float
    confidence: float

    def at(self, done: float) -> Weights:
        """Weights when a fraction ``done`` of the run has passed: CE first, L1 phased in."""
        phase = min(1.0, done / CE_HEAVY)
        return Weights(1.0 + phase * (self.ce - 1.0), phase * self.l1, self.confidence)


def learning_rate(peak: float, done: float) -> float:
    """Linear warm-up, then cosine to zero, in the fraction of the run that is done."""
    if done < WARMUP:
        return peak * (done + 1e-3) / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP))))


def block_loss(
    drafter: BlockDrafter,
    sequences: list[Sequence],
    told: list[Supervision],
    weights: Weights,
    anchors_per_sequence: int,
    negatives: int,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of one batch; anchors are drawn from torch's global generator."""
    gamma, device = drafter.gamma, drafter.norm.weight.device
    width = max(len(s.tokens) for s in sequences)
    tokens = torch.zeros(len(sequences), width + gamma, dtype=torch.long)
    features = torch.zeros(len(sequences), width, told[0].features.shape[1], dtype=torch.bfloat16)
    anchors = torch.zeros(len(sequences), anchors_per_sequence, dtype=torch.long)
    real = torch.zeros_like(anchors, dtype=torch.bool)
    for i, (s, t) in enumerate(zip(sequences, told, strict=True)):
        tokens[i, : len(s.tokens)] = s.tokens
        features[i, : len(s.tokens)] = t.features
        choice = torch.randperm(len(s.tokens) - 1 - s.start)[:anchors_per_sequence]
        anchors[i, : len(choice)] = choice.sort().values + s.start
        real[i, : len(choice)] = True
    at = anchors.unsqueeze(-1) + torch.arange(gamma)
    in_block = tokens.gather(1, at.flatten(1)).view_as(at)
    labels = tokens.gather(1, at.flatten(1) + 1).view_as(at)
    lengths = torch.tensor([len(s.tokens) for s in sequences])
    valid = real.unsqueeze(-1) & (at + 1 < lengths[:, None, None])

    out = drafter.teacher_forced(
        tokens[:, :width].to(device), features.to(device), anchors.to(device), in_block.to(device)
    )
    scale = position_weights(gamma).to(device)
    pairs = anchors_per_sequence * gamma
    total, weight_sum, stats = 0.0, 0.0, torch.zeros(4, gamma, device=device)
    for i, (s, t) in enumerate(zip(sequences, told, strict=True)):
        rows = valid[i].flatten().nonzero().squeeze(1)
        where = rows.to(device)
        chosen = with_negatives(t.kept, drafter.config.vocab_size, negatives)
        ids = chosen.ids.to(device)
        span = slice(i * anchors_per_sequence, (i + 1) * anchors_per_sequence)
        hidden = out.hidden[span].reshape(pairs, -1)[where]
        logits = hidden @ drafter.lm_head.weight[ids].T
        if out.latents is not None:
            z = out.latents[span].reshape(pairs, -1)[where]
            logits = logits + z @ drafter.markov_head.markov_w2.weight[ids].T
        logits[:, chosen.kept :] += chosen.shift
        target = t.probs[at[i].flatten()[rows] - s.start].float().to(device)
        label = torch.searchsorted(t.kept, labels[i].flatten()[rows]).to(device)
        loss, ce, l1 = ce_and_l1(
            logits, target, 1 - target.sum(-1), label, chosen.kept, weights.ce, weights.l1
        )
        position = where % gamma
        w = scale[position]
        accept = 1 - 0.5 * l1
        total = total + (w * loss).sum()
        if out.confidence_logits is not None:
            guess = out.confidence_logits[span].reshape(pairs)[where].float()
            bce = torch.nn.functional.binary_cross_entropy_with_logits(
                guess, accept.clamp(0, 1), reduction="none"
            )
            total = total + weights.confidence * (w * bce).sum()
            stats[3].index_add_(0, position, (guess.sigmoid() - accept).detach().abs())
        weight_sum += float(w.sum())
        stats[0].index_add_(0, position, torch.ones_like(accept))
        stats[1].index_add_(0, position, accept.detach())
        stats[2].index_add_(0, position, ce.detach())
    mean = total / weight_sum
    rate = (stats[1] / stats[0].clamp_min(1)).cpu()
    metrics = {
        "loss": float(mean.detach()),
        "ce": float(stats[2].sum() / stats[0].sum()),
        "tokens_per_round": 1 + float(rate.cumprod(0).sum()),
        "confidence_error": float(stats[3].sum() / stats[0].sum()),
        **{f"accept_{k + 1}": float(rate[k]) for k in range(gamma)},
    }
    return mean, metrics


class Trainer:
    """State of one run; ``save`` and ``resume`` make it survive a kill."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.out = args, Path(args.out)
        self.dtype = getattr(torch, args.dtype)
        target = load_target(args.target, self.dtype, args.device)
        self.drafter = build_drafter(args.drafter, target, args).to(args.device)
        self.sequences = load_sequences(args.responses, args.longest)
        self.supervisor = Supervisor(target, self.drafter.feature_layers, args.cache_gb)
        learned = [p for p in self.drafter.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=args.lr, weight_decay=0.0)
        self.step, self.elapsed_s, self.curve = 0, 0.0, []
        self.weights = Weights(args.ce, args.l1, args.confidence)

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
            writer = csv.DictWriter(file, fieldnames=list(self.curve[0]) if self.curve else ["step"])
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

    def train_step(self, keys: list[int]) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args.lr, self.done())
        sequences = [self.sequences[i] for i in keys]
        told = self.supervisor(keys, sequences)
        with torch.autocast(self.args.device.split(":")[0], self.dtype, self.dtype != torch.float32):
            loss, metrics = block_loss(
                self.drafter,
                sequences,
                told,
                self.weights.at(self.done()),
                self.args.anchors,
                self.args.negatives,
            )
        if not math.isfinite(metrics["loss"]):
            raise UserError(f"loss became {metrics['loss']} at step {self.step}; last checkpoint kept")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return metrics

    def run(self) -> None:
        self.resume()
        saved = time.monotonic()
        window: list[dict[str, float]] = []
        with progress() as bar:
            task = bar.add_task("training", total=1000)
            for keys in self.batches():
                if self.done() >= 1:
                    break
                began = time.monotonic()
                window.append(self.train_step(keys))
                self.elapsed_s += time.monotonic() - began
                bar.update(task, completed=int(1000 * self.done()))
                if len(window) == self.args.log_every:
                    self._log(window, bar, task)
                    window = []
                if time.monotonic() - saved > 60 * self.args.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _log(self, window: list[dict[str, float]], bar, task) -> None:  # type: ignore[no-untyped-def]
        mean = {k: round(sum(m[k] for m in window) / len(window), 4) for k in window[0]}
        self.curve.append({"step": self.step, "minutes": round(self.elapsed_s / 60, 2), **mean})
        text = f"loss {mean['loss']:.3f} tokens/round {mean['tokens_per_round']:.3f}"
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
    add("--drafter", choices=("dspark", "dflash"), default="dspark", help="family")
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
    add("--negatives", type=int, default=512, help="sampled tokens beside the target's own")
    add("--longest", type=int, default=768, help="drop longer sequences, tokens")
    add("--lr", type=float, default=6e-4, help="peak learning rate")
    add("--ce", type=float, default=0.1, help="weight of the cross-entropy term")
    add("--l1", type=float, default=0.9, help="weight of the L1 (total-variation) term")
    add("--confidence", type=float, default=1.0, help="weight of the confidence term")
    add("--cache-gb", type=float, default=8.0, help="memory for target features, GB")
    add("--save-minutes", type=float, default=3.0, help="time between checkpoints, minutes")
    add("--log-every", type=int, default=20, help="steps between rows of curve.csv")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="matmul precision")
    add("--device", default="cpu", help="torch device")
    add("--seed", type=int, default=0, help="seed of initialisation and anchors")
    return made


def main(argv: list[str] | None = None) -> int:
    try:
        Trainer(parser().parse_args(argv)).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
