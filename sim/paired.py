"""Policies compared request by request: the same requests, so the difference is of pairs.

Within one run neighbouring requests share queues and steps; so differences are averaged over 20
batches of consecutive requests, and the interval is Student's t on the batch means (19 d.f.).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from sim.metrics import tpot_s
from sim.state import COMPLETED

Floats = npt.NDArray[np.float64]

BATCHES = 20


def interval(values: Floats, level: float = 0.95) -> dict[str, Any]:
    """Mean of independent values with its t interval; ``shown``: the interval excludes zero."""
    mean = float(values.mean())
    if values.size < 2:
        return {"mean": mean, "low": None, "high": None, "shown": False, "n": int(values.size)}
    error = float(values.std(ddof=1)) / np.sqrt(values.size)
    half = float(stats.t.ppf(0.5 + level / 2, values.size - 1)) * error
    low, high = mean - half, mean + half
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "shown": bool(low > 0 or high < 0),
        "n": values.size,
    }


def batch_means(values: Floats, batches: int = BATCHES) -> Floats:
    """Means of equal runs of consecutive values, nan left out; fewer batches if values are few."""
    values = values[np.isfinite(values)]
    count = min(batches, values.size)
    return np.array([part.mean() for part in np.array_split(values, count)]) if count else values


def paired_table(requests: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Every policy against the first: mean difference of E2E and TPOT, seconds (< 0: faster)."""
    labels = list(requests)
    rows = []
    for label in labels[1:]:
        base, other = requests[labels[0]], requests[label]
        both = (base["status"] == COMPLETED) & (other["status"] == COMPLETED)
        for metric, of in (("e2e_s", _e2e_s), ("tpot_s", tpot_s)):
            difference = batch_means(of(other[both]) - of(base[both]))
            if difference.size:
                row = {"policy": label, "against": labels[0], "metric": metric}
                rows.append(row | interval(difference))
    return rows


def _e2e_s(requests: pd.DataFrame) -> Floats:
    return (requests["finish_s"] - requests["arrival_s"]).to_numpy(dtype=np.float64)


def change(difference_s: float) -> str:
    """A signed difference of times, in seconds or milliseconds."""
    if abs(difference_s) >= 1:
        return f"{difference_s:+,.2f} s"
    return f"{difference_s * 1e3:+.2f} ms"


def paired_lines(table: list[dict[str, Any]]) -> list[str]:
    """The table as sentences."""
    names = {"e2e_s": "E2E", "tpot_s": "TPOT"}
    lines = []
    for row in table:
        head = f"{row['policy']} against {row['against']}, mean {names[row['metric']]} in pairs: "
        if row["low"] is None:
            lines.append(f"{head}{change(row['mean'])}, too few requests for an interval")
        elif row["shown"]:
            low, high = change(row["low"]), change(row["high"])
            lines.append(f"{head}{change(row['mean'])} (95 %: {low} to {high})")
        else:
            lines.append(f"{head}no difference shown")
    return lines
