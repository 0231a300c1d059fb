"""The best laws that a draft position can have when it sees less than the target does.

A draft of law q is accepted with probability overlap(q, p) = sum_v min(q_v, p_v) = 1 - TV(q, p)
where the target's law is p. A parallel block has one q for a position, whatever was drawn before
it, while p depends on what was drawn; a vanilla Markov head moves q by a table of the token before.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, RATE = 80, 0.2
"""Of Adam, for ``markov_law``: 300 smaller steps add about 0.003 of overlap on what is fitted, none
on what is not."""
HALVINGS = 30
TINY = 1e-9


def overlap(q: Tensor, p: Tensor) -> Tensor:
    """[...] acceptance of drafts of law ``q`` [..., S] where the target's is ``p`` [..., S]."""
    return torch.minimum(q, p).sum(-1)


def parallel_law(laws: Tensor) -> Tensor:
    """q [S] with the largest mean overlap with ``laws`` [M, S], each summing to at most 1.

    The mean overlap is concave in q, and its slope in q_v is the share of laws above q_v. At the
    optimum that share is the same for all v: q_v is one quantile of the M values of v, the
    quantile at which q sums to 1.
    """
    ascending = laws.sort(0).values
    below = torch.cat((torch.zeros_like(ascending[:1]), ascending))
    low, high = 0.0, float(len(laws))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(_between(below, middle).sum()) > 1:
            high = middle
        else:
            low = middle
    return _between(below, low)


def _between(rows: Tensor, height: float) -> Tensor:
    """Row number ``height`` of rows [M + 1, S], linear between two."""
    floor = min(int(height), len(rows) - 2)
    return torch.lerp(rows[floor], rows[floor + 1], height - floor)


def markov_law(laws: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """(b [S], c) with which softmax(b + c shifts) [M, S] overlaps ``laws`` [M, S] most in the mean.

    ``shifts`` [M, S]: what the token before each law adds to the logits. A local optimum, from the
    laws' mean and c = 0.5, by gradient.
    """
    base = laws.mean(0).clamp_min(TINY).log().requires_grad_(True)
    share = laws.new_full((), 0.5).requires_grad_(True)
    optimizer = torch.optim.Adam([base, share], lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = -overlap(torch.softmax(base + share * shifts, -1), laws).mean()
            loss.backward()
            optimizer.step()
    return base.detach(), share.detach()


def ceilings(laws: Tensor, shifts: Tensor) -> dict[str, float]:
    """Bounds of the mean acceptance at one position, over target laws [M, S] after sampled tokens.

    ``*_high`` is reached on the laws that q was fitted to: no less than the ceiling on average,
    since the best q for a sample is at least as good there as the best q for all. ``*_low`` is
    reached on those that it was not fitted to, halves in turn: no more than the ceiling.
    ``parallel``: one law; ``markov``: shifted by the token before.
    """
    even = torch.arange(len(laws), device=laws.device) % 2 == 0
    everything = torch.ones_like(even)
    splits = {"high": [(everything, everything)], "low": [(even, ~even), (~even, even)]}
    result = {}
    for bound, halves in splits.items():
        parallel = [_parallel(laws, *half) for half in halves]
        markov = [_markov(laws, shifts, *half) for half in halves]
        result[f"parallel_{bound}"] = sum(parallel) / len(halves)
        result[f"markov_{bound}"] = sum(markov) / len(halves)
    return result


def _parallel(laws: Tensor, fit: Tensor, judge: Tensor) -> float:
    return float(overlap(parallel_law(laws[fit]), laws[judge]).mean())


def _markov(laws: Tensor, shifts: Tensor, fit: Tensor, judge: Tensor) -> float:
    base, share = markov_law(laws[fit], shifts[fit])
    return float(overlap(torch.softmax(base + share * shifts[judge], -1), laws[judge]).mean())
