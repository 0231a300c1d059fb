"""Walking dense traces: which anchors a decoder stands on, and the acceptance it sees there.

Dense anchors and walked anchors differ: a decoder jumps over easy text in long strides and so
stands more often on hard text. Every acceptance figure that engines or papers print is walked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from gpu_traces.schema import AcceptanceTraces

Ints = npt.NDArray[np.int64]


def walked_anchors(traces: AcceptanceTraces, length: int | None = None) -> Ints:
    """Anchor rows visited when every round verifies ``length`` draft tokens (default: gamma)."""
    limit = traces.gamma if length is None else length
    return walk(traces.first_anchor, traces.accepted, limit)


def walk(first_anchor: Ints, accepted: npt.NDArray[np.int8], limit: int) -> Ints:
    """Anchor rows visited, ascending; ``first_anchor`` [n + 1] bounds the responses' rows."""
    at = first_anchor[:-1].copy()
    end = first_anchor[1:]
    visited = []
    live = np.flatnonzero(at < end)
    while live.size:
        visited.append(at[live])
        at[live] += np.minimum(accepted[at[live]], limit) + 1
        live = live[at[live] < end[live]]
    return np.sort(np.concatenate(visited)) if visited else np.empty(0, dtype=np.int64)


def anchor_response(traces: AcceptanceTraces, rows: Ints) -> Ints:
    """Index of the response that each anchor row belongs to."""
    owner: Ints = np.searchsorted(traces.first_anchor, rows, side="right") - 1
    return owner


def room(traces: AcceptanceTraces, rows: Ints) -> Ints:
    """Draft tokens that fit in the response after each anchor: L - 1 - t, at most gamma."""
    end = traces.first_anchor[anchor_response(traces, rows) + 1]
    fits: Ints = np.minimum(end - rows, traces.gamma)
    return fits


def marginals(traces: AcceptanceTraces, rows: Ints) -> pd.DataFrame:
    """Acceptance at these anchors, one row per domain and draft position (from 1).

    ``conditional``: accepted given that all before were; ``survival``: prefix accepted. Blocks that
    the end of the response cuts off before a position don't count for it.
    """
    domain = traces.domain[anchor_response(traces, rows)]
    accepted, fits = traces.accepted[rows], room(traces, rows)
    records = []
    for code, name in enumerate(traces.domains):
        mine = domain == code
        for k in range(1, traces.gamma + 1):
            whole = mine & (fits >= k)
            reached = np.count_nonzero(whole & (accepted >= k - 1))
            passed = np.count_nonzero(whole & (accepted >= k))
            blocks = np.count_nonzero(whole)
            records.append((name, k, blocks, reached, passed))
    frame = pd.DataFrame(records, columns=["domain", "position", "blocks", "reached", "accepted"])
    frame["conditional"] = frame["accepted"] / frame["reached"].where(frame["reached"] > 0)
    frame["survival"] = frame["accepted"] / frame["blocks"].where(frame["blocks"] > 0)
    return frame


def accepted_length(traces: AcceptanceTraces, length: int | None = None) -> pd.DataFrame:
    """Per domain: responses, walked rounds, and tokens per round (bonus included; 1: no gain)."""
    limit = traces.gamma if length is None else length
    rows = walked_anchors(traces, length)
    owner = anchor_response(traces, rows)
    end = traces.first_anchor[owner + 1]
    gained = np.minimum(np.minimum(traces.accepted[rows], limit) + 1, end - rows)
    domain = traces.domain[owner]
    count = len(traces.domains)
    rounds = np.bincount(domain, minlength=count)
    return pd.DataFrame(
        {
            "domain": traces.domains,
            "responses": np.bincount(traces.domain, minlength=count),
            "rounds": rounds,
            "tokens_per_round": np.bincount(domain, gained, minlength=count)
            / np.maximum(rounds, 1),
        }
    )
