"""Metrics of a run, each a function of its records.

Window: counts (tokens verified, accepted, wasted; completed requests) are of the whole run, so that
they balance; rates and latencies are of the window from the end of warm-up to the last arrival,
so that neither filling nor draining the system colours them. Percentiles are nearest-rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim import slo
from sim.records import Records
from sim.state import COMPLETED, STATUS_NAMES

Floats = npt.NDArray[np.float64]

PERCENTILES = (50, 95, 99)
BATCH = 5
WARM_UP_RULE = (
    "from the arrival of the first request that MSER-5 keeps (end-to-end times in arrival order)"
    " to the last arrival; the whole run where that holds fewer than half of the steps"
)


def mser5(values: Floats) -> int:
    """Observations to cut from the front by MSER-5 (White, Cobb and Spratt 2000).

    Means of batches of five; the cut that makes the squared standard error of what remains least,
    looked for in the first half.
    """
    batches = values[: values.size // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
    if batches.size < 4:
        return 0
    left = np.arange(batches.size, 0, -1)
    total = np.cumsum(batches[::-1])[::-1]
    squares = np.cumsum(batches[::-1] ** 2)[::-1]
    errors = (squares - total**2 / left) / left**2
    return BATCH * int(np.argmin(errors[: batches.size // 2]))


def window_s(records: Records) -> tuple[float, float]:
    """Seconds between which rates and latencies are measured, by ``WARM_UP_RULE``."""
    requests, steps = records.requests, records.steps
    end_s = float(steps["end_s"].max()) if len(steps) else 0.0
    done = requests[requests["status"] == COMPLETED].sort_values("arrival_s", kind="stable")
    if done.empty:
        return 0.0, end_s
    arrival_s = done["arrival_s"].to_numpy()
    cut = mser5(done["finish_s"].to_numpy() - arrival_s)
    first_s, last_s = float(arrival_s[cut]), float(np.nanmax(requests["arrival_s"]))
    inside = (steps["start_s"] >= first_s) & (steps["end_s"] <= last_s)
    if 2 * int(inside.sum()) < len(steps):
        return 0.0, end_s
    return first_s, last_s


def percentiles(values: Floats, weights: Floats | None = None) -> dict[str, float]:
    """{p50, p95, p99}, nearest rank, of values that count ``weights`` times; nan when empty."""
    if values.size == 0:
        return {f"p{p}": float("nan") for p in PERCENTILES}
    order = np.argsort(values)
    rank = np.cumsum(np.ones(values.size) if weights is None else weights[order])
    wanted = np.array(PERCENTILES) / 100 * rank[-1]
    found = values[order][np.minimum(np.searchsorted(rank, wanted - 1e-9), values.size - 1)]
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


def itl(records: Records, steps: pd.DataFrame) -> tuple[Floats, Floats]:
    """Gaps between output chunks in ``steps`` (rows of the records) and how often each occurred.

    A decoding request's gap is the step's length, except for the gaps listed as stalls.
    """
    first = records.steps.groupby("replica", sort=False).indices
    start = {replica: int(rows[0]) for replica, rows in first.items()}
    stalls = records.stalls
    row = stalls["replica"].map(start).to_numpy(dtype=np.int64) + stalls["step"].to_numpy()
    weight = records.steps["decode_requests"].to_numpy(dtype=np.float64)
    np.subtract.at(weight, row, 1.0)
    inside = np.isin(row, steps.index.to_numpy()) if row.size else np.zeros(0, dtype=bool)
    gaps = np.concatenate([(steps["end_s"] - steps["start_s"]), stalls["gap_s"][inside]])
    return gaps, np.concatenate([weight[steps.index], np.ones(int(inside.sum()))])


def tpot_s(requests: pd.DataFrame) -> Floats:
    """Seconds per output token after the first; nan for answers of one token."""
    tokens = requests["generated_tokens"].to_numpy() - 1
    decode_s = (requests["finish_s"] - requests["first_token_s"]).to_numpy()
    each_s: Floats = np.full(tokens.size, np.nan)
    np.divide(decode_s, tokens, out=each_s, where=tokens > 0)
    return each_s


def summarize(records: Records, slos: slo.Slos = slo.DEFAULTS) -> dict[str, Any]:
    """All headline numbers of a run, JSON-ready (seconds, tokens; nan becomes None)."""
    first_s, last_s = window_s(records)
    everyone, all_steps = records.requests, records.steps
    steps = all_steps[(all_steps["start_s"] >= first_s) & (all_steps["end_s"] <= last_s)]
    arrived = everyone["arrival_s"].between(first_s, last_s)
    arrivals = everyone[arrived]
    met = slo.good(arrivals, tpot_s(arrivals), slos)
    done = arrivals[arrivals["status"] == COMPLETED]
    each_s = tpot_s(done)
    each_s = each_s[np.isfinite(each_s)]
    decode = all_steps[all_steps["decode_requests"] > 0]
    verified = int(all_steps["budget_tokens"].sum())
    accepted = int(all_steps["accepted_tokens"].sum())
    span_s = max(last_s - first_s, 1e-12)
    summary = {
        "requests_completed": int((everyone["status"] == COMPLETED).sum()),
        "requests_by_status": _by_status(everyone),
        "engine_steps": len(all_steps),
        "window_s": [first_s, last_s],
        "window_rule": WARM_UP_RULE,
        "requests_before_window": int((everyone["arrival_s"] < first_s).sum()),
        "output_tok_s": float(steps["output_tokens"].sum()) / span_s,
        "requests_s": float(everyone["finish_s"].between(first_s, last_s).sum()) / span_s,
        "tok_s_per_user_p50": _median(1.0 / each_s[each_s > 0]),
        "ttft_s": percentiles((done["first_token_s"] - done["arrival_s"]).to_numpy()),
        "tpot_s": percentiles(each_s),
        "itl_s": percentiles(*itl(records, steps)),
        "e2e_s": percentiles((done["finish_s"] - done["arrival_s"]).to_numpy()),
        "rounds": records.rounds,
        "output_tokens": int(everyone["generated_tokens"].sum()),
        "verified_tokens": verified,
        "accepted_tokens": accepted,
        "wasted_tokens": verified - accepted,
        "tokens_per_round": _tokens_per_round(records),
        "mean_budget_tokens": float(decode["budget_tokens"].mean()) if len(decode) else 0.0,
        "mean_step_s": float((all_steps["end_s"] - all_steps["start_s"]).mean()),
        "mean_batch": float(decode["decode_requests"].mean()) if len(decode) else 0.0,
        "accept_histogram": records.outcomes.sum(axis=(0, 1)).tolist(),
        "positions": positions(records),
        "goodput_rps": float(met.sum()) / span_s,
        "slo_attainment": float(met.mean()) if len(met) else float("nan"),
        "slo_classes": slo.by_class(arrivals, met, span_s),
        "preemptions": int(everyone["preemptions"].sum()),
        "retries": int(everyone["retries"].sum()),
        "context_tokens_beyond_profile": records.beyond_context,
        "unstable": records.unstable,
    }
    document: dict[str, Any] = plain(summary)
    return document


def positions(records: Records) -> list[dict[str, int]]:
    """Per draft position, from 1: rounds that verified it and rounds that accepted it."""
    counts = records.outcomes.sum(axis=0)
    verified, accepted = counts.sum(axis=1), counts.sum(axis=0)
    return [
        {"position": k, "verified": int(verified[k:].sum()), "accepted": int(accepted[k:].sum())}
        for k in range(1, counts.shape[0])
    ]


def _tokens_per_round(records: Records) -> float:
    """Tokens gained per verification call, bonus included; the first token comes from prefill."""
    begun = records.requests["generated_tokens"]
    gained = int(begun.sum() - (begun > 0).sum())
    return gained / records.rounds if records.rounds else float("nan")


def _by_status(requests: pd.DataFrame) -> dict[str, int]:
    counts = np.bincount(requests["status"], minlength=len(STATUS_NAMES)).tolist()
    return {name: count for name, count in zip(STATUS_NAMES, counts, strict=True) if count}


def _median(values: Floats) -> float:
    return float(np.median(values)) if values.size else float("nan")


def plain(value: Any) -> Any:
    """JSON has no nan: it becomes None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
