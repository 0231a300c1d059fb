"""The compiled half of a replica: what one engine step does to the rows (layout in ``sim.state``).

Every kernel works in place on ``rows_i [fields, max_requests]``, ``rows_f``, the request tables
``lines_i [requests, fields]``, ``lines_f`` and ``counts``. ``limits`` is (max requests, max step
tokens, KV block tokens, tokens that a decoding request may grow by in a step, prefill mode, drafts
of a fresh request, output tokens that a router expects). No Python objects, no allocation: a step
costs a few microseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from sim.state import (
    ACCEPTED,
    ADMITTED,
    ANCHOR,
    BLOCKS,
    CANCELLED,
    CHUNK,
    COMPLETED,
    CONTEXT,
    CONTEXT_SUM,
    DEADLINE,
    DECODING,
    DOMAIN,
    DRAFT_CONTEXT,
    DRAFTED,
    DRAFTING,
    ENDED,
    FINISH,
    FIRST_TOKEN,
    FLOAT_FIELDS,
    FREE_BLOCKS,
    FREE_SLOTS,
    FRESH,
    GENERATED,
    HEAD,
    INT_FIELDS,
    LAST_CHUNK,
    LONGEST,
    MAX_GAP,
    OUTPUT,
    OUTSTANDING,
    PREEMPTED,
    PREEMPTIONS,
    PREFILL,
    PREFILL_ENDS,
    PREFILL_TOKENS,
    PREFIX,
    PROMPT,
    REFILL,
    REPLICA,
    REQUEST,
    RESPONSE,
    ROUNDS,
    ROWS,
    RUNNING,
    S_ACCEPTED,
    S_BUDGET,
    S_CONTEXT,
    S_DECODE,
    S_DRAFTED,
    S_ENDED,
    S_FREE_BLOCKS,
    S_OUTPUT,
    S_PREFILL_TOKENS,
    S_QUEUE,
    S_REPLICA,
    SLO_CLASS,
    SLOT,
    STALLS,
    STATUS,
    STEP,
    TAIL,
    UNDRAFTED,
    VERIFIED,
    WAITING,
)

Array = Any  # numba types; shapes are in the docstrings

MAX_REQUESTS, MAX_TOKENS, BLOCK_TOKENS, GROWTH, MODE, FIRST_DRAFT, MEAN_OUTPUT = range(7)
CHUNKED, SEPARATE, NONE = range(3)


@njit(cache=True)
def blocks_for(tokens: int, block_tokens: int) -> int:
    """KV blocks that hold ``tokens``."""
    return (tokens + block_tokens - 1) // block_tokens


@njit(cache=True)
def _move(source_i: Array, source_f: Array, to_i: Array, to_f: Array) -> None:
    for k in range(INT_FIELDS):
        to_i[k] = source_i[k]
    for k in range(FLOAT_FIELDS):
        to_f[k] = source_f[k]


@njit(cache=True)
def _leave(
    row: int, rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array,
    slots: Array,
) -> int:  # fmt: skip
    """Copy a row back to its line and free its slot and blocks; the row itself stays for now."""
    slots[counts[FREE_SLOTS]] = rows_i[SLOT, row]
    counts[FREE_SLOTS] += 1
    counts[FREE_BLOCKS] += rows_i[BLOCKS, row]
    rows_i[BLOCKS, row] = 0
    request = rows_i[REQUEST, row]
    _move(rows_i[:, row], rows_f[:, row], lines_i[request], lines_f[request])
    return request


@njit(cache=True)
def evict_last(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array
) -> int:
    """Take the youngest row off the replica, keeping its tokens; returns its request.

    What was cached must be computed again: the prompt and all output but the anchor.
    """
    row = counts[ROWS] - 1
    generated = rows_i[GENERATED, row]
    rows_i[CONTEXT, row] = rows_i[PREFIX, row]
    cached = rows_i[PROMPT, row] + max(generated - 1, 0)
    rows_i[PREFILL, row] = cached - rows_i[PREFIX, row]
    rows_i[STATUS, row] = WAITING
    request = _leave(row, rows_i, rows_f, lines_i, lines_f, counts, slots)
    lines_i[request, SLOT] = -1
    counts[ROWS] -= 1
    counts[DECODING] = min(counts[DECODING], counts[ROWS])
    return request


@njit(cache=True)
def _reserve(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    queue: Array, limits: Array,
) -> None:  # fmt: skip
    """Give each decoding row the KV blocks this step may fill, evicting the youngest for them."""
    row = 0
    while row < counts[DECODING]:
        wanted = blocks_for(rows_i[CONTEXT, row] + limits[GROWTH], limits[BLOCK_TOKENS])
        missing = wanted - rows_i[BLOCKS, row]
        while missing > counts[FREE_BLOCKS] and row < counts[ROWS]:
            rows_i[PREEMPTIONS, counts[ROWS] - 1] += 1
            counts[HEAD] -= 1
            queue[counts[HEAD]] = evict_last(rows_i, rows_f, lines_i, lines_f, counts, slots)
            counts[PREEMPTED] += 1
        if row < counts[DECODING] and missing > 0:
            rows_i[BLOCKS, row] += missing
            counts[FREE_BLOCKS] -= missing
        row += 1


@njit(cache=True)
def _enter(
    request: int, rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array,
    slots: Array, ring: Array, limits: Array, now_s: float,
) -> int:  # fmt: skip
    """Make a waiting request the last row, with a slot and without history."""
    row = counts[ROWS]
    _move(lines_i[request], lines_f[request], rows_i[:, row], rows_f[:, row])
    counts[ROWS] += 1
    counts[FREE_SLOTS] -= 1
    slot = slots[counts[FREE_SLOTS]]
    ring[:, slot] = 1.0
    rows_i[SLOT, row] = slot
    rows_i[STATUS, row] = RUNNING
    rows_i[CHUNK, row] = 0
    rows_i[FRESH, row] = 1
    if np.isnan(rows_f[ADMITTED, row]):
        rows_f[ADMITTED, row] = now_s
        rows_i[CONTEXT, row] = rows_i[PREFIX, row]
        rows_i[PREFILL, row] = rows_i[PROMPT, row] - rows_i[PREFIX, row]
    return row


@njit(cache=True)
def _take_chunk(rows_i: Array, counts: Array, row: int, budget: int) -> int:
    chunk = max(0, min(budget, rows_i[PREFILL, row]))
    rows_i[CHUNK, row] = chunk
    counts[PREFILL_TOKENS] += chunk
    counts[CONTEXT_SUM] += rows_i[CONTEXT, row]
    if chunk == rows_i[PREFILL, row] and rows_i[GENERATED, row] == 0:
        counts[PREFILL_ENDS] += 1
    return budget - chunk


@njit(cache=True)
def _start_decoding(rows_i: Array, rows_f: Array, counts: Array, row: int, now_s: float) -> None:
    """Prefill done elsewhere (or of no interest): the row decodes from this step on."""
    rows_i[CONTEXT, row] += rows_i[PREFILL, row]
    rows_i[PREFILL, row] = 0
    if rows_i[GENERATED, row] == 0:
        rows_i[GENERATED, row] = 1
        rows_f[FIRST_TOKEN, row] = now_s
        rows_f[LAST_CHUNK, row] = now_s
    counts[DECODING] += 1


@njit(cache=True)
def admit(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    queue: Array, ring: Array, limits: Array, ended: Array, now_s: float, replica: int,
) -> None:  # fmt: skip
    """Fill the step: KV for those that decode, chunks for those in prefill, then new requests.

    First come, first served; a request that gave up while it waited leaves here (``ended``).
    """
    counts[ENDED] = counts[PREFILL_TOKENS] = counts[PREFILL_ENDS] = counts[CONTEXT_SUM] = 0
    preempted = counts[PREEMPTED]
    _reserve(rows_i, rows_f, lines_i, lines_f, counts, slots, queue, limits)
    budget = limits[MAX_TOKENS]
    for row in range(counts[DECODING]):
        if rows_i[FRESH, row]:
            rows_i[DRAFTED, row] = limits[FIRST_DRAFT]
        budget -= 1 + rows_i[DRAFTED, row]
        counts[CONTEXT_SUM] += rows_i[CONTEXT, row]
    for row in range(counts[DECODING], counts[ROWS]):
        budget = _take_chunk(rows_i, counts, row, budget)
    if counts[PREEMPTED] > preempted:
        return
    while counts[HEAD] < counts[TAIL] and counts[FREE_SLOTS] > 0 and budget > 0:
        request = queue[counts[HEAD]]
        if lines_f[request, DEADLINE] <= now_s:
            counts[HEAD] += 1
            lines_i[request, STATUS] = CANCELLED
            lines_f[request, FINISH] = now_s
            counts[OUTSTANDING] -= lines_i[request, PROMPT] + limits[MEAN_OUTPUT]
            lines_i[request, REPLICA] = replica
            ended[counts[ENDED]] = request
            counts[ENDED] += 1
            if counts[ENDED] == ended.size:
                return
            continue
        tokens = lines_i[request, PROMPT] + lines_i[request, GENERATED]
        needed = blocks_for(tokens + limits[GROWTH], limits[BLOCK_TOKENS])
        if needed > counts[FREE_BLOCKS]:
            return
        counts[HEAD] += 1
        row = _enter(request, rows_i, rows_f, lines_i, lines_f, counts, slots, ring, limits, now_s)
        rows_i[BLOCKS, row] = needed
        counts[FREE_BLOCKS] -= needed
        if limits[MODE] == CHUNKED:
            budget = _take_chunk(rows_i, counts, row, budget)
        else:
            _start_decoding(rows_i, rows_f, counts, row, now_s)
            budget -= 1 + limits[FIRST_DRAFT]
            counts[CONTEXT_SUM] += rows_i[CONTEXT, row]
            rows_i[DRAFTED, row] = limits[FIRST_DRAFT]


@njit(cache=True)
def present(
    rows_i: Array, rows_f: Array, counts: Array, limits: Array, confidence: Array, ring: Array,
    lag: int, push: int, current: Array, lagged: Array, fresh: Array, slack_s: Array,
    tpot_target_s: Array, now_s: float,
) -> None:  # fmt: skip
    """Write what the policy sees of each decoding row.

    ``ring [lag + 1, slots, gamma]`` holds confidences by slot; ``push`` counts the calls.
    """
    gamma = current.shape[1]
    then = (push + 1) % (lag + 1)
    drafting = longest = draft_context = refill = 0
    for row in range(counts[DECODING]):
        fresh[row] = rows_i[FRESH, row]
        drafted = rows_i[DRAFTED, row]
        anchor = rows_i[ANCHOR, row]
        for j in range(drafted):
            current[row, j] = confidence[anchor, j]
        for j in range(drafted, gamma):
            current[row, j] = 0.0
        if lag > 0:
            slot = rows_i[SLOT, row]
            ring[push % (lag + 1), slot] = current[row]
            lagged[row] = ring[then, slot]
        target_s = tpot_target_s[rows_i[SLO_CLASS, row]]
        if np.isinf(target_s):
            slack_s[row] = np.inf
        else:
            due_s = rows_f[FIRST_TOKEN, row] + target_s * (rows_i[GENERATED, row] - 1)
            slack_s[row] = due_s - now_s
        if drafted > 0:
            drafting += 1
            longest = max(longest, drafted)
            draft_context += rows_i[CONTEXT, row]
            refill += rows_i[UNDRAFTED, row]
            rows_i[UNDRAFTED, row] = 0
    counts[DRAFTING] = drafting
    counts[LONGEST] = longest
    counts[DRAFT_CONTEXT] = draft_context
    counts[REFILL] = refill


@njit(cache=True)
def advance(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    limits: Array, lengths: Array, draft: Array, recorded: Array, first_anchor: Array,
    successor: Array, accepted: Array, finished: Array, ended: Array, outcomes: Array,
    steps_i: Array, stalls_i: Array, stalls_f: Array, start_s: float, now_s: float, replica: int,
) -> None:  # fmt: skip
    """Commit a step that ran from ``start_s`` to ``now_s``: tokens, records, ends.

    Rows that end are marked in ``finished``, copied to their lines and listed in ``ended``; the
    rows themselves stay until ``compact``, so that the policy can still be told about them.
    """
    counts[ENDED] = 0
    decoding, running = counts[DECODING], counts[ROWS]
    drafted = budget = taken = output = 0
    for row in range(decoding):
        anchor, response = rows_i[ANCHOR, row], rows_i[RESPONSE, row]
        left = first_anchor[response + 1] - anchor
        wanted = rows_i[OUTPUT, row] - rows_i[GENERATED, row]
        length = lengths[row]
        hit = min(recorded[anchor], length, wanted)
        gain = min(hit + 1, left, wanted)
        if gain == left:
            rows_i[RESPONSE, row] = successor[response]
            rows_i[ANCHOR, row] = first_anchor[successor[response]]
        else:
            rows_i[ANCHOR, row] = anchor + gain
        accepted[row] = hit
        drafted += rows_i[DRAFTED, row]
        if rows_i[DRAFTED, row] == 0:
            rows_i[UNDRAFTED, row] += gain
        rows_i[DRAFTED, row] = draft[row] if draft.size else outcomes.shape[1] - 1
        rows_i[FRESH, row] = 0
        budget += length
        taken += hit
        output += gain
        outcomes[rows_i[DOMAIN, row], length, hit] += 1
        rows_i[GENERATED, row] += gain
        rows_i[CONTEXT, row] += gain
        rows_i[ROUNDS, row] += 1
        rows_i[VERIFIED, row] += length
        rows_i[ACCEPTED, row] += hit
        gap_s = now_s - rows_f[LAST_CHUNK, row]
        if rows_f[LAST_CHUNK, row] != start_s:
            stalls_i[counts[STALLS], 0] = rows_i[REQUEST, row]
            stalls_i[counts[STALLS], 1] = counts[STEP]
            stalls_f[counts[STALLS]] = gap_s
            counts[STALLS] += 1
        rows_f[MAX_GAP, row] = max(rows_f[MAX_GAP, row], gap_s)
        rows_f[LAST_CHUNK, row] = now_s
    for row in range(decoding, running):
        chunk = rows_i[CHUNK, row]
        rows_i[PREFILL, row] -= chunk
        rows_i[CONTEXT, row] += chunk
        if rows_i[PREFILL, row] == 0:
            counts[DECODING] += 1
            if rows_i[GENERATED, row] == 0:
                rows_i[GENERATED, row] = 1
                rows_f[FIRST_TOKEN, row] = now_s
                rows_f[LAST_CHUNK, row] = now_s
                output += 1
    for row in range(running):
        done = rows_i[GENERATED, row] >= rows_i[OUTPUT, row]
        finished[row] = done or rows_f[DEADLINE, row] <= now_s
        if finished[row]:
            rows_i[STATUS, row] = COMPLETED if done else CANCELLED
            rows_f[FINISH, row] = now_s
            rows_i[REPLICA, row] = replica
            counts[OUTSTANDING] -= rows_i[PROMPT, row] + limits[MEAN_OUTPUT]
            ended[counts[ENDED]] = _leave(row, rows_i, rows_f, lines_i, lines_f, counts, slots)
            counts[ENDED] += 1
    record = steps_i[counts[STEP]]
    record[S_REPLICA] = replica
    record[S_DECODE] = decoding
    record[S_PREFILL_TOKENS] = counts[PREFILL_TOKENS]
    record[S_DRAFTED] = drafted
    record[S_BUDGET] = budget
    record[S_ACCEPTED] = taken
    record[S_OUTPUT] = output
    record[S_QUEUE] = counts[TAIL] - counts[HEAD]
    record[S_CONTEXT] = counts[CONTEXT_SUM]
    record[S_FREE_BLOCKS] = counts[FREE_BLOCKS]
    record[S_ENDED] = counts[ENDED]
    counts[STEP] += 1


@njit(cache=True)
def compact(rows_i: Array, rows_f: Array, counts: Array, finished: Array, keep: Array) -> None:
    """Close the gaps that finished rows left, in order."""
    kept = decoding = 0
    for row in range(counts[ROWS]):
        if not finished[row]:
            keep[kept] = row
            kept += 1
            decoding += row < counts[DECODING]
    first = 0
    while first < kept and keep[first] == first:
        first += 1
    for field in range(INT_FIELDS):
        for k in range(first, kept):
            rows_i[field, k] = rows_i[field, keep[k]]
    for field in range(FLOAT_FIELDS):
        for k in range(first, kept):
            rows_f[field, k] = rows_f[field, keep[k]]
    counts[ROWS] = kept
    counts[DECODING] = decoding
