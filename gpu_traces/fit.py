"""From a bundle's latency samples to the world's step time, with the error on held-out shapes.

Samples are reduced to cells (mode, requests, tokens, context, draft length, graph, ragged) by their
median, then

    pass  = v(T) + s * R * context      (verify, prefill and mixed cells)
    draft = d_k(R) + s' * R * context

with one level per measured size and one slope, both by least squares on relative error. Passes that
replayed captured graphs give a staircase (a size between two captured ones is padded to the next);
what lies beyond, or was measured eagerly, is interpolated over sizes after isotonic smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import isotonic_regression, nnls

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import Origin
from policies.cost import densify

Floats = npt.NDArray[np.float64]

_SHAPE = ["mode", "requests", "tokens", "context_tokens", "draft_length", "graph", "ragged"]
_TARGET = ("verify", "prefill", "mixed")


@dataclass(frozen=True, slots=True)
class FitReport:
    """How well the model predicts shapes that it was not fitted on."""

    cells: int
    held_out: int
    median_error: float
    """Median relative error |model - measured| / measured over the held-out cells."""
    p95_error: float
    by_mode: dict[str, float]
    """Median relative error per mode."""
    spread: float
    """Log standard deviation within cells (robust)."""

    def __str__(self) -> str:
        modes = ", ".join(f"{mode} {error:.1%}" for mode, error in self.by_mode.items())
        return (
            f"{self.cells} shapes; on {self.held_out} held out: median error"
            f" {self.median_error:.1%}, p95 {self.p95_error:.1%} ({modes}); noise {self.spread:.1%}"
        )


def fit_latency(
    steps: pd.DataFrame,
    *,
    name: str = "fit",
    origin: Origin | None = None,
    gamma: int | None = None,
) -> tuple[LatencyModel, FitReport]:
    """Fit a latency model to a ``steps`` table; ``gamma`` defaults to the longest drafted length.

    Raises ValueError when no target pass was measured.
    """
    cells = _cells(steps)
    source = origin or Origin("synthetic", "unnamed latency samples")
    depth = int(cells["draft_length"].max()) if gamma is None else gamma
    spread = _spread(steps)
    model = _fit(cells, name, source, depth, spread)
    held = _held_out(cells)
    trial = _fit(cells[~held], name, source, depth, spread)
    return model, _report(trial, cells, held, spread)


def _cells(steps: pd.DataFrame) -> pd.DataFrame:
    """Median seconds per shape."""
    rows = steps if "ragged" in steps else steps.assign(ragged=False)
    median = rows.groupby(_SHAPE)["microseconds"].median() * 1e-6
    cells: pd.DataFrame = median.rename("seconds").reset_index()
    if not cells["mode"].isin(_TARGET).any():
        raise ValueError(f"latency samples hold no target pass (mode {', '.join(_TARGET)})")
    return cells


def _fit(cells: pd.DataFrame, name: str, origin: Origin, gamma: int, spread: float) -> LatencyModel:
    plain = cells[~cells["ragged"]]
    target = plain[plain["mode"].isin(_TARGET)]
    draft = plain[plain["mode"] == "draft"]
    verify_s, context_s, captured = _fit_pass(target)
    draft_s, draft_context_s = _fit_draft(draft, gamma, int(cells["requests"].max()))
    adaptive_s, adaptive_token_s = _ragged_extra(cells, spread)
    overhead = cells.loc[cells["mode"] == "overhead", "seconds"]
    refill = cells[(cells["mode"] == "refill") & (cells["tokens"] > 0)]
    return LatencyModel(
        name,
        origin,
        draft_s,
        verify_s,
        context_s=context_s,
        draft_context_s=draft_context_s,
        overhead_s=float(overhead.median()) if len(overhead) else 0.0,
        adaptive_s=adaptive_s,
        adaptive_token_s=adaptive_token_s,
        refill_s=float((refill["seconds"] / refill["tokens"]).median()) if len(refill) else 0.0,
        spread=spread,
        captured_sizes=captured,
        max_context_tokens=int((target["requests"] * target["context_tokens"]).max()),
    )


def _fit_pass(target: pd.DataFrame) -> tuple[Floats, float, tuple[int, ...]]:
    """Dense seconds of a target pass at empty context, the context slope, the captured sizes."""
    captured = sorted({int(t) for t in target.loc[target["graph"], "tokens"]})
    limit = captured[-1] if captured else 0
    used = target[target["graph"] | (target["tokens"] > limit)]
    sizes, seconds, slope = levels(used, "tokens")
    last = int(sizes[-1])
    graph, eager = sizes <= limit, sizes > limit
    dense = np.empty(last + 1)
    if graph.any():
        dense[: limit + 1] = staircase(sizes[graph], seconds[graph], limit)
    if eager.any():
        smooth = isotonic_regression(seconds[eager]).x
        dense[limit + 1 :] = densify(sizes[eager], smooth, "linear", last)[limit + 1 :]
        dense[0] = dense[1]
    return dense, slope, tuple(captured)


def _fit_draft(draft: pd.DataFrame, gamma: int, requests: int) -> tuple[Floats, float]:
    """Dense seconds [gamma + 1, R_max + 1] and the context slope.

    Lengths between two measured ones are interpolated; shorter than the shortest cost as much.
    """
    table = np.zeros((gamma + 1, requests + 1))
    lengths = sorted({int(k) for k in draft["draft_length"] if k > 0})
    if not lengths:
        return table, 0.0
    per_length = [draft[draft["draft_length"] == k] for k in lengths]
    slope = float(np.median([levels(rows, "requests")[2] for rows in per_length]))
    curves = []
    for rows in per_length:
        sizes, seconds, _ = levels(rows, "requests", slope)
        smooth = isotonic_regression(seconds).x
        if rows["graph"].all():
            curves.append(staircase(sizes, smooth, requests))
        else:
            curves.append(densify(sizes, smooth, "linear", requests))
    measured = np.array(curves)
    for k in range(1, gamma + 1):
        table[k] = [np.interp(k, lengths, column) for column in measured.T]
    table[:, 0] = 0.0
    return table, slope


def levels(
    rows: pd.DataFrame, size: str, slope: float | None = None
) -> tuple[npt.NDArray[np.int64], Floats, float]:
    """Sizes, seconds at empty context per size, and the slope per cached token (>= 0).

    Least squares of y = level[size] + slope * x, each cell weighted by 1 / y (relative error).
    """
    y = rows["seconds"].to_numpy()
    x = (rows["requests"] * rows["context_tokens"]).to_numpy(dtype=np.float64)
    sizes, group = np.unique(rows[size].to_numpy(dtype=np.int64), return_inverse=True)
    weight = 1.0 / y**2
    total = np.bincount(group, weight)
    mean_x, mean_y = (np.bincount(group, weight * v) / total for v in (x, y))
    if slope is None:
        dx, dy = x - mean_x[group], y - mean_y[group]
        variance = float((weight * dx * dx).sum())
        slope = max(0.0, float((weight * dx * dy).sum()) / variance) if variance > 0 else 0.0
    return sizes, np.maximum(mean_y - slope * mean_x, 1e-9), slope


def staircase(sizes: npt.ArrayLike, seconds: npt.ArrayLike, last: int) -> Floats:
    """Seconds for 0..last where each size is padded to the next captured one; no smoothing."""
    x, y = np.asarray(sizes), np.asarray(seconds, dtype=np.float64)
    at = np.searchsorted(x, np.arange(last + 1), side="left")
    dense: Floats = y[np.minimum(at, x.size - 1)]
    return dense


def _ragged_extra(cells: pd.DataFrame, spread: float) -> tuple[float, float]:
    """Extra seconds of ragged passes over plain ones of the same shape: of each, and per token.

    Least squares with both at least 0, each shape weighted by 1 / its seconds (relative error).
    None where half of the shapes show no more than the noise of a step.
    """
    keys = [c for c in _SHAPE if c != "ragged"]
    ragged, plain = cells[cells["ragged"]], cells[~cells["ragged"]]
    both = ragged.merge(plain, on=keys, suffixes=("_ragged", "_plain"))
    if both.empty:
        return 0.0, 0.0
    seconds, tokens = both["seconds_ragged"].to_numpy(), both["tokens"].to_numpy(dtype=np.float64)
    extra = (seconds - both["seconds_plain"].to_numpy()) / seconds
    if np.median(extra) <= spread:
        return 0.0, 0.0
    fixed_s, token_s = nnls(np.stack((1 / seconds, tokens / seconds), 1), extra)[0].tolist()
    return fixed_s, token_s


def _spread(steps: pd.DataFrame) -> float:
    """Robust log-sd of samples around their cell's median (target passes and drafts).

    The middle sample of a cell is its median and says nothing, so zeros don't count.
    """
    rows = steps if "ragged" in steps else steps.assign(ragged=False)
    timed = rows[rows["mode"].isin((*_TARGET, "draft"))]
    centre = timed.groupby(_SHAPE)["microseconds"].transform("median")
    deviation = np.abs(np.log((timed["microseconds"] / centre).to_numpy(dtype=np.float64)))
    moved = deviation[deviation > 0]
    return float(1.4826 * np.median(moved)) if moved.size else 0.0


def _held_out(cells: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Every third target or draft cell in a shuffled order; the extreme sizes stay in."""
    held = np.zeros(len(cells), dtype=bool)
    order = np.random.default_rng(0).permutation(len(cells))
    for modes, size in ((_TARGET, "tokens"), (("draft",), "requests")):
        mine = cells["mode"].isin(modes) & ~cells["ragged"]
        values = cells.loc[mine, size]
        inner = mine & ~cells[size].isin([values.min(), values.max()])
        held[[i for i in order if inner.iloc[i]][::3]] = True
    return held


def _report(
    model: LatencyModel, cells: pd.DataFrame, held: npt.NDArray[np.bool_], spread: float
) -> FitReport:
    test = cells[held]
    error = np.abs(_predict(model, test) / test["seconds"].to_numpy() - 1.0)
    modes = test["mode"].to_numpy()
    return FitReport(
        cells=len(cells),
        held_out=len(test),
        median_error=float(np.median(error)) if error.size else float("nan"),
        p95_error=float(np.quantile(error, 0.95)) if error.size else float("nan"),
        by_mode={str(m): float(np.median(error[modes == m])) for m in np.unique(modes)},
        spread=spread,
    )


def _predict(model: LatencyModel, cells: pd.DataFrame) -> Floats:
    """Seconds of target and draft cells."""
    requests = cells["requests"].to_numpy()
    read = requests * cells["context_tokens"].to_numpy(dtype=np.float64)
    is_draft = (cells["mode"] == "draft").to_numpy()
    length = np.where(is_draft, cells["draft_length"], 0)
    tokens = np.where(is_draft, 0, cells["tokens"])
    draft = model.draft_s[length, requests] + model.draft_context_s * read
    seconds: Floats = np.where(is_draft, draft, model.verify_s[tokens] + model.context_s * read)
    return seconds
