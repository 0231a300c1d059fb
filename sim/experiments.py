"""Experiments over many runs: compare, frontier, capacity, sweep.

Each is a plan of cells and a table made of their summaries. Replications differ in seed and
nothing else; policies share every seed, so differences are taken in pairs, and the interval is
Student's t over replications.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.stats import qmc

from sim.cells import Cell, Summary, capacity
from sim.farm import Store, run_cells
from sim.paired import interval
from sim.scaling import METHODS
from sim.show import number

Words = tuple[str, ...]
Run = Callable[[list[Cell]], list[Summary]]
Floats = npt.NDArray[np.float64]

METRICS = {
    "output_tok_s": "output tok/s",
    "tok_s_per_user_p50": "tok/s/user, median",
    "goodput_rps": "goodput, requests/s",
    "ttft_s.p95": "TTFT p95, s",
    "tpot_s.p50": "TPOT p50, s",
    "e2e_s.p95": "E2E p95, s",
}
"""Compared quantities: key into a summary -> what people read."""

LEAST_REPLICATIONS = 5
ORIGINS = ("bundle", "origin", "latency", "latency_origin", "scenario", "traffic_origin")


@dataclass(frozen=True)
class Runner:
    """Where and how cells run."""

    store: Store
    jobs: int = 1
    backend: str = "loky"
    quiet: bool = False

    def __call__(self, cells: list[Cell]) -> list[Summary]:
        return run_cells(cells, self.store, self.jobs, self.backend, self.quiet)


def origins(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Where the numbers come from: what all runs share; several of a kind are joined by ``|``."""
    found: dict[str, Any] = {
        key: " | ".join(dict.fromkeys(s[key] for s in summaries)) for key in ORIGINS
    }
    beyond = max(s["context_tokens_beyond_profile"] for s in summaries)
    if beyond:
        found["latency_origin"] += f"; extrapolated to {beyond:,} cached tokens in a step"
    notes = dict.fromkeys(note for s in summaries for note in s["traffic_notes"])
    shared = [note for note in notes if all(note in s["traffic_notes"] for s in summaries)]
    methods = sorted({n.split()[0] for n in notes if n not in shared and n.split()[0] in METHODS})
    return found | {"traffic_notes": shared + [f"rates set by {method}" for method in methods]}


def value(summary: Summary, metric: str) -> float:
    """A number of a summary by key, ``tpot_s.p50`` reaching inside; nan for none."""
    found: Any = summary
    for part in metric.split("."):
        found = found[part]
    return float("nan") if found is None else float(found)


def compare(
    words: Words,
    policies: Sequence[str],
    seed: int,
    run: Run,
    *,
    precision: float = 0.01,
    limit: int = 30,
    metric: str = "output_tok_s",
) -> dict[str, Any]:
    """Policies against the first, in pairs over replications.

    Replications are added, ``LEAST_REPLICATIONS`` at first, until the half-width of every paired
    interval of ``metric`` is within ``precision`` of the first policy's mean, or ``limit`` is
    reached; both are reported.
    """
    count, summaries = min(LEAST_REPLICATIONS, limit), {}
    while True:
        cells = [Cell(words, p, seed + k) for p in policies for k in range(count)]
        found = run(cells)
        summaries = {p: found[i * count : (i + 1) * count] for i, p in enumerate(policies)}
        reached = _half_width(summaries, metric)
        if reached <= precision or count >= limit:
            break
        count = min(limit, 2 * count)
    return {
        "experiment": "compare",
        "words": list(words),
        "replications": count,
        "precision_asked": precision,
        "precision_reached": reached,
        "stopped_by": "precision" if reached <= precision else "limit",
        "load_rps": summaries[policies[0]][0]["load_rps"],
        **origins(found),
        "policies": {p: _means(s) for p, s in summaries.items()},
        "differences": _differences(summaries),
        "unstable": {p: sum(bool(s["unstable"]) for s in rows) for p, rows in summaries.items()},
    }


def _values(summaries: Sequence[Summary], metric: str) -> Floats:
    return np.array([value(s, metric) for s in summaries])


def _means(summaries: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    return {metric: interval(_values(summaries, metric)) for metric in METRICS}


def _half_width(summaries: dict[str, list[Summary]], metric: str) -> float:
    """Largest half-width of the paired intervals, relative to the first policy's mean."""
    first, *others = summaries.values()
    base = _values(first, metric)
    spans = [interval(_values(rows, metric) - base) for rows in others] or [interval(base)]
    widths = [(s["high"] - s["low"]) / 2 if s["low"] is not None else np.inf for s in spans]
    return float(max(widths) / abs(base.mean()))


def _differences(summaries: dict[str, list[Summary]]) -> list[dict[str, Any]]:
    against, *others = summaries
    rows = []
    for policy, metric in itertools.product(others, METRICS):
        base = _values(summaries[against], metric)
        difference = interval(_values(summaries[policy], metric) - base)
        relative = difference["mean"] / base.mean() if base.mean() else float("nan")
        row = {"policy": policy, "against": against, "metric": metric, "relative": relative}
        rows.append(row | difference)
    return rows


def frontier(
    words: Words, policies: Sequence[str], loads: Sequence[int], seeds: Sequence[int], run: Run
) -> dict[str, Any]:
    """Throughput against tok/s/user by sweeping the closed-loop concurrency (paper's Fig. 7)."""
    plan = list(itertools.product(policies, loads, seeds))
    cells = [Cell((*words, "--concurrency", str(c)), p, s) for p, c, s in plan]
    found = run(cells)
    points = []
    for i in range(0, len(plan), len(seeds)):
        rows, (policy, concurrency, _) = found[i : i + len(seeds)], plan[i]
        point: dict[str, Any] = {"policy": policy, "concurrency": concurrency}
        for metric in ("output_tok_s", "tok_s_per_user_p50", "tokens_per_round"):
            point[metric] = interval(_values(rows, metric))
        points.append(point)
    return {
        "experiment": "frontier",
        "words": list(words),
        "seeds": list(seeds),
        **origins(found),
        "points": points,
    }


def find_capacity(
    words: Words,
    policies: Sequence[str],
    seeds: Sequence[int],
    run: Run,
    *,
    attainment: float = 0.95,
    tolerance: float = 0.02,
) -> dict[str, Any]:
    """Largest load at which each policy still serves ``attainment`` of the requests in their SLO.

    Bisection between 0 and a load that fails, to within ``tolerance`` of it. A load passes when the
    mean attainment over the seeds does and no run was unstable; the verdict at the two ends of
    the last bracket is reported with its one-sided 95 % confidence.
    """
    unit = capacity(words)
    table, seen = {}, []
    for policy in policies:
        low, high, tried = 0.0, 0.0, []
        step = unit
        while high == 0.0 or high - low > tolerance * high:
            rate = step if high == 0.0 else (low + high) / 2
            found = run([Cell((*words, "--load", f"{rate:.6g}"), policy, s) for s in seeds])
            trial = _trial(found, rate, attainment)
            tried.append(trial)
            seen += found
            low, high = (rate, high) if trial["passed"] else (low, rate)
            step *= 2.0
            if step > 2**12 * unit or high and high < 2**-8 * unit:
                break
        table[policy] = {"capacity_rps": low, "fails_at_rps": high or None, "tried": tried}
    return {
        "experiment": "capacity",
        "words": list(words),
        "attainment": attainment,
        "tolerance": tolerance,
        "none_sustains_rps": unit,
        **origins(seen),
        "policies": table,
    }


CAPACITY_COLUMNS = ("sustains, requests/s", "confidence", "fails at", "confidence")


def capacity_row(found: dict[str, Any]) -> list[str]:
    """A policy's capacity for people: both ends of the bracket, and how sure their verdicts are."""
    cells = []
    for end in ("capacity_rps", "fails_at_rps"):
        trial = next((t for t in found["tried"] if t["load_rps"] == found[end]), None)
        cells += [number(found[end]), _sureness(trial)]
    return cells


def _sureness(trial: dict[str, Any] | None) -> str:
    if trial is None:
        return "-"
    if trial["unstable_runs"]:
        return "queue grew"
    return "-" if trial["confidence"] is None else f"{trial['confidence']:.0%}"


def _trial(found: Sequence[Summary], rate: float, attainment: float) -> dict[str, Any]:
    shares = _values(found, "slo_attainment")
    unstable = sum(bool(s["unstable"]) for s in found)
    passed = bool(shares.mean() >= attainment and not unstable)
    return {
        "load_rps": rate,
        "attainment": float(shares.mean()),
        "unstable_runs": unstable,
        "passed": passed,
        "confidence": _confidence(shares, attainment, passed),
    }


def _confidence(shares: Floats, attainment: float, passed: bool) -> float | None:
    """Probability, by t over seeds, that the true attainment is on the verdict's side."""
    if shares.size < 2 or not shares.std(ddof=1):
        return None
    score = (shares.mean() - attainment) / (shares.std(ddof=1) / np.sqrt(shares.size))
    above = float(stats.t.cdf(score, shares.size - 1))
    return above if passed else 1.0 - above


def sweep(
    words: Words,
    policies: Sequence[str],
    axes: dict[str, list[str]],
    seeds: Sequence[int],
    run: Run,
    samples: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Every combination of option values, or ``samples`` of a Latin hypercube over their ranges.

    ``axes``: option without dashes -> values; for a hypercube the two ends of a numeric range.
    """
    points = _hypercube(axes, samples, seed) if samples else _grid(axes)
    plan = list(itertools.product(points, policies, seeds))
    cells = [Cell((*words, *_options(point)), policy, s) for point, policy, s in plan]
    found = run(cells)
    rows = [
        {**point, "policy": policy, "seed": s, **_flat(summary)}
        for (point, policy, s), summary in zip(plan, found, strict=True)
    ]
    document = {"experiment": "sweep", "words": list(words), "axes": axes, "rows": rows}
    return document | origins(found)


def _grid(axes: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _hypercube(axes: dict[str, list[str]], samples: int, seed: int) -> list[dict[str, str]]:
    ends = []
    for name, values in axes.items():
        try:
            low, high = map(float, values)
        except ValueError:
            raise ValueError(
                f"--set {name}={','.join(values)}: a hypercube needs two numbers, low,high"
            ) from None
        ends.append((low, high, all(v.lstrip("-").isdigit() for v in values)))
    unit = qmc.LatinHypercube(len(axes), rng=np.random.default_rng(seed)).random(samples)
    return [
        {
            name: str(round(low + u * (high - low))) if whole else f"{low + u * (high - low):.6g}"
            for name, (low, high, whole), u in zip(axes, ends, row, strict=True)
        }
        for row in unit
    ]


def _options(point: dict[str, str]) -> Words:
    return tuple(word for name, text in point.items() for word in (f"--{name}", text))


def _flat(summary: Summary) -> dict[str, Any]:
    """The scalar part of a summary, percentiles as ``ttft_s.p95``."""
    flat: dict[str, Any] = {}
    for key, entry in summary.items():
        if isinstance(entry, dict) and set(entry) == {"p50", "p95", "p99"}:
            flat |= {f"{key}.{rank}": number for rank, number in entry.items()}
        elif not isinstance(entry, (dict, list)) and key not in ("policy", "seed"):
            flat[key] = entry
    return flat
