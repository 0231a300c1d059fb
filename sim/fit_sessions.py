"""The numbers of the ``agentic`` scenario from recorded sessions of coding agents.

The table has one row a request, in order: session_id, prompt_tokens, output_tokens, prefix_tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.lengths import LEVELS, rounded
from sim.sessions import CACHE_BLOCK_TOKENS

Fit = dict[str, Any]

SESSION_LEVELS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
RESUMED_TOKENS = 120_000
"""Conversations that open with a longer prompt are resumed ones."""
RESET_SHARE = 0.95
"""A prompt that repeats less of the one before has had its context rebuilt."""
CONTEXT_EDGES = (0, 50_000, 100_000, 140_000, 150_000, 160_000, 180_000)
LARGE_RESET = 0.025
"""Chance of a rebuilt context from the last edge on, for fresh conversations. Counted: 0.0186; the
29 longest sessions are missing from the files, and without this prompts grow too long."""
THINK_LEVELS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
THINK_S = (0.5, 1.5, 4, 10, 32, 162, 560, 3014, 14400)
"""Median, 90 % and 99 % of client times as published for the sessions; the others lie between."""


def agentic(requests: pd.DataFrame) -> Fit:
    """Conversations: how they open, how long they last, what each request adds, when they reset."""
    sessions = requests.groupby("session_id", sort=False)
    opening, turns = sessions["prompt_tokens"].first(), sessions.size()
    fresh = opening <= RESUMED_TOKENS
    before = sessions["prompt_tokens"].shift()
    known = before // CACHE_BLOCK_TOKENS * CACHE_BLOCK_TOKENS
    later, prefix = before.notna(), requests["prefix_tokens"]
    reset = later & (prefix < RESET_SHARE * known)
    new = (requests["prompt_tokens"] - prefix)[later & ~reset]
    return {
        "resumed_share": rounded([(~fresh).mean()], 3)[0],
        "levels": list(SESSION_LEVELS),
        "fresh": _kind(opening[fresh], turns[fresh]),
        "resumed": _kind(opening[~fresh], turns[~fresh]),
        "new_tokens": _quantiles(new, LEVELS, 4),
        "output": _quantiles(requests["output_tokens"], LEVELS, 4),
        "reset": _resets(requests, before, later, reset, requests["session_id"].map(fresh)),
        "think_levels": list(THINK_LEVELS),
        "think_s": list(THINK_S),
    }


def _kind(opening: pd.Series[int], turns: pd.Series[int]) -> Fit:
    return {
        "first_prompt": _quantiles(opening, SESSION_LEVELS, 4),
        "turns": _quantiles(turns, SESSION_LEVELS, 3),
    }


def _resets(
    requests: pd.DataFrame, before: pd.Series[float], later: pd.Series[bool],
    reset: pd.Series[bool], fresh: pd.Series[bool],
) -> Fit:  # fmt: skip
    size = np.searchsorted(CONTEXT_EDGES, before.fillna(0), side="right") - 1
    ratio = requests["prompt_tokens"] / before
    sizes = range(len(CONTEXT_EDGES))
    share = [[_share(reset[later & kind & (size == i)]) for i in sizes] for kind in (fresh, ~fresh)]
    share[0][-1] = LARGE_RESET
    ratios = [_quantiles(ratio[reset & (size == i)], SESSION_LEVELS, 3, 0.0) for i in sizes]
    ratios[-1] = ratios[-2]  # what is rebuilt beyond the last edge is too rare to count
    return {
        "from_context_tokens": list(CONTEXT_EDGES),
        "probability": {"fresh": share[0], "resumed": share[1]},
        "size_ratio": ratios,
        "kept_tokens": _quantiles(requests["prefix_tokens"][reset], SESSION_LEVELS, 3),
    }


def _share(found: pd.Series[bool]) -> float:
    return rounded([found.mean()], 3)[0] if len(found) else 0.0


def _quantiles(
    sample: pd.Series[int] | pd.Series[float], levels: Sequence[float], digits: int,
    least: float = 1.0,
) -> list[float]:  # fmt: skip
    return rounded(np.maximum(np.quantile(sample, levels), least), digits)


def session_errors(requests: pd.DataFrame, draws: int = 200) -> dict[str, float]:
    """Standard deviations of the sessions' figures, by drawing the sessions anew (bootstrap)."""
    rng = np.random.default_rng(0)
    rows = [group.index.to_numpy() for _, group in requests.groupby("session_id", sort=False)]
    found = []
    for _ in range(draws):
        picked = np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))])
        prompt, output, prefix = (
            requests[name].to_numpy()[picked]
            for name in ("prompt_tokens", "output_tokens", "prefix_tokens")
        )
        later = prefix > 0
        figures = {"repeated_share": prefix[later].sum() / prompt[later].sum()}
        figures["new_tokens_p50"] = np.median((prompt - prefix)[later])
        for name, values in (("prompt", prompt), ("output", output)):
            figures[f"{name}_mean"] = values.mean()
            for rank in (50, 90, 99):
                figures[f"{name}_p{rank}"] = np.percentile(values, rank)
        found.append(figures)
    return {str(k): rounded([v], 2)[0] for k, v in pd.DataFrame(found).std().items()}
