"""Decode prompts live under a verification policy: ``python -m drafters.decode --help``.

    python -m drafters.decode --policy policy.json --drafter FOLDER --prompts FILE --concurrency 8

Closed loop: a new request arrives whenever fewer than ``--concurrency`` run; with ``--arrivals``
requests arrive when the file says, as in the simulator. Prints what happened and writes a folder
with ``live_steps.parquet``, ``live_requests.parquet``, ``responses.jsonl`` and ``manifest.json``;
also when it is interrupted or a step fails, with what was measured until then.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import drafters
from drafters.base import Drafter
from drafters.chat import encode_chat, stop_tokens
from drafters.devices import usable
from drafters.engine import Engine, EngineConfig
from drafters.errors import UserError, exit_code
from drafters.generate import spread
from drafters.graphs import wanted
from drafters.limits import check, check_live, in_memory, too_large
from drafters.policy_choice import Choice, choose, gamma_of, named
from drafters.progress import progress
from drafters.prompts import SPLITS, Prompt, load_prompts
from drafters.provenance import measured
from drafters.records import PARTS, request_columns
from drafters.request import Running
from drafters.target import Target, load_target, load_tokenizer
from drafters.traffic import heat_of, make_requests, read_arrivals
from gpu_traces.bundle import check_place, write_bundle
from gpu_traces.commands import Parser, at_least_zero, whole


@dataclass
class Stop:
    """Set by Ctrl-C or SIGTERM; ``serve`` ends after the step that is under way."""

    asked: bool = False
    measuring: bool = True
    """Until ``serve`` has ended: a second Ctrl-C then interrupts at once. Afterwards what was
    measured is being written, and neither signal stops that."""

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Catch both signals."""
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

        def ask(number: int, frame: object) -> None:
            again, self.asked = self.asked, True
            if again and self.measuring and number == signal.SIGINT:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, ask)
        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before[0])
            signal.signal(signal.SIGTERM, before[1])


def serve(engine: Engine, stop: Stop) -> None:
    """Step until nothing is left or a stop is asked for, showing how far it is; a second Ctrl-C
    leaves the step that is under way out of the log."""
    total = len(engine.line.arriving) + len(engine.ended)
    with progress() as bar:
        task = bar.add_task("requests", total=total, completed=len(engine.ended))
        try:
            while engine.busy and not stop.asked:
                engine.step()
                bar.update(task, completed=len(engine.ended))
        except KeyboardInterrupt:
            stop.asked = True
        finally:
            stop.measuring = False


def summarise(engine: Engine, wall_s: float) -> dict[str, Any]:
    """What a run did, in numbers; tokens per round counts the bonus token."""
    rows = [row for row in engine.everyone() if not row.reason and row.generated]
    rounds, verified, accepted = (
        sum(getattr(row, name) for row in rows) for name in ("rounds", "verified", "accepted")
    )
    output = sum(row.generated for row in rows)
    decoded = output - len(rows)
    return {
        "requests_completed": sum(row.done for row in rows),
        "requests_failed": sum(bool(row.reason) for row in engine.ended),
        "wall_s": wall_s,
        "engine_steps": len(engine.log),
        "output_tokens": output,
        "output_tok_s": output / wall_s if wall_s else 0.0,
        "rounds": rounds,
        "tokens_per_round": decoded / rounds if rounds else 0.0,
        "verified_tokens": verified,
        "accepted_tokens": accepted,
        "wasted_tokens": verified - accepted,
        "step_ms": {part: engine.log.mean_ms(part) for part in PARTS},
    }


def table(done: dict[str, Any], failed: Sequence[Running]) -> str:
    """The summary as text."""
    step = done["step_ms"]
    split = ", ".join(f"{part} {step[part]:.2f}" for part in PARTS)
    lines = [
        f"requests        {done['requests_completed']} completed, {done['requests_failed']} failed",
        f"output          {done['output_tokens']} tokens in {done['wall_s']:.1f} s,"
        f" {done['output_tok_s']:.1f} tok/s",
        f"rounds          {done['rounds']}, {done['tokens_per_round']:.3f} tokens per round",
        f"draft tokens    {done['verified_tokens']} verified, {done['accepted_tokens']} accepted,"
        f" {done['wasted_tokens']} wasted",
        f"mean step       {sum(step.values()):.2f} ms ({split}), {done['engine_steps']} steps",
    ]
    lines += [f"failed          {row.request.name}: {row.reason}" for row in failed]
    return "\n".join(lines)


def write(
    args: argparse.Namespace, engine: Engine, domains: tuple[str, ...], texts: list[dict[str, Any]]
) -> None:
    """The run's folder, whole or not at all."""
    manifest = measured(
        args.out,
        args.target,
        args.drafter,
        args.device,
        gamma=engine.gamma,
        temperatures=tuple(sorted({s.request.temperature for s in engine.everyone()})),
        domains=domains,
        command=" ".join(args.command_line),
        seed=args.seed,
        notes=f"live run under policy {args.policy}",
        live={
            "policy": args.policy,
            "max_requests": engine.config.max_requests,
            "max_step_tokens": engine.config.max_step_tokens,
            "kv_tokens": engine.config.kv_tokens,
            "max_new": args.max_new,
            "open_loop": any(s.request.arrival_s is not None for s in engine.everyone()),
        },
    )
    tables = {
        "live_steps": engine.log.columns,
        "live_requests": request_columns(engine.everyone()),
    }
    lines = "".join(json.dumps(row) + "\n" for row in texts)
    beside = {"responses.jsonl": lines}
    write_bundle(args.out, manifest, tables, texts=beside, force=args.force)


def load_models(args: argparse.Namespace) -> tuple[Target, Drafter | None]:
    """Target and drafter; none for the policy ``none``, which drafts nothing."""
    if not args.drafter and args.policy != "none":
        raise UserError(
            f"policy {args.policy!r} needs --drafter (a folder, a shipped name or 'ngram')"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    target = load_target(args.target, getattr(torch, args.dtype), args.device)
    return target, drafters.load(args.drafter, target) if args.drafter else None


def build(args: argparse.Namespace) -> tuple[Engine, Choice, list[Prompt]]:
    """The engine with all requests submitted."""
    check_place(args.out, args.force)
    args.device = usable(args.device)
    prompts = spread(load_prompts(args.prompts, args.split), args.limit)
    arrivals = read_arrivals(args.arrivals) if args.arrivals else []
    target, drafter = load_models(args)
    graphs = wanted(args.graphs, args.device)
    config = EngineConfig(
        max_requests=args.concurrency,
        max_step_tokens=args.max_step_tokens,
        max_context=args.max_context,
        kv_tokens=args.kv_tokens,
        paged=args.paged,
        graphs=graphs,
        seed=args.seed,
    )
    check(config, gamma_of(drafter), target)
    hot = any(heat_of(prompt, args.temperature) > 0 for prompt in prompts)
    check_live(named(args.policy, gamma_of(drafter)), hot and not args.allow_anticipating)
    choice = choose(args.policy, target, drafter, args.bundle, graphs, args.concurrency)
    tokenizer = load_tokenizer(args.target)
    stops = stop_tokens(args.target, tokenizer)
    engine = Engine(target, drafter, choice.policy, choice.cost, config, stops, choice.calibration)
    encoded = [encode_chat(tokenizer, prompt.text) for prompt in prompts]
    for request in make_requests(
        prompts, encoded, arrivals, choice.names_of(prompts), args.max_new, args.temperature
    ):
        engine.submit(request)
    return engine, choice, prompts


def run(args: argparse.Namespace) -> int:
    """Decode, write, print; 130 when interrupted. What was measured is written whatever ends it."""
    engine, choice, prompts = build(args)
    print(f"policy {choice.policy.name}; cost table: {choice.cost_origin}", file=sys.stderr)
    stop, failure = Stop(), None
    with stop.on_signals():
        engine.start()
        try:
            with in_memory(too_large(engine.config)):
                serve(engine, stop)
        except Exception as error:
            failure = error
        done = summarise(engine, engine.now_s())
        write(args, engine, choice.names_of(prompts), texts_of(engine, load_tokenizer(args.target)))
    print(table(done, [row for row in engine.ended if row.reason]))
    print(f"wrote {args.out}")
    if args.json:
        print(json.dumps({"policy": args.policy, "out": str(args.out), **done}))
    if failure is not None:
        raise failure
    if not done["requests_completed"] and not stop.asked:
        return 1
    return 130 if stop.asked else 0


def texts_of(engine: Engine, tokenizer: Any) -> list[dict[str, Any]]:
    """What each request said, by request id."""
    return [
        {
            "request_id": row.request.request_id,
            "name": row.request.name,
            "text": tokenizer.decode(row.output, skip_special_tokens=True),
        }
        for row in sorted(engine.everyone(), key=lambda row: row.request.request_id)
    ]


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = Parser("python -m drafters.decode", __doc__)

    def add(name: str, default: Any = None, help: str = "", **rest: Any) -> None:
        made.add_argument(name, default=default, help=help, **rest)

    add("--policy", required=True, help="policy.json, or name:parameter=value;...")
    add("--target", "smollm2-135m", "fetched name, local folder or hub id")
    add("--drafter", "", "checkpoint folder, shipped name or 'ngram'")
    add("--prompts", nargs="+", required=True, help="JSONL files or folders")
    add("--split", "all", "half of the prompts", choices=SPLITS)
    add("--limit", 0, "prompts at most, the domains in turn; 0: all", type=whole(0))
    add("--concurrency", 8, "requests that run at once", type=whole(1))
    add("--arrivals", None, "CSV or Parquet with arrival_s, seconds; prompts in turn", type=Path)
    add("--temperature", 0.0, "sampling temperature of prompts that state none; 0: greedy",
        type=at_least_zero)  # fmt: skip
    add("--max-new", 256, "output tokens of a request at most", type=whole(1))
    add("--max-context", 2048, "tokens of a request at most, prompt and output", type=whole(2))
    add("--max-step-tokens", 2048, "target tokens of one step at most", type=whole(1))
    add("--kv-tokens", 0, "tokens that the KV cache holds; 0: all that may run at once",
        type=whole(0))  # fmt: skip
    add("--paged", False, action="store_true", help="keep keys in blocks instead of slots")
    add("--graphs", None, "run steps as captured CUDA graphs, keys in blocks; on with CUDA",
        action=argparse.BooleanOptionalAction)  # fmt: skip
    add("--bundle", "", "trace bundle that gives calibration and cost table; without the"
        " latter the engine profiles itself")  # fmt: skip
    add("--allow-anticipating", False, action="store_true",
        help="let a policy that biases sampled text run at temperature > 0")  # fmt: skip
    add("--seed", 0, "seed of every draw", type=whole(0))
    add("--out", Path("live_run"), "folder to write", type=Path)
    add("--force", False, action="store_true", help="overwrite --out")
    add("--json", False, action="store_true", help="last line of stdout is one JSON document")
    add("--dtype", "float32", "precision", choices=("float32", "bfloat16"))
    add("--device", "cpu", "torch device")
    add("--threads", 0, "CPU threads; 0: torch's choice", type=whole(0))
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when no request was completed; 2 after one line on stderr; 130 when
    interrupted, with results written."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.command_line = ["python -m drafters.decode", *argv]
    return exit_code(lambda: run(args), "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
