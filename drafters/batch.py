"""Ragged batches: the tokens of many sequences in one flattened axis, for one target pass.

Projections and feed-forward parts run on the flattened tokens, so a pass costs what its tokens
cost. Only attention sees sequences; on a slot cache it runs group by group, each group padded to
its longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CALL = 3000  # an attention call's fixed cost, in pairs of a query and a cached position


class Group(NamedTuple):
    """Sequences in consecutive slots whose attention is one padded call."""

    tokens: slice
    """Their tokens in the flattened axis."""
    slots: slice
    span: int
    """Cached positions that the farthest query may see."""
    padded: Tensor | None
    """[n, q] index into the group's tokens; None where every sequence has q tokens."""
    flat: Tensor | None
    """[tokens] index into the padded [n * q] rows."""
    mask: Tensor
    """[n, q, span] True where a query may look."""


@dataclass(frozen=True)
class Batch:
    """T flattened tokens; sequences are contiguous and in slot order."""

    tokens: Tensor
    """[T]"""
    positions: Tensor
    """[T] absolute position in the sequence."""
    slots: Tensor
    """[T] cache slot of each token's sequence."""
    groups: tuple[Group, ...]


def make_batch(
    tokens: Tensor, starts: list[int], counts: list[int], together: int | None = None
) -> Batch:
    """The batch of sequences in slots 0, 1, ..: ``counts`` new tokens each, the first at position
    ``starts``. Neighbours among the first ``together`` sequences (default: all) share a padded
    attention call where that is cheaper; the others, long and of different lengths, get one each.
    """
    device = tokens.device
    start, count = torch.tensor([starts, counts], device=device)
    slots = torch.repeat_interleave(torch.arange(len(counts), device=device), count)
    first = count.cumsum(0) - count
    positions = torch.arange(tokens.numel(), device=device) - (first - start)[slots]
    shared = len(counts) if together is None else together
    bounds = [*_starts(starts[:shared], counts[:shared]), *range(shared, len(counts) + 1)]
    groups, at = [], 0
    for low, high in zip(bounds, bounds[1:], strict=False):
        used = sum(counts[low:high])
        if used:
            groups.append(_group(starts[low:high], counts[low:high], at, low, positions))
        at += used
    return Batch(tokens, positions, slots, tuple(groups))


def _starts(starts: list[int], counts: list[int]) -> list[int]:
    """Where to begin a new group: a sequence joins the one before unless the padding that it brings
    costs more than a call of its own."""
    made, size, width, span = [], 0, 0, 0
    for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
        wide, far = max(width, count), max(span, start + count)
        alone = CALL + count * (start + count)
        if not made or (size + 1) * wide * far - size * width * span > alone:
            made.append(i)
            size, wide, far = 0, count, start + count
        size, width, span = size + 1, wide, far
    return made


def _group(starts: list[int], counts: list[int], at: int, slot: int, positions: Tensor) -> Group:
    tokens, width = slice(at, at + sum(counts)), max(counts)
    mine = positions[tokens]
    span = max(s + c for s, c in zip(starts, counts, strict=True))
    seen = torch.arange(span, device=positions.device)
    slots = slice(slot, slot + len(counts))
    if min(counts) == width:
        mask = seen <= mine.view(len(counts), width, 1)
        return Group(tokens, slots, span, None, None, mask)
    count = torch.tensor(counts, device=positions.device)
    column = torch.arange(width, device=positions.device)
    real = column < count.unsqueeze(1)
    first = (count.cumsum(0) - count).unsqueeze(1)
    padded = first + torch.minimum(column, count.unsqueeze(1) - 1)
    mask = seen <= mine[padded].unsqueeze(-1)
    return Group(tokens, slots, span, padded, real.flatten().nonzero().squeeze(1), mask)
