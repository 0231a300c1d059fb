"""Prompts that the target makes up: ``python -m drafters.invent --prompts ... --out F.jsonl``.

A drafter learns its target's habits from varied text, and prompt files are short. Here the target
continues the first words of given prompts as if it were the user, at temperature 1, until it ends
the turn. What it makes of a training prompt is kept only if its own text falls into the training
half as well, so the halves of ``drafters.prompts`` never mix. The idea is that of Magpie (Xu et
al. 2024), with a given beginning so that domains keep their shares.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from drafters.chat import chat_opening, stop_tokens
from drafters.errors import UserError, exit_code
from drafters.generate import Generator, Response
from drafters.progress import progress
from drafters.prompts import SPLITS, Prompt, load_prompts, prompt_key, split_of
from drafters.target import load_target, load_tokenizer
from gpu_traces.commands import Parser, whole

FEWEST_GIVEN, MOST_GIVEN = 3, 16
"""Tokens of a prompt that are given; at most half of them."""
SHORTEST = 8  # tokens of a prompt worth keeping
ATTEMPTS = 2.6  # per prompt wanted: half fall into the other half, some do not end


def beginnings(
    prompts: list[Prompt], tokenizer: object, count: int, seed: int
) -> list[tuple[Prompt, list[int]]]:
    """``count`` prompts in random order, over and over, each with its first few tokens."""
    rng, made = np.random.default_rng(seed), []
    while len(made) < count:
        for i in rng.permutation(len(prompts))[: count - len(made)]:
            tokens = tokenizer(prompts[i].text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
            most = max(FEWEST_GIVEN, min(MOST_GIVEN, len(tokens) // 2))
            made.append((prompts[i], tokens[: rng.integers(FEWEST_GIVEN, most + 1)]))
    return made


def invent(args: argparse.Namespace) -> None:
    """Write up to ``--count`` prompts, by rename."""
    if Path(args.out).exists():
        print(f"{args.out} is there already", file=sys.stderr)
        return
    tokenizer = load_tokenizer(args.target)
    target = load_target(args.target, getattr(torch, args.dtype), args.device)
    opening, stops = chat_opening(tokenizer), stop_tokens(args.target, tokenizer)
    prompts = load_prompts(args.prompts, args.split)
    queue, given = [], {}
    begun = beginnings(prompts, tokenizer, int(ATTEMPTS * args.count), args.seed)
    for i, (prompt, start) in enumerate(begun):
        name = f"{prompt.key}/invented/{i}"
        queue.append(Response(name, prompt.domain, "invented", 1.0, [*opening, *start]))
        given[name] = start
    generator = Generator(target, stops, args.slots, args.max_new, args.seed)
    kept: dict[str, dict[str, str]] = {}
    with progress() as bar:
        task = bar.add_task("prompts", total=args.count)
        for response in generator.run(queue):
            text = _prompt(tokenizer, given[response.name], response, stops)
            if text and args.split in ("all", split_of(text)):
                row = {"domain": response.domain, "dataset": "invented", "prompt": text}
                kept[prompt_key(text)] = row
                bar.update(task, completed=len(kept))
            if len(kept) == args.count:
                break
    if not kept:
        raise UserError("the target ended no invented prompt; allow more --max-new or --count")
    _write(Path(args.out), [kept[key] for key in sorted(kept)])
    print(f"wrote {args.out}: {len(kept)} prompts of {len(queue)} attempts")


def _prompt(
    tokenizer: object, start: list[int], response: Response, stops: frozenset[int]
) -> str | None:
    """The made-up turn, or None where it did not end or is too short."""
    *body, last = response.response_tokens
    if last not in stops or len(start) + len(body) < SHORTEST:
        return None
    return tokenizer.decode([*start, *body], skip_special_tokens=True).strip() or None  # type: ignore[attr-defined, no-any-return]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.invent", __doc__)
    add = made.add_argument
    add("--target", default="smollm2-135m", help="fetched name, folder or hub id")
    add("--prompts", nargs="+", required=True, help="JSONL files or folders to begin from")
    add("--out", required=True, help="JSONL file of prompts; one that is there is kept")
    add("--split", choices=SPLITS, default="train", help="half of the prompts")
    add("--count", type=whole(1), default=4000, help="prompts at most")
    add("--max-new", type=whole(1), default=96, help="tokens of a prompt at most")
    add("--slots", type=whole(1), default=128, help="prompts made at once")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="dtype")
    add("--device", default="cpu", help="torch device")
    add("--seed", type=whole(0), default=0, help="seed of every draw")
    return made


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: invent(parser().parse_args(argv)), "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
