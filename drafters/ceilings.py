"""How much a block drafter could get accepted: ``python -m drafters.ceilings --responses F``.

At temperature 1 a target's next token is a draw, and what comes after depends on it. A parallel
block (DFlash) does not see the draws before a position, a vanilla Markov head (DSpark) sees one of
them through a table. So even a block that knows everything that can be known at its anchor is
rejected at times, however well trained; a drafter that goes token by token (Eagle3, MTP) is not
bound so. Here many continuations of one prefix are sampled from the target, and the best laws for
them are found (``drafters.laws``). The table is the target's own bigrams, what it says after the
opening token and the token before, with a weight of its own at each place: an estimate of what a
Markov head can do, where the parallel block's ceiling is a bound.

Per draft position: acceptance over continuations that the target sampled, comparable with
acceptance over all anchors of a text (training curves), not with walked rounds. Position 1 has no
ceiling below 1. The ``--out`` file has a line per anchor; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drafters.cache import KVCache
from drafters.chat import stop_tokens
from drafters.comparison import markdown
from drafters.errors import UserError, exit_code, naming
from drafters.generate import made_before
from drafters.laws import ceilings
from drafters.limits import in_memory
from drafters.progress import progress
from drafters.prompts import rows
from drafters.responses import Row, check, read_responses
from drafters.resume import digest, models
from drafters.target import Target, load_target, load_tokenizer
from gpu_traces.commands import Parser, positive, whole

COVERED = 0.99  # of the laws' mean; what a block drafts outside of it counts as rejected
BOUNDS = ("parallel_low", "parallel_high", "markov_low", "markov_high")


@dataclass(frozen=True)
class Anchor:
    """Tokens up to a place in a response, of which continuations are sampled."""

    name: str
    prefix: Tensor
    seed: int


def anchors(responses: Sequence[Row], count: int, seed: int) -> list[Anchor]:
    """One place in each of ``count`` responses (or of all), both drawn at random."""
    rng, chosen = np.random.default_rng(seed), []
    for i in rng.permutation(len(responses))[:count]:
        row = responses[i]
        tokens = row["prompt_tokens"] + row["response_tokens"]
        end = int(rng.integers(len(row["prompt_tokens"]) + 1, len(tokens)))
        chosen.append(Anchor(f"{row['name']}@{end}", torch.tensor(tokens[:end]), int(i)))
    return chosen


@torch.no_grad()
def continuations(
    target: Target, cache: KVCache, anchor: Anchor, gamma: int, temperature: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions 2, 3, ... gamma of sampled continuations, one for each slot of ``cache``: their
    tokens before the position [n] and the target's laws at it [n, V]."""
    device, count, length = cache.keys.device, cache.slots, len(anchor.prefix)
    generator = torch.Generator(device).manual_seed(anchor.seed)
    first, slots = torch.arange(length, device=device)[None], torch.arange(count, device=device)
    out = target(anchor.prefix.to(device)[None], first, cache, slots[:1], fresh=True)
    cache.broadcast(length)
    law = _law(target, out.hidden[:, -1], temperature).expand(count, -1)
    for k in range(1, gamma):
        token = torch.multinomial(law, 1, generator=generator)
        out = target(token, torch.full_like(token, length + k - 1), cache, slots)
        law = _law(target, out.hidden[:, 0], temperature)
        yield token.squeeze(1), law


def _law(target: Target, hidden: Tensor, temperature: float) -> Tensor:
    return torch.softmax(target.lm_head(hidden).float() / temperature, -1)


@torch.no_grad()
def bigram_logits(target: Target, opening: int, previous: Tensor, support: Tensor) -> Tensor:
    """[n, S] logits of tokens ``support`` [S] after the opening token and ``previous`` [n]."""
    pairs = torch.stack((torch.full_like(previous, opening), previous), 1)
    positions = torch.arange(2, device=pairs.device).expand_as(pairs)
    hidden = target(pairs, positions).hidden[:, 1]
    return hidden.float() @ target.lm_head.weight[support].float().T


def measure(
    target: Target,
    cache: KVCache,
    anchor: Anchor,
    gamma: int,
    temperature: float,
    stops: frozenset[int],
) -> list[dict[str, float]]:
    """``drafters.laws.ceilings`` at positions 2..gamma; fewer where half of the continuations have
    ended."""
    device, opening = cache.keys.device, int(anchor.prefix[0])
    ended = torch.zeros(cache.slots, dtype=torch.bool, device=device)
    ends = torch.tensor(sorted(stops), device=device)
    found = []
    for previous, laws in continuations(target, cache, anchor, gamma, temperature):
        ended |= torch.isin(previous, ends)
        if float(ended.float().mean()) > 0.5:
            break
        laws, previous = laws[~ended], previous[~ended]
        size, order = laws.mean(0).sort(descending=True)
        support = order[: int((size.cumsum(0) < COVERED).sum()) + 1]
        shifts = bigram_logits(target, opening, previous, support) / temperature
        found.append(ceilings(laws[:, support], shifts))
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means by position over anchors with 95 % intervals, from one row per anchor and position."""
    groups = table.groupby("position")[list(BOUNDS)]
    mean, half = groups.mean(), 1.96 * groups.sem()
    shown = pd.DataFrame({"position": mean.index})
    for name in BOUNDS:
        shown[name.replace("_", ", ")] = [
            f"{m:.3f} ± {h:.3f}" for m, h in zip(mean[name], half[name], strict=True)
        ]
    return shown.assign(anchors=groups.size().to_numpy())


def report(table: pd.DataFrame) -> str:
    """The summary as Markdown, and what it makes of tokens per round."""
    mean = table.groupby("position")[list(BOUNDS)].mean()
    behind = 1 + mean.cumprod().sum()
    lines = [
        f"- {name}: 1 + a1 x {behind[f'{name}_low']:.2f} to 1 + a1 x {behind[f'{name}_high']:.2f}"
        for name in ("parallel", "markov")
    ]
    text = "\n".join(lines)
    return (
        f"{markdown(summary(table))}\n\nTokens per round, bonus included, with acceptance a1 at"
        f" position 1:\n\n{text}\n"
    )


def run(args: argparse.Namespace) -> None:
    """Measure the anchors that ``--out`` does not have yet, then print the report of all."""
    out = Path(args.out)
    responses = read_responses(Path(args.responses), temperatures=(args.temperature,))
    options = ("temperature", "samples", "gamma", "dtype", "seed")
    made_by = models(args.target) | {name: getattr(args, name) for name in options}
    made_by |= {"responses": digest(responses)}
    done = made_before(out, made_by)
    target = load_target(args.target, getattr(torch, args.dtype), args.device)
    stops = stop_tokens(args.target, load_tokenizer(args.target))
    for row in responses:
        check(row, args.responses, target.vocab_size)
    chosen = anchors(responses, args.anchors, args.seed)
    left = [a for a in chosen if a.name not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    longest = max(len(a.prefix) for a in chosen)
    with in_memory(f"{args.samples} continuations do not fit into memory; lower --samples"):
        cache = target.new_cache(args.samples, longest + args.gamma)
    with naming(out), out.open("a", encoding="utf-8") as file, progress() as bar:
        for anchor in bar.track(left, description="anchors"):
            found = measure(target, cache, anchor, args.gamma, args.temperature, stops)
            row = {"name": anchor.name, "ceilings": found, "made_by": made_by}
            file.write(json.dumps(row) + "\n")
            file.flush()
    print(report(read_table(out)))


def read_table(path: Path) -> pd.DataFrame:
    """One row per anchor and position of an ``--out`` file; UserError where it has none."""
    table = pd.DataFrame(
        {"name": row["name"], "position": position, **bounds}
        for _, row in rows(path)
        for position, bounds in enumerate(row["ceilings"], 2)
    )
    if table.empty:
        raise UserError(f"{path}: every continuation ended at once; take other --responses")
    return table


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.ceilings", __doc__)
    add = made.add_argument
    add("--target", default="smollm2-135m", help="fetched name, folder or hub id")
    add("--responses", required=True, help="JSONL file of drafters.generate")
    add("--out", required=True, help="JSONL file, a line per anchor")
    add("--anchors", type=whole(2), default=64, help="places to measure, at most one a response")
    add("--samples", type=whole(8), default=128, help="continuations of each")
    add("--gamma", type=whole(2), default=7, help="draft positions")
    add("--temperature", type=positive, default=1.0, help="of target and responses")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="dtype")
    add("--device", default="cpu", help="torch device")
    add("--seed", type=whole(0), default=0, help="of anchors")
    return made


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: run(parser().parse_args(argv)), "stopped; run the same command again to go on"
    )


if __name__ == "__main__":
    sys.exit(main())
