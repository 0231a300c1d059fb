"""The compiled first half of a step: who runs in it, and what the policy sees of them.

Kernels work in place on ``rows_i``, ``rows_f``, ``lines_i``, ``lines_f``, ``counts`` and ``limits``
(laid out in ``sim.state``), ``slots`` (a stack of free cache slots), ``queue`` (request numbers;
those from HEAD to TAIL wait) and ``ring [lag + 1, slots, gamma]`` (past confidences by slot).
They make no Python object, so a step costs microseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from sim import state as s

Array = Any  # numba infers; shapes are given where they are not in sim.state


@njit(cache=True)
def blocks_for(tokens: int, block_tokens: int) -> int:
    """KV blocks that hold ``tokens``."""
    return (tokens + block_tokens - 1) // block_tokens


@njit(cache=True)
def move(source_i: Array, source_f: Array, to_i: Array, to_f: Array) -> None:
    """Copy all fields of a request from a row to its line, or back."""
    for field in range(s.INT_FIELDS):
        to_i[field] = source_i[field]
    for field in range(s.FLOAT_FIELDS):
        to_f[field] = source_f[field]


@njit(cache=True)
def leave(
    row: int, rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array,
    slots: Array,
) -> Any:  # fmt: skip
    """Copy a row to its line and free its slot and blocks; the row stays until it is compacted."""
    slots[counts[s.FREE_SLOTS]] = rows_i[s.SLOT, row]
    counts[s.FREE_SLOTS] += 1
    counts[s.FREE_BLOCKS] += rows_i[s.BLOCKS, row]
    rows_i[s.BLOCKS, row] = 0
    request = rows_i[s.REQUEST, row]
    move(rows_i[:, row], rows_f[:, row], lines_i[request], lines_f[request])
    return request


@njit(cache=True)
def evict_last(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array
) -> Any:
    """Take the youngest row off the replica; returns its request, which waits again.

    It keeps its tokens, but what was cached must be computed again: the prompt and all output
    except the anchor.
    """
    row = counts[s.ROWS] - 1
    cached = rows_i[s.PROMPT, row] + max(rows_i[s.GENERATED, row] - 1, 0)
    rows_i[s.CONTEXT, row] = rows_i[s.PREFIX, row]
    rows_i[s.PREFILL, row] = cached - rows_i[s.PREFIX, row]
    rows_i[s.STATUS, row] = s.WAITING
    request = leave(row, rows_i, rows_f, lines_i, lines_f, counts, slots)
    counts[s.ROWS] -= 1
    counts[s.DECODING] = min(counts[s.DECODING], counts[s.ROWS])
    return request


@njit(cache=True)
def reserve(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    queue: Array, limits: Array,
) -> Any:  # fmt: skip
    """Give decoding rows the KV blocks that this step may fill, evicting the youngest for them.

    Evicted requests go back to the head of the queue; returns how many.
    """
    row = evicted = 0
    while row < counts[s.DECODING]:
        most = rows_i[s.CONTEXT, row] + limits[s.GROWTH]
        missing = blocks_for(most, limits[s.BLOCK_TOKENS]) - rows_i[s.BLOCKS, row]
        while missing > counts[s.FREE_BLOCKS] and row < counts[s.ROWS]:
            rows_i[s.PREEMPTIONS, counts[s.ROWS] - 1] += 1
            counts[s.HEAD] -= 1
            queue[counts[s.HEAD]] = evict_last(rows_i, rows_f, lines_i, lines_f, counts, slots)
            evicted += 1
        if row < counts[s.DECODING] and missing > 0:
            rows_i[s.BLOCKS, row] += missing
            counts[s.FREE_BLOCKS] -= missing
        row += 1
    return evicted


@njit(cache=True)
def enter(
    request: int, blocks: int, rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array,
    counts: Array, slots: Array, ring: Array, now_s: float,
) -> Any:  # fmt: skip
    """Make a waiting request the last row, with a slot, KV blocks and no confidence history."""
    row = counts[s.ROWS]
    move(lines_i[request], lines_f[request], rows_i[:, row], rows_f[:, row])
    counts[s.ROWS] += 1
    counts[s.FREE_SLOTS] -= 1
    slot = slots[counts[s.FREE_SLOTS]]
    ring[:, slot] = 1.0
    rows_i[s.SLOT, row] = slot
    rows_i[s.BLOCKS, row] = blocks
    counts[s.FREE_BLOCKS] -= blocks
    rows_i[s.STATUS, row] = s.RUNNING
    rows_i[s.FRESH, row] = 1
    rows_i[s.CHUNK, row] = rows_i[s.UNDRAFTED, row] = 0
    if np.isnan(rows_f[s.ADMITTED, row]):
        rows_f[s.ADMITTED, row] = now_s
        rows_i[s.CONTEXT, row] = rows_i[s.PREFIX, row]
        rows_i[s.PREFILL, row] = rows_i[s.PROMPT, row] - rows_i[s.PREFIX, row]
    return row


@njit(cache=True)
def take_chunk(rows_i: Array, counts: Array, row: int, budget: int) -> Any:
    """Prefill as much of a row in this step as ``budget`` tokens allow; returns what is left."""
    chunk = max(0, min(budget, rows_i[s.PREFILL, row]))
    rows_i[s.CHUNK, row] = chunk
    counts[s.PREFILL_TOKENS] += chunk
    counts[s.CONTEXT_SUM] += rows_i[s.CONTEXT, row] if chunk else 0
    if chunk == rows_i[s.PREFILL, row] and rows_i[s.GENERATED, row] == 0:
        counts[s.PREFILL_ENDS] += 1
    return budget - chunk


@njit(cache=True)
def start_decoding(rows_i: Array, rows_f: Array, counts: Array, row: int, now_s: float) -> None:
    """Prefill done elsewhere, or of no interest: the row decodes in this very step."""
    rows_i[s.CONTEXT, row] += rows_i[s.PREFILL, row]
    rows_i[s.PREFILL, row] = 0
    if rows_i[s.GENERATED, row] == 0:
        rows_i[s.GENERATED, row] = 1
        if np.isnan(rows_f[s.FIRST_TOKEN, row]):
            rows_f[s.FIRST_TOKEN, row] = now_s
        counts[s.FIRST_TOKENS] += 1
        rows_f[s.LAST_CHUNK, row] = rows_f[s.FIRST_TOKEN, row]
    counts[s.DECODING] += 1


@njit(cache=True)
def charge(rows_i: Array, counts: Array, limits: Array, first: int) -> Any:
    """Count decoding rows in from ``first`` on: what they read, and the most tokens they take."""
    most = 0
    for row in range(first, counts[s.DECODING]):
        if rows_i[s.FRESH, row]:
            rows_i[s.DRAFTED, row] = limits[s.FIRST_DRAFT]
        counts[s.CONTEXT_SUM] += rows_i[s.CONTEXT, row]
        most += 1 + rows_i[s.DRAFTED, row]
    return most


@njit(cache=True)
def settle(
    request: int, status: int, finish_s: float, lines_i: Array, lines_f: Array, counts: Array,
    limits: Array, ended: Array, replica: int,
) -> None:  # fmt: skip
    """End the request at the head of the queue without running it."""
    counts[s.HEAD] += 1
    lines_i[request, s.STATUS] = status
    lines_i[request, s.REPLICA] = replica
    lines_f[request, s.FINISH] = finish_s
    counts[s.OUTSTANDING] -= lines_i[request, s.PROMPT] + limits[s.MEAN_OUTPUT]
    ended[counts[s.ENDED]] = request
    counts[s.ENDED] += 1


@njit(cache=True)
def settled(
    request: int, lines_i: Array, lines_f: Array, counts: Array, limits: Array, ended: Array,
    now_s: float, replica: int,
) -> Any:  # fmt: skip
    """Whether a waiting request needs no run: its client has left, or prefill was all it wanted."""
    if lines_f[request, s.DEADLINE] <= now_s:
        settle(request, s.CANCELLED, now_s, lines_i, lines_f, counts, limits, ended, replica)
        return True
    if limits[s.MODE] != s.CHUNKED and lines_i[request, s.OUTPUT] == 1:
        if np.isnan(lines_f[request, s.FIRST_TOKEN]):
            lines_f[request, s.FIRST_TOKEN] = now_s
        lines_i[request, s.GENERATED] = 1
        finish_s = lines_f[request, s.FIRST_TOKEN]
        settle(request, s.COMPLETED, finish_s, lines_i, lines_f, counts, limits, ended, replica)
        return True
    return False


@njit(cache=True)
def admit(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    queue: Array, ring: Array, limits: Array, ended: Array, now_s: float, replica: int,
) -> None:  # fmt: skip
    """Fill the step: decoding rows, chunks of those in prefill, then new requests in order.

    Waiting requests that need no run are listed in ``ended``; when that list is full the call
    ends early. It may be made again before the step runs.
    """
    counts[s.ENDED] = counts[s.PREFILL_TOKENS] = counts[s.PREFILL_ENDS] = 0
    counts[s.CONTEXT_SUM] = 0
    evicted = reserve(rows_i, rows_f, lines_i, lines_f, counts, slots, queue, limits)
    budget = limits[s.MAX_TOKENS]
    budget -= charge(rows_i, counts, limits, 0)
    for row in range(counts[s.DECODING], counts[s.ROWS]):
        budget = take_chunk(rows_i, counts, row, budget)
    while counts[s.HEAD] < counts[s.TAIL] and budget > 0 and not evicted:
        request = queue[counts[s.HEAD]]
        if counts[s.ENDED] == ended.size:
            return
        if settled(request, lines_i, lines_f, counts, limits, ended, now_s, replica):
            continue
        tokens = lines_i[request, s.PROMPT] + lines_i[request, s.GENERATED] + limits[s.GROWTH]
        blocks = blocks_for(tokens, limits[s.BLOCK_TOKENS])
        if blocks > counts[s.FREE_BLOCKS] or counts[s.FREE_SLOTS] == 0:
            return
        counts[s.HEAD] += 1
        row = enter(
            request, blocks, rows_i, rows_f, lines_i, lines_f, counts, slots, ring, now_s
        )  # fmt: skip
        if limits[s.MODE] == s.CHUNKED:
            budget = take_chunk(rows_i, counts, row, budget)
        else:
            start_decoding(rows_i, rows_f, counts, row, now_s)
            budget -= charge(rows_i, counts, limits, row)


@njit(cache=True)
def show_confidences(
    rows_i: Array, decoding: int, confidence: Array, ring: Array, push: int, current: Array,
    lagged: Array,
) -> None:  # fmt: skip
    """This step's confidences, stored by slot, and those of ``lag`` steps ago.

    ``push`` counts the calls. The semantics are ``policies.harness.ConfidenceLag``'s.
    """
    depth, gamma = ring.shape[0], current.shape[1]
    now, then = push % depth, (push + 1) % depth
    for row in range(decoding):
        anchor, drafted = rows_i[s.ANCHOR, row], rows_i[s.DRAFTED, row]
        for j in range(gamma):
            current[row, j] = confidence[anchor, j]
        for j in range(drafted, gamma):
            current[row, j] = 0.0
    if depth > 1:
        fresh, old = ring[now], ring[then]
        for row in range(decoding):
            slot = rows_i[s.SLOT, row]
            for j in range(gamma):
                fresh[slot, j] = current[row, j]
            for j in range(gamma):
                lagged[row, j] = old[slot, j]


@njit(cache=True)
def show_slack(
    rows_i: Array, rows_f: Array, decoding: int, tpot_target_s: Array, slack_s: Array, now_s: float
) -> None:
    """Seconds that each row is ahead of its class's schedule; inf without a target."""
    for row in range(decoding):
        target_s = tpot_target_s[rows_i[s.SLO_CLASS, row]]
        slack_s[row] = target_s
        if target_s < np.inf:
            due_s = rows_f[s.FIRST_TOKEN, row] + target_s * (rows_i[s.GENERATED, row] - 1)
            slack_s[row] = due_s - now_s


@njit(cache=True)
def count_drafting(rows_i: Array, counts: Array, fresh: Array) -> None:
    """Sum up what drafting costs in this step."""
    counts[s.DRAFTING] = counts[s.LONGEST] = counts[s.DRAFT_CONTEXT] = counts[s.REFILL] = 0
    for row in range(counts[s.DECODING]):
        fresh[row] = rows_i[s.FRESH, row]
        drafted = rows_i[s.DRAFTED, row]
        if drafted > 0:
            counts[s.DRAFTING] += 1
            counts[s.LONGEST] = max(counts[s.LONGEST], drafted)
            counts[s.DRAFT_CONTEXT] += rows_i[s.CONTEXT, row]
            counts[s.REFILL] += rows_i[s.UNDRAFTED, row]


@njit(cache=True)
def begin(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    queue: Array, ring: Array, limits: Array, ended: Array, confidence: Array, current: Array,
    lagged: Array, fresh: Array, slack_s: Array, tpot_target_s: Array, replica: int, push: int,
    now_s: float,
) -> Any:  # fmt: skip
    """``admit``, then write what the policy sees of each decoding row; returns how many ended."""
    admit(
        rows_i, rows_f, lines_i, lines_f, counts, slots, queue, ring, limits, ended, now_s,
        replica,
    )  # fmt: skip
    decoding = counts[s.DECODING]
    show_confidences(rows_i, decoding, confidence, ring, push, current, lagged)
    show_slack(rows_i, rows_f, decoding, tpot_target_s, slack_s, now_s)
    count_drafting(rows_i, counts, fresh)
    return counts[s.ENDED]
