"""Sample the target's own responses: ``python -m drafters.generate --prompts ... --out F.jsonl``.

Continuous batching over a fixed number of cache slots. Output is one JSON line per response,
appended as responses finish, so a run can be stopped at any moment and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drafters.chat import encode_chat, stop_tokens
from drafters.errors import UserError, exit_code, naming
from drafters.progress import progress
from drafters.prompts import SPLITS, Prompt, load_prompts, rows
from drafters.resume import check_same, models
from drafters.sampling import greedy, request_uniforms, sample
from drafters.target import Target, load_target, load_tokenizer
from gpu_traces.commands import Parser, at_least_zero, whole


@dataclass
class Response:
    """A prompt and what the target answered at one temperature."""

    name: str
    domain: str
    dataset: str
    temperature: float
    prompt_tokens: list[int]
    response_tokens: list[int] = field(default_factory=list)


class Generator:
    """Answers a queue of unfinished responses, ``slots`` at a time."""

    def __init__(
        self, target: Target, stops: frozenset[int], slots: int, max_new: int, seed: int
    ) -> None:
        self.target, self.stops, self.max_new, self.seed = target, stops, max_new, seed
        self.admit_together = max(1, slots // 16)
        self.rows: list[Response | None] = [None] * slots
        device = target.norm.weight.device
        self.uniforms = torch.zeros(slots, max_new, dtype=torch.float64, device=device)
        self.temperatures = torch.zeros(slots, device=device)
        self.last = torch.zeros(slots, dtype=torch.long, device=device)
        self.lengths, self.drawn = torch.zeros_like(self.last), torch.zeros_like(self.last)

    @torch.no_grad()
    def run(self, queue: list[Response], seconds: float = math.inf) -> Iterator[Response]:
        """Yield each response as it finishes (stop token included, or ``max_new`` reached).

        None is begun after ``seconds``, but all that were are finished: to drop those would favour
        the short ones.
        """
        waiting, deadline = deque(queue), time.monotonic() + seconds
        longest = max(len(r.prompt_tokens) for r in queue)
        self.cache = self.target.new_cache(len(self.rows), longest + self.max_new)
        while waiting or any(self.rows):
            if time.monotonic() > deadline:
                waiting.clear()
            yield from self._admit(waiting)
            if any(self.rows):
                yield from self._decode()

    def _admit(self, waiting: deque[Response]) -> Iterator[Response]:
        """Prefill when a sixteenth of the slots is free: few and large passes."""
        free = [s for s, row in enumerate(self.rows) if row is None]
        count, together = min(len(free), len(waiting)), self.admit_together
        if not count or (count < together and len(waiting) > count and any(self.rows)):
            return
        for start in range(0, count, together):
            chosen = free[start : min(start + together, count)]
            yield from self._prefill(chosen, [waiting.popleft() for _ in chosen])

    def _prefill(self, slots: list[int], rows: list[Response]) -> Iterator[Response]:
        device, sizes = self.last.device, [len(r.prompt_tokens) for r in rows]
        tokens = torch.zeros(len(rows), max(sizes), dtype=torch.long)
        uniforms = [request_uniforms(self.seed, r.name, self.max_new) for r in rows]
        for i, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            tokens[i, : sizes[i]] = torch.tensor(row.prompt_tokens)
            self.rows[slot] = row
        where = torch.tensor(slots, device=device)
        self.uniforms[where] = torch.from_numpy(np.stack(uniforms)).to(device)
        self.temperatures[where] = torch.tensor([r.temperature for r in rows], device=device)
        self.lengths[where] = torch.tensor(sizes, device=device)
        self.drawn[where] = 0
        positions = torch.arange(max(sizes), device=device).expand(len(rows), -1)
        hidden = self.target(tokens.to(device), positions, self.cache, where, fresh=True).hidden
        ends = torch.arange(len(rows), device=device), self.lengths[where] - 1
        yield from self._extend(where, slots, hidden[ends])

    def _decode(self) -> Iterator[Response]:
        used = max(s for s, row in enumerate(self.rows) if row is not None) + 1
        where = torch.arange(used, device=self.last.device)
        positions = self.lengths[:used].unsqueeze(1)
        hidden = self.target(self.last[:used, None], positions, self.cache, where).hidden[:, 0]
        self.lengths[:used] += 1
        yield from self._extend(where, range(used), hidden)

    def _extend(self, where: Tensor, slots: Iterable[int], hidden: Tensor) -> Iterator[Response]:
        """Give each of ``slots`` the next token of its response; free those that are done. Empty
        slots among them compute along, unread."""
        logits, heat = self.target.lm_head(hidden), self.temperatures[where]
        chosen, hot = greedy(logits), (heat > 0).nonzero().squeeze(1)
        if len(hot):
            mine = where[hot]
            u = self.uniforms[mine, self.drawn[mine].clamp_max(self.max_new - 1)]
            chosen[hot] = sample(torch.softmax(logits[hot].float() / heat[hot, None], -1), u)
        self.last[where], self.drawn[where] = chosen, self.drawn[where] + 1
        ended = []
        for slot, token in zip(slots, chosen.tolist(), strict=True):
            row = self.rows[slot]
            if row is None:
                continue
            row.response_tokens.append(token)
            if token in self.stops or len(row.response_tokens) == self.max_new:
                self.rows[slot] = None
                ended.append(slot)
                yield row
        if ended:
            gone = torch.tensor(ended, device=where.device)
            self.lengths[gone], self.last[gone], self.temperatures[gone] = 0, 0, 0.0


def maker(args: argparse.Namespace) -> dict[str, object]:
    """What decides a response beside its prompt and temperature; written into each row."""
    options = {"dtype": args.dtype, "max_new": args.max_new, "seed": args.seed}
    return models(args.target) | options


def made_before(path: Path, made_by: dict[str, object]) -> set[object]:
    """Names of the responses in ``path``; UserError where something else made them."""
    whole_lines(path)
    names = set()
    for _, row in rows(path) if path.exists() else ():
        check_same(row.get("made_by"), made_by, path)
        names.add(row.get("name"))
    return names


def plan(args: argparse.Namespace, tokenizer: object, done: set[object]) -> list[Response]:
    """Every (prompt, temperature, sample) asked for whose name is not ``done``, shuffled."""
    queue, too_long = [], 0
    for prompt in spread(load_prompts(args.prompts, args.split), args.limit):
        tokens = encode_chat(tokenizer, prompt.text)
        if len(tokens) > args.max_prompt:
            too_long += 1
            continue
        for temperature, count in ((0.0, args.greedy), (1.0, args.samples)):
            for i in range(count):
                name = f"{prompt.key}/T{temperature:g}/{i}"
                if name not in done:
                    queue.append(Response(name, prompt.domain, prompt.dataset, temperature, tokens))
    if too_long:
        print(f"skipped {too_long} prompts of over {args.max_prompt} tokens", file=sys.stderr)
    if too_long and not queue and not done:
        raise UserError(f"no prompt has at most --max-prompt {args.max_prompt} tokens")
    np.random.default_rng(args.seed).shuffle(queue)  # type: ignore[arg-type]
    return queue


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that a run killed in the middle of one may have left; that one is cut off."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return whole.decode().splitlines()


def spread(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """At most ``limit`` prompts (0: all), the domains taken in turn, each in order of its keys."""
    if not limit:
        return prompts
    by_domain: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: p.key):
        by_domain.setdefault(prompt.domain, []).append(prompt)
    turns = zip_longest(*(by_domain[d] for d in sorted(by_domain)))
    return [p for turn in turns for p in turn if p is not None][:limit]


def generate(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.target)
    made_by = maker(args)
    queue = plan(args, tokenizer, made_before(Path(args.out), made_by))
    if not queue:
        print("nothing left to do", file=sys.stderr)
        return
    target = load_target(args.target, getattr(torch, args.dtype), args.device)
    stops = stop_tokens(args.target, tokenizer)
    generator = Generator(target, stops, args.slots, args.max_new, args.seed)
    tokens, started = 0, time.monotonic()
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with naming(args.out), open(args.out, "a", encoding="utf-8") as out, progress() as bar:
        task = bar.add_task("responses", total=len(queue))
        for response in generator.run(queue, args.seconds or math.inf):
            out.write(json.dumps(asdict(response) | {"made_by": made_by}) + "\n")
            out.flush()
            tokens += len(response.response_tokens)
            rate = tokens / (time.monotonic() - started)
            bar.update(task, advance=1, description=f"responses {tokens:,} tokens {rate:.0f}/s")
            if args.tokens and tokens >= args.tokens:
                break


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.generate", __doc__)
    made.add_argument("--target", default="smollm2-135m", help="fetched name, folder or hub id")
    made.add_argument("--prompts", nargs="+", required=True, help="JSONL files or folders")
    made.add_argument("--out", required=True, help="JSONL file to append responses to")
    made.add_argument("--split", choices=SPLITS, default="train", help="half of the prompts")
    made.add_argument("--limit", type=whole(0), default=0, help="prompts at most; 0: all")
    made.add_argument("--samples", type=whole(0), default=2, help="responses per prompt at T = 1")
    made.add_argument("--greedy", type=whole(0), default=1, help="responses per prompt at T = 0")
    made.add_argument("--tokens", type=whole(0), default=0, help="stop after so many; 0: all")
    made.add_argument("--seconds", type=at_least_zero, default=0, help="begin none after; 0: all")
    made.add_argument("--max-new", type=whole(1), default=320, help="response tokens at most")
    made.add_argument("--max-prompt", type=whole(1), default=448, help="longest prompt, tokens")
    made.add_argument("--slots", type=whole(1), default=128, help="responses generated at once")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="dtype")
    made.add_argument("--device", default="cpu", help="torch device")
    made.add_argument("--seed", type=whole(0), default=0, help="seed of every draw")
    return made


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: generate(parser().parse_args(argv)), "stopped; run the same command again to go on"
    )


if __name__ == "__main__":
    sys.exit(main())
