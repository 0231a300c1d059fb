"""Toy worlds of two tokens, small enough to enumerate: what ``policies.audit`` runs policies in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from policies.base import Floats
from policies.cost import CostTable

Tokens = tuple[int, ...]
VOCABULARY = 2


@dataclass(frozen=True)
class Toy:
    """A world of two tokens; the functions map (row, prefix) to a law, or to a confidence."""

    name: str
    rows: int
    gamma: int
    cost: CostTable
    target: Callable[[int, Tokens], Floats]
    drafter: Callable[[int, Tokens], Floats]
    confidence: Callable[[int, Tokens], float]
    steps: int = 1
    """Engine steps to enumerate; what is then missing of ``horizon`` comes from the target."""

    @property
    def horizon(self) -> int:
        """Output tokens per row whose joint law is compared."""
        return self.gamma * self.steps


def curve_cost(gamma: int, rows: int, rates: list[float]) -> CostTable:
    """Free drafting and ``rates[B]`` steps per second with B drafts on board."""
    seconds = np.concatenate((np.full(rows, 1.0 / rates[0]), 1.0 / np.array(rates)))
    return CostTable(np.zeros((gamma + 1, rows + 1)), seconds)


def appendix_a() -> Toy:
    """The paper's counterexample."""
    return Toy(
        name="appendix A",
        rows=1,
        gamma=2,
        cost=curve_cost(2, 1, [1.0, 0.5, 0.45]),
        target=lambda row, prefix: np.array([0.7, 0.3]),
        drafter=lambda row, prefix: np.array([0.5, 0.5]),
        confidence=lambda row, prefix: 0.8 if not prefix else float(prefix[0] == 0),
    )


def random_toy(seed: int, rows: int, steps: int) -> Toy:
    """Random laws per prefix, true acceptance as confidence, and a curve with uneven stairs."""

    @cache
    def laws(row: int, prefix: Tokens) -> tuple[Floats, Floats]:
        rng = np.random.default_rng([seed, row, len(prefix), *prefix])
        target, noise = rng.dirichlet((0.7, 0.7)), rng.dirichlet((0.7, 0.7))
        share = rng.uniform(0.0, 1.0)
        return target, share * target + (1.0 - share) * noise

    rng = np.random.default_rng(seed)
    stairs = 1.0 + np.cumsum(rng.uniform(0, 0.8, 2 * rows + 1) * rng.integers(0, 2, 2 * rows + 1))
    return Toy(
        name=f"random {seed}",
        rows=rows,
        gamma=2,
        cost=curve_cost(2, rows, list(1.0 / stairs)),
        target=lambda row, prefix: laws(row, prefix)[0],
        drafter=lambda row, prefix: laws(row, prefix)[1],
        confidence=lambda row, prefix: float(np.minimum(*laws(row, prefix)).sum()),
        steps=steps,
    )


def toys() -> list[Toy]:
    """The worlds of the published table: appendix A, one row for two steps, two rows for one."""
    single = [random_toy(seed, rows=1, steps=2) for seed in range(4)]
    return [appendix_a(), *single, *(random_toy(seed, rows=2, steps=1) for seed in range(4, 12))]
