"""Shapes whose step time is measured: grids of (requests, tokens, context), as cells."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from drafters.errors import UserError


@dataclass(frozen=True)
class Grid:
    """Shapes to measure, and how often."""

    requests: tuple[int, ...]
    block: tuple[int, ...]
    """Tokens per request in a verification pass: the anchor and its drafts."""
    contexts: tuple[int, ...]
    """Cached tokens per request."""
    prefill: tuple[int, ...]
    """Prompt tokens prefilled in one pass."""
    most_cached: int
    """Leave out cells with more cached tokens than this, all requests together."""
    repetitions: int = 5


GRIDS = {
    "tiny": Grid((1, 2, 4), (1, 4), (8, 16), (8, 16), 64, repetitions=3),
    "quick": Grid((1, 4, 16), (1, 2, 3, 4, 6, 8), (256,), (128, 512), 8192, repetitions=3),
    "cpu": Grid((1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8), (128, 384, 1024), (32, 128, 512), 16384),
    "short": Grid(
        (1, 2, 4, 8, 16, 32, 64, 128), (1, 2, 3, 4, 6, 8), (256, 1024), (128, 512, 2048), 131072
    ),
    "cuda": Grid(
        (1, 2, 4, 8, 16, 32, 64, 128, 256),
        (1, 2, 3, 4, 6, 8),
        (256, 1024, 4096),
        (128, 512, 2048, 8192),
        524288,
        repetitions=15,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One shape; fields are columns of the ``steps`` table."""

    mode: str
    requests: int
    tokens: int
    context_tokens: int
    draft_length: int = 0
    ragged: bool = False


def grid(name: str) -> Grid:
    """A named grid; UserError lists the known ones."""
    if name not in GRIDS:
        raise UserError(f"unknown grid {name!r}; known: {', '.join(GRIDS)}")
    return GRIDS[name]


def up_to(shapes: Grid, requests: int) -> Grid:
    """The grid for at most so many requests at once: larger counts left out, and four times the
    largest one added until it is reached."""
    counts = [count for count in shapes.requests if count < requests]
    while counts and 4 * counts[-1] < requests:
        counts.append(4 * counts[-1])
    most = max(shapes.most_cached, requests * min(shapes.contexts))
    return replace(shapes, requests=(*counts, requests), most_cached=most)


def cells(shapes: Grid, gamma: int) -> list[Cell]:
    """Every cell of a grid for blocks of up to ``gamma`` drafts (0: no drafter)."""
    made = []
    for r, context in itertools.product(shapes.requests, shapes.contexts):
        if r * context > shapes.most_cached:
            continue
        blocks = sorted({b for b in shapes.block if b <= gamma} | {gamma + 1})
        made += [Cell("verify", r, r * b, context) for b in blocks]
        if r > 1 and max(blocks) > 2:
            made.append(Cell("verify", r, r * (max(blocks) // 2), context, ragged=True))
        made += [
            Cell("draft", r, 0, context, k) for k in sorted({1, (gamma + 1) // 2, gamma}) if gamma
        ]
    made += [Cell("prefill", 1, tokens, 0) for tokens in shapes.prefill]
    if gamma:
        made += [Cell("refill", 1, tokens, 0) for tokens in shapes.prefill]
    return made


def lengths_of(cell: Cell) -> list[int]:
    """Draft tokens per request of a verification cell: even, or as uneven as they can be."""
    each = cell.tokens // cell.requests - 1
    if not cell.ragged:
        return [each] * cell.requests
    return [0 if i % 2 else 2 * each for i in range(cell.requests - cell.requests % 2)] + [each] * (
        cell.requests % 2
    )
