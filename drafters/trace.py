"""Record dense coupled traces of a drafter and a target: ``python -m drafters.trace record``.

Three stages, each written as it goes, so that a run can be stopped and started again: sample
responses, draft a block at every anchor of every response, measure step latencies. The bundle
appears whole, by one rename, at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from drafters import generate, profile
from drafters.base import CONFIDENCE_DTYPE, Drafter
from drafters.checkpoint import load
from drafters.coupling import Coupled
from drafters.errors import UserError, exit_code
from drafters.progress import progress
from drafters.provenance import measured
from drafters.sampling import request_uniforms
from drafters.target import Target, load_target
from gpu_traces.bundle import Manifest, write_bundle

CHUNK_ANCHORS = 64  # anchors drafted in one pass


@torch.no_grad()
def dense_anchors(
    target: Target, drafter: Drafter, row: dict[str, object], seed: int
) -> dict[str, np.ndarray]:
    """Draft a coupled block at every anchor of one response (``row`` of ``drafters.generate``).

    Returns columns of the bundle's anchors table, L - 1 rows each (vectors [L - 1, gamma]).
    """
    device = target.norm.weight.device
    prompt, response = list(row["prompt_tokens"]), list(row["response_tokens"])  # type: ignore[call-overload]
    tokens = torch.tensor(prompt + response, device=device)
    out = target(
        tokens[None],
        torch.arange(len(tokens), device=device)[None],
        feature_layers=drafter.feature_layers,
    )
    features = out.features if out.features is not None else tokens.new_zeros(1, len(tokens), 0)
    anchors = torch.arange(len(prompt), len(tokens) - 1, device=device)
    uniforms = request_uniforms(seed, f"{row['name']}/draft", 2 * len(response) * drafter.gamma)
    uniforms = torch.tensor(uniforms, device=device).view(2, len(response), drafter.gamma)
    parts = []
    for chunk in anchors.split(CHUNK_ANCHORS):
        state = _shared_state(drafter, tokens, features, int(chunk[-1]), len(chunk))
        at = chunk.unsqueeze(1) + torch.arange(1, drafter.gamma + 1, device=device)
        inside = at < len(tokens)
        truth = torch.where(inside, tokens[at.clamp_max(len(tokens) - 1)], -1)
        logits = target.lm_head(out.hidden[0, (at - 1).clamp_max(len(tokens) - 1)])
        mine = uniforms[:, chunk - len(prompt)]
        draw = Coupled(truth, logits, float(row["temperature"]), mine)  # type: ignore[arg-type]
        proposal = drafter.propose(state, tokens[chunk], chunk, drafter.gamma, draw)
        confidence = draw.max_prob if proposal.confidences is None else proposal.confidences
        parts.append(
            {
                "position": chunk - len(prompt),
                "context_tokens": chunk,
                "confidence": confidence.to(CONFIDENCE_DTYPE),
                "accepted": draw.accepted,
                "alpha": draw.alpha.clamp(0, 1),
                "max_prob": draw.max_prob.clamp(0, 1),
            }
        )
    return {key: torch.cat([p[key] for p in parts]).cpu().numpy() for key in parts[0]}


def _shared_state(
    drafter: Drafter, tokens: torch.Tensor, features: torch.Tensor, last: int, rows: int
) -> object:
    """A drafter state whose every slot holds the sequence up to ``last``; rows look only before
    their own anchor, so one context serves them all."""
    state = drafter.new_state(rows, last + 1)
    positions = torch.arange(last, device=tokens.device)[None]
    slot = torch.zeros(1, dtype=torch.long, device=tokens.device)
    drafter.extend(state, tokens[None, :last], features[:, :last], positions, slot)
    state.broadcast(last)  # type: ignore[attr-defined]
    return state


class Recording:
    """The stages of one recording, kept in ``<out>.part`` until the bundle is written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        if self.out.exists() and not args.force:
            raise UserError(f"{self.out} exists; choose another --out or overwrite with --force")
        self.work = self.out.with_name(self.out.name + ".part")
        self.target = load_target(args.target, getattr(torch, args.dtype), args.device)
        self.drafter = load(args.drafter, self.target)
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        rows = self.responses()
        anchors = self.anchors(rows)
        steps = self.latency()
        tables = {"responses": _response_table(rows), "anchors": anchors, "steps": steps}
        write_bundle(self.out, self.manifest(rows), tables, force=self.args.force)
        shutil.rmtree(self.work)
        print(f"wrote {self.out}: {len(rows)} responses, {len(anchors['accepted'])} anchors")

    def responses(self) -> list[dict[str, object]]:
        """Stage 1: the target's responses at every temperature."""
        path = Path(self.args.responses or self.work / "responses.jsonl")
        if not self.args.responses:
            greedy, sampled = (int(t in self.args.temperatures) for t in (0.0, 1.0))
            wanted = ["--target", self.args.target, "--prompts", *self.args.prompts]
            wanted += ["--out", str(path), "--split", self.args.split, "--dtype", self.args.dtype]
            wanted += [
                "--greedy",
                str(greedy),
                "--samples",
                str(int(1.0 in self.args.temperatures)),
            ]
            wanted += ["--max-new", str(self.args.max_new), "--device", self.args.device]
            wanted += ["--limit", str(self.args.limit), "--seed", str(self.args.seed)]
            generate.generate(generate.parser().parse_args(wanted))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        hot = self.args.temperatures
        kept = [r for r in rows if len(r["response_tokens"]) > 1 and r["temperature"] in hot]
        return sorted(kept, key=lambda r: r["name"])

    def anchors(self, rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
        """Stage 2: dense anchors of every response, one file each until all are there."""
        parts = []
        with progress() as bar:
            task = bar.add_task("anchors", total=len(rows))
            for i, row in enumerate(rows):
                name = hashlib.sha256(str(row["name"]).encode()).hexdigest()[:20]
                path = self.work / f"{name}.npz"
                if not path.exists():
                    made = dense_anchors(self.target, self.drafter, row, self.args.seed)
                    np.savez(path.with_suffix(".tmp.npz"), **made)
                    path.with_suffix(".tmp.npz").rename(path)
                with np.load(path) as stored:
                    columns = dict(stored)
                columns["request_id"] = np.full(len(columns["accepted"]), i)
                parts.append(columns)
                bar.advance(task)
        return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}

    def latency(self) -> pd.DataFrame:
        """Stage 3: step latencies of this machine, target and drafter."""
        path = self.work / "steps.parquet"
        if not path.exists():
            steps = profile.measure(self.target, self.drafter, profile.grid(self.args.grid))
            steps.to_parquet(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        return pd.read_parquet(path)

    def manifest(self, rows: list[dict[str, object]]) -> Manifest:
        args = self.args
        return measured(
            self.out,
            args.target,
            args.drafter,
            args.device,
            args.hardware,
            gamma=self.drafter.gamma,
            temperatures=tuple(sorted({float(r["temperature"]) for r in rows})),  # type: ignore[arg-type]
            domains=tuple(sorted({str(r["domain"]) for r in rows})),
            command="python -m drafters.trace " + " ".join(args.command_line),
            seed=args.seed,
        )


def _response_table(rows: list[dict[str, object]]) -> dict[str, list[object]]:
    return {
        "request_id": list(range(len(rows))),
        "prompt_key": [str(r["name"]).split("/")[0] for r in rows],
        "domain": [r["domain"] for r in rows],
        "dataset": [r["dataset"] for r in rows],
        "temperature": [r["temperature"] for r in rows],
        "prompt_tokens": [len(r["prompt_tokens"]) for r in rows],  # type: ignore[arg-type]
        "response_tokens": [len(r["response_tokens"]) for r in rows],  # type: ignore[arg-type]
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m drafters.trace", description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True)
    record = verbs.add_parser(
        "record",
        help="record a trace bundle",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = record.add_argument
    add("--target", default="smollm2-135m", help="fetched name, local folder or hub id")
    add("--drafter", required=True, help="drafter checkpoint folder, or 'ngram'")
    add("--prompts", nargs="+", default=[], help="JSONL files or folders of prompts")
    add("--responses", default="", help="JSONL of drafters.generate to use instead of sampling")
    add("--out", required=True, help="bundle folder to write")
    add("--force", action="store_true", help="overwrite --out")
    add("--split", choices=generate.SPLITS, default="eval", help="half of the prompts")
    add("--limit", type=int, default=0, help="prompts at most, evenly over domains; 0: all")
    add("--temperatures", type=float, nargs="+", default=[0.0, 1.0], help="0, 1 or both")
    add("--max-new", type=int, default=256, help="response tokens at most")
    add("--grid", choices=tuple(profile.GRIDS), default="cpu", help="latency grid")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision")
    add("--device", default="cpu", help="torch device")
    add("--hardware", default="", help="machine name in the manifest; empty: detected")
    add("--seed", type=int, default=0, help="seed of every draw")
    return made


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.command_line = argv
    if not args.prompts and not args.responses:
        print("error: give --prompts or --responses", file=sys.stderr)
        return 2
    return exit_code(
        lambda: Recording(args).run(), "stopped; the same command goes on where it was"
    )


if __name__ == "__main__":
    sys.exit(main())
