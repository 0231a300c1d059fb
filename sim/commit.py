"""The compiled second half of a step: tokens won, requests ended, records written.

Arrays are those of ``sim.state`` and ``sim.admission``; ``recorded [anchors]`` is the accepted
length of each full block, ``outcomes [domains, gamma + 1, gamma + 1]`` counts rounds by verified
and accepted length.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from sim import state as s
from sim.admission import leave

Array = Any


@njit(cache=True)
def total(lengths: Array) -> Any:
    """Sum of small integers, without numpy's overhead."""
    tokens = 0
    for length in lengths:
        tokens += length
    return tokens


@njit(cache=True)
def walk(
    rows_i: Array, decoding: int, lengths: Array, recorded: Array, first_anchor: Array,
    successor: Array, accepted: Array,
) -> None:  # fmt: skip
    """Verify ``lengths`` drafts of each row and step to its next anchor.

    At the end of a recorded response the row goes on at the first anchor of its successor.
    """
    for row in range(decoding):
        anchor, response = rows_i[s.ANCHOR, row], rows_i[s.RESPONSE, row]
        left = first_anchor[response + 1] - anchor
        wanted = rows_i[s.OUTPUT, row] - rows_i[s.GENERATED, row]
        accepted[row] = min(recorded[anchor], lengths[row], wanted)
        gain = min(accepted[row] + 1, left, wanted)
        rows_i[s.GAINED, row] = gain
        rows_i[s.ANCHOR, row] = anchor + gain
        if gain == left:
            rows_i[s.RESPONSE, row] = successor[response]
            rows_i[s.ANCHOR, row] = first_anchor[successor[response]]


@njit(cache=True)
def count_rounds(
    rows_i: Array, decoding: int, lengths: Array, draft: Array, accepted: Array, outcomes: Array
) -> None:
    """Add a round to every row's sums, and set what it drafts next."""
    gamma = outcomes.shape[1] - 1
    for row in range(decoding):
        length, gain, drafted = lengths[row], rows_i[s.GAINED, row], rows_i[s.DRAFTED, row]
        outcomes[rows_i[s.DOMAIN, row], length, accepted[row]] += 1
        rows_i[s.GENERATED, row] += gain
        rows_i[s.CONTEXT, row] += gain
        rows_i[s.ROUNDS, row] += 1
        rows_i[s.VERIFIED, row] += length
        rows_i[s.ACCEPTED, row] += accepted[row]
        rows_i[s.FRESH, row] = 0
        rows_i[s.UNDRAFTED, row] = rows_i[s.UNDRAFTED, row] + gain if drafted == 0 else 0
        rows_i[s.DRAFTED, row] = draft[row] if draft.size else gamma


@njit(cache=True)
def time_chunks(
    rows_i: Array, rows_f: Array, counts: Array, stalls_i: Array, stalls_f: Array, start_s: float,
    now_s: float,
) -> None:  # fmt: skip
    """Every row's chunk comes out now: note the gaps, and list those longer than the step."""
    for row in range(counts[s.DECODING]):
        gap_s = now_s - rows_f[s.LAST_CHUNK, row]
        if rows_f[s.LAST_CHUNK, row] != start_s:
            stall = counts[s.STALLS]
            stalls_i[stall, 0] = rows_i[s.REQUEST, row]
            stalls_i[stall, 1] = counts[s.STEP]
            stalls_f[stall] = gap_s
            counts[s.STALLS] += 1
        rows_f[s.MAX_GAP, row] = max(rows_f[s.MAX_GAP, row], gap_s)
        rows_f[s.LAST_CHUNK, row] = now_s


@njit(cache=True)
def end_chunks(rows_i: Array, rows_f: Array, counts: Array, now_s: float) -> Any:
    """Book the prefill chunks; a prompt that is through yields its first token. Returns tokens."""
    output = 0
    for row in range(counts[s.DECODING], counts[s.ROWS]):
        rows_i[s.PREFILL, row] -= rows_i[s.CHUNK, row]
        rows_i[s.CONTEXT, row] += rows_i[s.CHUNK, row]
        if rows_i[s.PREFILL, row] > 0:
            break  # prompts are served in order: none behind this one got through
        counts[s.DECODING] += 1
        if rows_i[s.GENERATED, row] == 0:
            rows_i[s.GENERATED, row] = 1
            rows_f[s.FIRST_TOKEN, row] = rows_f[s.LAST_CHUNK, row] = now_s
            output += 1
    return output


@njit(cache=True)
def end_requests(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    limits: Array, finished: Array, ended: Array, now_s: float, replica: int,
) -> None:  # fmt: skip
    """Mark rows that have all their tokens, or whose client left, and copy them to their lines."""
    counts[s.ENDED] = 0
    for row in range(counts[s.ROWS]):
        done = rows_i[s.GENERATED, row] >= rows_i[s.OUTPUT, row]
        finished[row] = done or rows_f[s.DEADLINE, row] <= now_s
        if finished[row]:
            rows_i[s.STATUS, row] = s.COMPLETED if done else s.CANCELLED
            rows_i[s.REPLICA, row] = replica
            rows_f[s.FINISH, row] = now_s
            counts[s.OUTSTANDING] -= rows_i[s.PROMPT, row] + limits[s.MEAN_OUTPUT]
            ended[counts[s.ENDED]] = leave(row, rows_i, rows_f, lines_i, lines_f, counts, slots)
            counts[s.ENDED] += 1


@njit(cache=True)
def advance(
    rows_i: Array, rows_f: Array, lines_i: Array, lines_f: Array, counts: Array, slots: Array,
    limits: Array, recorded: Array, first_anchor: Array, successor: Array, accepted: Array,
    finished: Array, ended: Array, outcomes: Array, steps_i: Array, steps_f: Array,
    stalls_i: Array, stalls_f: Array, replica: int, lengths: Array, draft: Array, start_s: float,
    now_s: float,
) -> Any:  # fmt: skip
    """Commit a step that ran from ``start_s`` to ``now_s``; returns how many requests ended.

    ``lengths`` and ``draft`` (empty: all gamma) are the plan. Rows that end are marked in
    ``finished`` and listed in ``ended``, but stay until ``compact``: the policy is told first.
    """
    decoding = counts[s.DECODING]
    record = steps_i[counts[s.STEP]]
    record[s.S_REPLICA], record[s.S_DECODE] = replica, decoding
    record[s.S_PREFILL_TOKENS] = counts[s.PREFILL_TOKENS]
    record[s.S_OUTPUT], counts[s.FIRST_TOKENS] = counts[s.FIRST_TOKENS], 0
    walk(rows_i, decoding, lengths, recorded, first_anchor, successor, accepted)
    for row in range(decoding):
        record[s.S_DRAFTED] += rows_i[s.DRAFTED, row]
        record[s.S_BUDGET] += lengths[row]
        record[s.S_ACCEPTED] += accepted[row]
        record[s.S_OUTPUT] += rows_i[s.GAINED, row]
    count_rounds(rows_i, decoding, lengths, draft, accepted, outcomes)
    time_chunks(rows_i, rows_f, counts, stalls_i, stalls_f, start_s, now_s)
    record[s.S_OUTPUT] += end_chunks(rows_i, rows_f, counts, now_s)
    end_requests(
        rows_i, rows_f, lines_i, lines_f, counts, slots, limits, finished, ended, now_s, replica
    )  # fmt: skip
    record[s.S_QUEUE] = counts[s.TAIL] - counts[s.HEAD]
    record[s.S_CONTEXT] = counts[s.CONTEXT_SUM]
    record[s.S_KV_BLOCKS] = limits[s.TOTAL_BLOCKS] - counts[s.FREE_BLOCKS]
    record[s.S_ENDED] = counts[s.ENDED]
    steps_f[counts[s.STEP], 0], steps_f[counts[s.STEP], 1] = start_s, now_s
    counts[s.STEP] += 1
    return counts[s.ENDED]


@njit(cache=True)
def compact(rows_i: Array, rows_f: Array, counts: Array, finished: Array) -> None:
    """Close the gaps that finished rows left; the others keep their order."""
    rows, decoding = counts[s.ROWS], counts[s.DECODING]
    to = row = kept_decoding = 0
    while row < rows:
        first = row
        while row < rows and not finished[row]:
            row += 1
        kept_decoding += max(0, min(row, decoding) - first)
        shift = first - to
        to += row - first
        if shift:
            for field in range(s.INT_FIELDS):
                for k in range(first, row):
                    rows_i[field, k - shift] = rows_i[field, k]
            for field in range(s.FLOAT_FIELDS):
                for k in range(first, row):
                    rows_f[field, k - shift] = rows_f[field, k]
        row += 1
    counts[s.ROWS], counts[s.DECODING] = to, kept_decoding


@njit(cache=True)
def stamp(requests: Array, lines_f: Array, patience_s: Array, now_s: float) -> None:
    """These requests arrive now."""
    for request in requests:
        lines_f[request, s.ARRIVAL] = now_s
        lines_f[request, s.DEADLINE] = now_s + patience_s[request]


@njit(cache=True)
def enqueue(requests: Array, queue: Array, counts: Array, limits: Array, lines_i: Array) -> None:
    """Append requests to the waiting line, which has room for them."""
    for request in requests:
        queue[counts[s.TAIL]] = request
        counts[s.TAIL] += 1
        counts[s.OUTSTANDING] += lines_i[request, s.PROMPT] + limits[s.MEAN_OUTPUT]
