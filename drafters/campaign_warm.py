"""Compile what policies need, ahead of live runs: ``python -m drafters.campaign_warm POLICY ...``.

Policies are compiled when they first plan, which takes seconds to a minute; numba keeps the result
on disk. Here every policy plans for tiny models on the CPU, with the types that a live run gives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch

from drafters.engine import Engine, EngineConfig
from drafters.policy_choice import choose
from drafters.request import Request
from drafters.shapes import random_drafter, random_target
from gpu_traces.bundle import default_bundle

REQUESTS, NEW_TOKENS = 3, 12


def warm(policies: Iterable[str], bundle: str = "") -> None:
    """Let each of ``policies`` (as ``drafters.decode --policy``) decode a few tokens, at the costs
    of a trace ``bundle``; empty: the one that ``sim.run`` takes."""
    with torch.random.fork_rng(devices=[]):
        target = random_target("tiny", torch.float32, "cpu")
        drafter = random_drafter("dspark-1L", target)
    for name in policies:
        choice = choose(name, target, drafter, bundle or default_bundle())
        config = EngineConfig(max_requests=REQUESTS, max_context=32)
        engine = Engine(target, drafter, choice.policy, choice.cost, config)
        for i in range(REQUESTS):
            engine.submit(Request(request_id=i, name=str(i), prompt=(1, 2), max_new=NEW_TOKENS))
        while engine.busy:
            engine.step()


def main(argv: list[str] | None = None) -> int:
    """Exit code 0."""
    names = sys.argv[1:] if argv is None else argv
    warm(names)
    print(f"compiled {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
