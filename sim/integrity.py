"""Invariants that hold whatever the policy, the traffic or the failures: ``check_integrity``.

Of every finished run: no request lost or served twice, tokens conserved between requests, steps
and outcomes, the clock monotone, Little's law. Of a replica between steps (``--check``): rows,
slots, blocks and queue agree, KV within capacity.
"""

from __future__ import annotations

import numpy as np

from sim import state as s
from sim.records import Records
from sim.replica import Replica
from sim.state import CANCELLED, COMPLETED, FAILED, TIMED_OUT

ENDED = (COMPLETED, CANCELLED, TIMED_OUT, FAILED)


class IntegrityError(AssertionError):
    """The simulator broke one of its own rules: a bug, never a user's mistake."""


def _require(holds: bool | np.bool_, rule: str) -> None:
    if not holds:
        raise IntegrityError(rule)


def check_integrity(records: Records) -> None:
    """Raise IntegrityError unless the records of a run agree with each other."""
    _check_requests(records)
    _check_tokens(records)
    _check_steps(records)
    _check_little(records)


def _check_requests(records: Records) -> None:
    requests = records.requests
    done = requests[requests["status"] == COMPLETED]
    _require((done["generated_tokens"] == done["output_tokens"]).all(), "completed is complete")
    _require((requests["generated_tokens"] <= requests["output_tokens"]).all(), "no extra token")
    _require((requests["accepted_tokens"] <= requests["verified_tokens"]).all(), "verified first")
    order = ["arrival_s", "admitted_s", "first_token_s", "finish_s"]
    if records.first_token_elsewhere:
        order = ["arrival_s", "first_token_s", "finish_s"]
    for before, after in zip(order, order[1:], strict=False):
        _require((done[before] <= done[after]).all(), f"{before} before {after}")
    ended = requests["status"].isin(ENDED)
    _require(requests.loc[ended, "finish_s"].notna().all(), "what ended has an end")
    _require(requests.loc[~ended, "finish_s"].isna().all(), "what has an end has ended")


def _check_tokens(records: Records) -> None:
    requests, steps, outcomes = records.requests, records.steps, records.outcomes
    gamma = outcomes.shape[1] - 1
    by_accepted = outcomes.sum(axis=(0, 1))
    by_verified = outcomes.sum(axis=(0, 2))
    sizes = np.arange(gamma + 1)
    rounds = int(requests["rounds"].sum())
    _require(by_accepted.sum() == rounds, "accept histogram sums to verification calls")
    _require((sizes * by_accepted).sum() == requests["accepted_tokens"].sum(), "accepted by count")
    _require((sizes * by_verified).sum() == requests["verified_tokens"].sum(), "verified by count")
    _require(steps["decode_requests"].sum() == rounds, "a round per decoding request and step")
    for column in ("accepted_tokens", "budget_tokens"):
        of_requests = "verified_tokens" if column == "budget_tokens" else column
        _require(steps[column].sum() == requests[of_requests].sum(), f"steps' {column} add up")
    if records.first_token_elsewhere:
        lone = (requests["output_tokens"] == 1) & (requests["generated_tokens"] == 1)
        made = requests["generated_tokens"].sum() - lone.sum()
    else:
        made = requests["generated_tokens"].sum()
    missing = int(made) - int(steps["output_tokens"].sum())
    # A failing replica loses the step in which first tokens made elsewhere were to be booked.
    spare = int(requests["retries"].sum()) if records.first_token_elsewhere else 0
    _require(0 <= missing <= spare, "tokens conserved")


def _check_steps(records: Records) -> None:
    for _, steps in records.steps.groupby("replica"):
        start_s, end_s = steps["start_s"].to_numpy(), steps["end_s"].to_numpy()
        _require((end_s >= start_s).all(), "steps end after they start")
        _require((start_s[1:] >= end_s[:-1]).all(), "steps of a replica follow each other")
    _require((records.steps["budget_tokens"] <= records.steps["drafted_tokens"]).all(), "drafted")


def _check_little(records: Records) -> None:
    """Little's law: the decoding batch over time holds the decoding times of all requests.

    Only where every request has ended and none was sent back to the queue.
    """
    requests, steps = records.requests, records.steps
    ended = requests["status"].isin(ENDED).all()
    if not ended or requests["preemptions"].any() or requests["retries"].any():
        return
    begin_s = requests[["first_token_s", "admitted_s"]].max(axis=1, skipna=False)
    decoding_s = float((requests["finish_s"] - begin_s).sum())
    area_s = float((steps["decode_requests"] * (steps["end_s"] - steps["start_s"])).sum())
    _require(abs(area_s - decoding_s) <= 1e-6 * max(area_s, decoding_s) + 1e-9, "Little's law")


def check_replica(replica: Replica) -> None:
    """Raise IntegrityError unless a replica's arrays agree with each other between two steps."""
    counts, limits, rows_i = replica.counts, replica.limits, replica.rows_i
    running, decoding = int(counts[s.ROWS]), int(counts[s.DECODING])
    _require(0 <= decoding <= running <= limits[s.MAX_REQUESTS], "rows within the cap")
    held = rows_i[s.SLOT, :running]
    free = replica.slots[: counts[s.FREE_SLOTS]]
    every = np.sort(np.concatenate([held, free]))
    _require(np.array_equal(every, np.arange(limits[s.MAX_REQUESTS])), "each slot in one place")
    blocks = int(rows_i[s.BLOCKS, :running].sum())
    _require(blocks + counts[s.FREE_BLOCKS] == limits[s.TOTAL_BLOCKS], "KV blocks conserved")
    _require(counts[s.FREE_BLOCKS] >= 0, "KV within capacity")
    room = rows_i[s.BLOCKS, :running] * limits[s.BLOCK_TOKENS]
    _require((rows_i[s.CONTEXT, :running] <= room).all(), "cached tokens have blocks")
    _require((rows_i[s.PREFILL, :decoding] == 0).all(), "decoding rows are past prefill")
    _require((rows_i[s.PREFILL, decoding:running] > 0).all(), "the others are not")
    waiting = replica.queue[counts[s.HEAD] : counts[s.TAIL]]
    everyone = np.concatenate([rows_i[s.REQUEST, :running], waiting])
    _require(np.unique(everyone).size == everyone.size, "no request in two places")
