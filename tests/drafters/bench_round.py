"""What DSpark's sequential head takes of a round, in one run.

    python -m tests.drafters.bench_round --drafter FOLDER

Timed by turns, in the live loop's own code: a full verification pass, the draft, and the draft of
the same block without its heads, as DFlash draws it. Medians; greedy.
"""

import argparse
import copy
import random
import statistics
from dataclasses import replace

import torch

import drafters
from drafters.block import BlockDrafter
from drafters.grids import Cell, Grid
from drafters.profile import Profiler
from drafters.target import load_target


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--target", default="smollm2-135m")
    made.add_argument("--drafter", default="dspark-smollm2-135m")
    made.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    made.add_argument("--context", type=int, default=256, help="cached tokens per request")
    made.add_argument("--rounds", type=int, default=25)
    made.add_argument("--device", default="cpu")
    args = made.parse_args()

    target = load_target(args.target, torch.bfloat16, args.device)
    drafter = drafters.load(args.drafter, target)
    graphs = args.device != "cpu"
    print("| requests | round, ms | draft, ms | without heads, ms | heads' share |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for requests in args.requests:
        shapes = Grid((requests,), (drafter.gamma + 1,), (args.context,), (args.context,), 10**9)
        with_heads = Profiler(target, drafter, shapes, graphs)
        without = Profiler(target, headless(drafter), shapes, graphs)
        draft = Cell("draft", requests, 0, args.context, drafter.gamma)
        verify = Cell("verify", requests, requests * (drafter.gamma + 1), args.context)
        ms = medians(
            {
                "verify": (with_heads, verify),
                "draft": (with_heads, draft),
                "block": (without, draft),
            },
            args.rounds,
        )
        whole = ms["verify"] + ms["draft"]
        cells = [f"{whole:.1f}", f"{ms['draft']:.2f}", f"{ms['block']:.2f}"]
        share = (ms["draft"] - ms["block"]) / whole
        print(f"| {requests} | {' | '.join(cells)} | {share:.1%} |", flush=True)


def headless(drafter: BlockDrafter) -> BlockDrafter:
    """The same weights, drawing from the block's logits alone."""
    twin = copy.copy(drafter)
    twin.config = replace(drafter.config, markov_rank=0, confidence_head=False)
    return twin


@torch.no_grad()
def medians(work: dict[str, tuple[Profiler, Cell]], rounds: int) -> dict[str, float]:
    """Milliseconds of each cell; a new order every round, two rounds to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    order = random.Random(0)
    for at in range(-2, rounds):
        for name in order.sample(list(work), len(work)):
            profiler, cell = work[name]
            seconds = profiler.seconds(profiler.prepare(cell))
            if at >= 0:
                spent[name].append(1e3 * seconds)
    return {name: statistics.median(times) for name, times in spent.items()}


if __name__ == "__main__":
    main()
