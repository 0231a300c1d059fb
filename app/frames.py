"""From results to the frames that tables and charts show: pure functions, no Streamlit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from app import theme
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.walk import anchor_response, room, walked_anchors
from sim.metrics import tpot_s
from sim.paired import paired_table
from sim.state import COMPLETED

Floats = npt.NDArray[np.float64]

BINS = 10
"""Equal-width bins of a reliability diagram."""

FEWEST = 20
"""Blocks that a reliability bin needs before it is shown."""


def comparison(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per policy, one column per metric of ``sim.metrics.summarize``; times in ms."""
    return pd.DataFrame([{"policy": label, **_row(s)} for label, s in summaries.items()])


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "output_tok_s": summary["output_tok_s"],
        "tok_s_per_user": summary["tok_s_per_user_p50"],
    }
    for name in ("ttft", "tpot", "itl", "e2e"):
        for rank, seconds in summary[f"{name}_s"].items():
            row[f"{name}_{rank}_ms"] = np.nan if seconds is None else seconds * 1e3
    verified = summary["verified_tokens"]
    return row | {
        "tokens_per_round": summary["tokens_per_round"],
        "wasted_percent": 100.0 * summary["wasted_tokens"] / verified if verified else 0.0,
        "mean_budget_tokens": summary["mean_budget_tokens"],
        "mean_batch": summary["mean_batch"],
        "mean_step_ms": summary["mean_step_s"] * 1e3,
        "goodput_rps": summary["goodput_rps"],
        "slo_percent": 100.0 * (summary["slo_attainment"] or 0.0),
        "requests_completed": summary["requests_completed"],
    }


def differences(paired: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """``sim.paired.paired_table`` as text, one row per policy: E2E and TPOT against the first."""
    cells: dict[str, dict[str, str]] = {}
    for row in paired:
        cells.setdefault(row["policy"], {})[row["metric"]] = difference_text(row)
    frame = pd.DataFrame.from_dict(cells, orient="index", columns=["e2e_s", "tpot_s"])
    return frame.rename_axis("policy").reset_index()


def difference_text(row: Mapping[str, Any]) -> str:
    """``-470 ms (-513 to -427)``, or that no difference is shown."""
    if row["low"] is None:
        return f"{theme.difference(row['mean'])}, too few requests for an interval"
    if not row["shown"]:
        return "no difference shown"
    return theme.difference(row["mean"], row["low"], row["high"])


def verdict(
    requests: Mapping[str, pd.DataFrame], summaries: Mapping[str, Mapping[str, Any]]
) -> str:
    """Who wins on mean end-to-end time, as a sentence of markdown; ties are named as ties.

    A policy whose queue grew without end can't win. Requests are compared in pairs.
    """
    stable = [label for label in requests if not summaries[label]["unstable"]]
    if not stable:
        return "**No policy keeps up with this load**: every queue grew without end."
    best = min(stable, key=lambda label: _mean_e2e_s(requests[label]))
    if len(requests) == 1:
        return f"Only **{best}** ran; choose a second policy to compare it with."
    if len(stable) == 1:
        return f"**{best}** wins: it is the only one that keeps up with this load."
    table = paired_table({best: requests[best], **{k: requests[k] for k in stable if k != best}})
    ties = [r["policy"] for r in table if r["metric"] == "e2e_s" and not r["shown"]]
    if not ties:
        return f"**{best}** wins: it has the shortest mean end-to-end time."
    return f"**{best}** leads on mean end-to-end time; no difference shown from {', '.join(ties)}."


def _mean_e2e_s(requests: pd.DataFrame) -> float:
    done = requests[requests["status"] == COMPLETED]
    return float((done["finish_s"] - done["arrival_s"]).mean()) if len(done) else float("inf")


def request_times(requests: pd.DataFrame) -> pd.DataFrame:
    """TTFT, TPOT and E2E of each completed request, ms; TPOT is NaN for one-token answers."""
    done = requests[requests["status"] == COMPLETED]
    arrival_s = done["arrival_s"]
    return pd.DataFrame(
        {
            "ttft_ms": (done["first_token_s"] - arrival_s) * 1e3,
            "tpot_ms": tpot_s(done) * 1e3,
            "e2e_ms": (done["finish_s"] - arrival_s) * 1e3,
        }
    )


def position_rates(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Per policy and draft position: share of rounds that verified it, share that accepted it.

    A position that a policy never verified has no row.
    """
    rows = [
        (label, p["position"], p["verified"] / s["rounds"], p["accepted"] / s["rounds"])
        for label, s in summaries.items()
        for p in s["positions"]
        if p["verified"]
    ]
    return pd.DataFrame(rows, columns=["policy", "position", "verified", "accepted"])


def acceptance(traces: AcceptanceTraces) -> pd.DataFrame:
    """Acceptance on a walk that verifies full blocks, per domain and position, with 95 % intervals.

    Columns: domain, position, blocks, conditional, conditional_half, survival, survival_half. The
    half widths treat responses, not blocks, as independent (linearised ratio estimate).
    """
    rows = walked_anchors(traces)
    owner = anchor_response(traces, rows)
    accepted, fits = traces.accepted[rows], room(traces, rows)
    records = []
    for code, name in enumerate(traces.domains):
        mine = traces.domain[owner] == code
        for k in range(1, traces.gamma + 1):
            whole = mine & (fits >= k)
            passed = whole & (accepted >= k)
            conditional = _ratio(owner, passed, whole & (accepted >= k - 1))
            survival = _ratio(owner, passed, whole)
            records.append((name, k, int(whole.sum()), *conditional, *survival))
    names = ["domain", "position", "blocks", "conditional", "conditional_half"]
    return pd.DataFrame(records, columns=[*names, "survival", "survival_half"])


def _ratio(
    owner: npt.NDArray[np.int64], hits: npt.NDArray[np.bool_], tries: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """hits / tries and its 95 % half width; responses (``owner``) are the independent units."""
    if not tries.any():
        return float("nan"), float("nan")
    total = np.bincount(owner, tries)
    won = np.bincount(owner, hits)[total > 0]
    total = total[total > 0]
    rate = float(won.sum() / total.sum())
    if total.size < 2:
        return rate, float("nan")
    scatter = float(np.square(won - rate * total).sum()) * total.size / (total.size - 1)
    return rate, 1.96 * float(np.sqrt(scatter)) / float(total.sum())


def reliability(
    traces: AcceptanceTraces, confidence: npt.NDArray[np.float32], name: str
) -> pd.DataFrame:
    """Predicted against observed survival on the full-block walk, in bins, all positions together.

    ``confidence`` [A, gamma]. Columns: confidence (``name``), bin, predicted, observed, blocks.
    Blocks that the end of a response cuts off before a position don't count for it.
    """
    rows = walked_anchors(traces)
    survival = np.cumprod(confidence[rows].astype(np.float64), axis=1)
    depth = np.arange(1, traces.gamma + 1)
    fits = depth <= room(traces, rows)[:, None]
    truth = (depth <= traces.accepted[rows][:, None])[fits]
    predicted = survival[fits]
    bins = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    frame = pd.DataFrame(
        {
            "confidence": name,
            "bin": np.arange(BINS),
            "predicted": np.bincount(bins, predicted, BINS) / np.maximum(count, 1),
            "observed": np.bincount(bins, truth, BINS) / np.maximum(count, 1),
            "blocks": count,
        }
    )
    return frame[frame["blocks"] >= FEWEST].reset_index(drop=True)


def calibration_error(frame: pd.DataFrame) -> float:
    """ECE: mean of |predicted - observed| over the bins of ``reliability``, weighted by blocks."""
    gap = (frame["predicted"] - frame["observed"]).abs()
    return float((gap * frame["blocks"]).sum() / frame["blocks"].sum())


def step_cells(steps: pd.DataFrame, modes: tuple[str, ...]) -> pd.DataFrame:
    """Latency samples of these modes, one row per shape: median ms and how many repetitions."""
    shape = ["mode", "requests", "tokens", "context_tokens", "draft_length", "graph"]
    mine = steps[steps["mode"].isin(modes)]
    cells = mine.groupby(shape, as_index=False)["microseconds"].agg(["median", "size"])
    cells["ms"] = cells.pop("median") * 1e-3
    return cells.rename(columns={"size": "repetitions"})


def thin(frame: pd.DataFrame, most: int = 1500) -> pd.DataFrame:
    """Means of equal runs of consecutive rows, so that a chart gets at most ``most`` of them."""
    if len(frame) <= most:
        return frame
    return frame.groupby(np.arange(len(frame)) * most // len(frame)).mean(numeric_only=True)
