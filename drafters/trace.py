"""Record dense coupled traces of a drafter and a target: ``python -m drafters.trace record``.

Three stages, each written as it goes, so that a run can be stopped and started again: sample
responses, draft a block at every anchor of every response, measure step latencies. The bundle
appears whole, by one rename, at the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from drafters import generate, profile
from drafters.base import CONFIDENCE_DTYPE, Drafter
from drafters.cache import KVCache
from drafters.checkpoint import load
from drafters.coupling import Coupled, softmax
from drafters.errors import UserError, exit_code, naming
from drafters.grids import GRIDS, grid
from drafters.progress import progress
from drafters.prompts import load_prompts
from drafters.provenance import measured
from drafters.responses import Row, read_responses
from drafters.resume import claim, digest, models, read_part
from drafters.sampling import request_uniforms
from drafters.target import Target, load_target
from gpu_traces.bundle import Manifest, check_place, write_bundle
from gpu_traces.commands import Parser, whole
from gpu_traces.files import read_frame, replacing

CHUNK_ANCHORS = {"cuda": 512}  # anchors drafted in one pass
CPU_ANCHORS = 64
TOGETHER = {"cuda": 8}  # responses in one target pass; elsewhere padding costs more than passes


class Text(NamedTuple):
    """A response and what the target says about it; t tokens, the last L of them the response."""

    tokens: Tensor
    """[t]"""
    start: int
    """t - L"""
    temperature: float
    hidden: Tensor
    """[t, d] after the target's final norm."""
    features: Tensor
    """[t, m * d]"""
    uniforms: Tensor
    """[2, L, gamma]"""


def dense_anchors(target: Target, drafter: Drafter, row: Row, seed: int) -> dict[str, np.ndarray]:
    """Draft a coupled block at every anchor of one response.

    Returns columns of the bundle's anchors table, L - 1 rows each (vectors [L - 1, gamma]).
    """
    return dense_group(target, drafter, [row], seed)


@torch.no_grad()
def dense_group(
    target: Target, drafter: Drafter, rows: Sequence[Row], seed: int
) -> dict[str, np.ndarray]:
    """``dense_anchors`` of several responses, one after the other in each column.

    The device is waited for once, at the end.
    """
    together = TOGETHER.get(target.norm.weight.device.type, 1)
    order = sorted(range(len(rows)), key=lambda i: _length(rows[i]))
    made: dict[int, list[dict[str, Tensor]]] = {}
    for start in range(0, len(rows), together):
        chosen = order[start : start + together]
        texts = _texts(target, drafter, [rows[i] for i in chosen], seed)
        made |= {
            i: list(_chunks(target, drafter, text)) for i, text in zip(chosen, texts, strict=True)
        }
    parts = [part for i in range(len(rows)) for part in made[i]]
    return {key: torch.cat([p[key] for p in parts]).cpu().numpy() for key in parts[0]}


def _length(row: Row) -> int:
    return len(row["prompt_tokens"]) + len(row["response_tokens"])


def _texts(target: Target, drafter: Drafter, rows: Sequence[Row], seed: int) -> Iterator[Text]:
    """One target pass over the rows, padded to the longest."""
    device, gamma = target.norm.weight.device, drafter.gamma
    texts = [torch.tensor(row["prompt_tokens"] + row["response_tokens"]) for row in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    out = target(tokens, positions, feature_layers=drafter.feature_layers)
    features = tokens.new_zeros(*tokens.shape, 0) if out.features is None else out.features
    sizes = [2 * len(row["response_tokens"]) * gamma for row in rows]
    drawn = [
        request_uniforms(seed, f"{row['name']}/draft", size)
        for row, size in zip(rows, sizes, strict=True)
    ]
    uniforms = torch.from_numpy(np.concatenate(drawn)).to(device).split(sizes)
    for i, row in enumerate(rows):
        length, start = _length(row), len(row["prompt_tokens"])
        yield Text(
            tokens[i, :length], start, float(row["temperature"]), out.hidden[i, :length],
            features[i, :length], uniforms[i].view(2, length - start, gamma),
        )  # fmt: skip


def _chunks(target: Target, drafter: Drafter, text: Text) -> Iterator[dict[str, Tensor]]:
    """Columns of the anchors of one response, some anchors at a time."""
    device, gamma, start = text.tokens.device, drafter.gamma, text.start
    size = CHUNK_ANCHORS.get(device.type, CPU_ANCHORS)
    truth = F.pad(text.tokens[start + 1 :], (0, gamma), value=-1).unfold(0, gamma, 1)
    table = _told(target, text, gamma) if text.temperature > 0 else None
    anchors = torch.arange(start, len(text.tokens) - 1, device=device)
    for first, chunk in zip(range(0, len(anchors), size), anchors.split(size), strict=True):
        end = first + len(chunk)
        told = [] if table is None else [table[first + k : end + k] for k in range(gamma)]
        draw = Coupled(truth[first:end], told, text.temperature, text.uniforms[:, first:end])
        state = _shared_state(drafter, text, start + end - 1, len(chunk))
        proposal = drafter.propose(
            state, text.tokens[start + first : start + end], chunk, gamma, draw
        )
        confidence = draw.max_prob if proposal.confidences is None else proposal.confidences
        yield {
            "position": chunk - start,
            "context_tokens": chunk,
            "confidence": confidence.to(CONFIDENCE_DTYPE),
            "accepted": draw.accepted,
            "alpha": draw.alpha.clamp(0, 1),
            "max_prob": draw.max_prob.clamp(0, 1),
        }


def _told(target: Target, text: Text, gamma: int) -> Tensor:
    """[L + gamma, V] the target's probabilities after each token of the response, then zeros: block
    position k of anchor t reads row t + k."""
    probs = softmax(target.lm_head(text.hidden[text.start :]), text.temperature)
    return F.pad(probs, (0, 0, 0, gamma))


def _shared_state(drafter: Drafter, text: Text, last: int, rows: int) -> object:
    """A drafter state whose every slot holds the sequence up to ``last``; rows look only before
    their own anchor, so one context serves them all."""
    state, device = drafter.new_state(rows, last + 1), text.tokens.device
    positions = torch.arange(last, device=device)[None]
    slot = torch.zeros(1, dtype=torch.long, device=device)
    drafter.extend(state, text.tokens[None, :last], text.features[None, :last], positions, slot)
    state.broadcast(last)  # type: ignore[attr-defined]
    cache = getattr(state, "cache", state)
    if isinstance(cache, KVCache):
        cache.whole = True  # it is just as long as needed, so the device need not be asked
    return state


class Recording:
    """The stages of one recording, kept in ``<out>.part`` until the bundle is written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        check_place(self.out, args.force)
        if not args.responses:
            load_prompts(args.prompts, args.split)
        self.work = self.out.with_name(self.out.name + ".part")
        self.target = load_target(args.target, getattr(torch, args.dtype), args.device)
        self.drafter = load(args.drafter, self.target)
        self.given = self.read(Path(args.responses)) if args.responses else []

    def run(self) -> None:
        claim(self.work / "made_by.json", self.made_by())
        rows = self.given or self.responses()
        anchors = self.anchors(rows)
        steps = self.latency()
        tables = {"responses": _response_table(rows), "anchors": anchors, "steps": steps}
        write_bundle(self.out, self.manifest(rows), tables, force=self.args.force)
        shutil.rmtree(self.work)
        print(f"wrote {self.out}: {len(rows)} responses, {len(anchors['accepted'])} anchors")

    def made_by(self) -> dict[str, object]:
        """What decides all parts; those of anchors are also named after their responses."""
        args = self.args
        prompts = [] if args.responses else load_prompts(args.prompts, args.split)
        chosen = [vars(prompt) for prompt in generate.spread(prompts, args.limit)]
        options = ("max_new", "grid", "dtype", "device", "seed")
        return {
            **models(args.target, args.drafter),
            "gamma": self.drafter.gamma,
            "prompts": digest(chosen),
            **{name: vars(args)[name] for name in options},
        }

    def read(self, path: Path) -> list[Row]:
        """Responses at the wanted temperatures, by name."""
        rows = read_responses(path, self.target.vocab_size, self.args.temperatures)
        return sorted(rows, key=lambda r: r["name"])

    def responses(self) -> list[Row]:
        """Stage 1: the target's responses at every temperature."""
        path = self.work / "responses.jsonl"
        greedy, sampled = (str(int(t in self.args.temperatures)) for t in (0.0, 1.0))
        wanted = ["--target", self.args.target, "--prompts", *self.args.prompts]
        wanted += ["--out", str(path), "--split", self.args.split, "--dtype", self.args.dtype]
        wanted += ["--greedy", greedy, "--samples", sampled]
        wanted += ["--max-new", str(self.args.max_new), "--device", self.args.device]
        wanted += ["--limit", str(self.args.limit), "--seed", str(self.args.seed)]
        generate.generate(generate.parser().parse_args(wanted))
        return self.read(path)

    def anchors(self, rows: list[Row]) -> dict[str, np.ndarray]:
        """Stage 2: dense anchors of every response, one file each until all are there."""
        parts = []
        with progress() as bar:
            task = bar.add_task("anchors", total=len(rows))
            for i, row in enumerate(rows):
                columns = self.part(row)
                columns["request_id"] = np.full(len(columns["accepted"]), i)
                parts.append(columns)
                bar.advance(task)
        return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}

    def part(self, row: Row) -> dict[str, np.ndarray]:
        """Anchors of one response, as an earlier run left them or made now."""
        path = self.work / f"{digest(row)}.npz"
        columns = read_part(path)
        if columns is None:
            columns = dense_anchors(self.target, self.drafter, row, self.args.seed)
            check_confidences(columns["confidence"], row["name"])
            with naming(path), replacing(path) as temporary:
                np.savez(temporary, **columns)
        return columns

    def latency(self) -> pd.DataFrame:
        """Stage 3: step latencies of this machine, target and drafter."""
        path = self.work / "steps.parquet"
        if not path.exists():
            steps = profile.measure(self.target, self.drafter, grid(self.args.grid))
            with naming(path), replacing(path) as temporary:
                steps.to_parquet(temporary)
        return read_frame(path)

    def manifest(self, rows: list[Row]) -> Manifest:
        args = self.args
        return measured(
            self.out,
            args.target,
            args.drafter,
            args.device,
            args.hardware,
            gamma=self.drafter.gamma,
            temperatures=tuple(sorted({float(r["temperature"]) for r in rows})),
            domains=tuple(sorted({str(r["domain"]) for r in rows})),
            command="python -m drafters.trace " + " ".join(args.command_line),
            seed=args.seed,
        )


def check_confidences(confidence: np.ndarray, name: str) -> None:
    """UserError, while it costs no more than one response, for a drafter that computes NaN."""
    bad = np.argwhere(~np.isfinite(confidence))
    if len(bad):
        row, position = bad[0]
        raise UserError(
            f"response {name}, anchor {row}: the drafter's confidence of position {position + 1} is"
            " not finite; its weights or --dtype cannot be used"
        )


def _response_table(rows: list[Row]) -> dict[str, list[object]]:
    return {
        "request_id": list(range(len(rows))),
        "prompt_key": [str(r["name"]).split("/")[0] for r in rows],
        "domain": [r["domain"] for r in rows],
        "dataset": [r["dataset"] for r in rows],
        "temperature": [r["temperature"] for r in rows],
        "prompt_tokens": [len(r["prompt_tokens"]) for r in rows],
        "response_tokens": [len(r["response_tokens"]) for r in rows],
    }


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.trace", __doc__)
    verbs = made.add_subparsers(dest="verb", required=True)
    record = verbs.add_parser("record", help="record a trace bundle")
    add = record.add_argument
    add("--target", default="smollm2-135m", help="fetched name, local folder or hub id")
    add("--drafter", required=True, help="drafter checkpoint folder, or 'ngram'")
    add("--prompts", nargs="+", default=[], help="JSONL files or folders of prompts")
    add("--responses", default="", help="JSONL of drafters.generate to use instead of sampling")
    add("--out", required=True, help="bundle folder to write")
    add("--force", action="store_true", help="overwrite --out")
    add("--split", choices=generate.SPLITS, default="eval", help="half of the prompts")
    add("--limit", type=whole(0), default=0, help="prompts at most, evenly over domains; 0: all")
    add("--temperatures", type=float, choices=(0.0, 1.0), nargs="+", default=[0.0, 1.0],
        help="0, 1 or both")  # fmt: skip
    add("--max-new", type=whole(2), default=256, help="response tokens at most")
    add("--grid", choices=tuple(GRIDS), default="cpu", help="latency grid")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision")
    add("--device", default="cpu", help="torch device")
    add("--hardware", default="", help="machine name in the manifest; empty: detected")
    add("--seed", type=whole(0), default=0, help="seed of every draw")
    return made


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    made = parser()
    args = made.parse_args(argv)
    args.command_line = argv
    if not args.prompts and not args.responses:
        made.error("give --prompts or --responses")
    return exit_code(
        lambda: Recording(args).run(), "stopped; the same command goes on where it was"
    )


if __name__ == "__main__":
    sys.exit(main())
