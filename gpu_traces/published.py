"""Published numbers as worlds and traces: digitised from papers and posts, never measured here.

``published_latency``: step costs of a source's own table. ``published_traces``: responses made up
so that what the source printed holds on a walk. The generator is ``gpu_traces.generator``; what
each source fixes, what it doesn't, and how well the result fits is in docs/published.md.

Confidences. Fig. 6 of the DSpark paper gives reliability and histogram of raw cumulative
confidences. Against its observed acceptance o, position 1 follows logit o = 0.831 logit c - 0.277,
so raw ones are made from the truth q by

    logit c = (logit q - BIAS[k]) / SLOPE

with the later BIAS from the mean raw survivals at positions 3, 5 and 7. Calibrated ones go through
the paper's own remedy, sequential temperature scaling, with the STS below (fitted to these raw
ones): a temperature can't mend an offset, which leaves the small error the paper prints, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit

from gpu_traces.calibration import EDGE, calibrate
from gpu_traces.fit import levels, staircase
from gpu_traces.generator import Difficulty, draw_traces, solve_means
from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces, Origin
from policies.cost import densify

FOLDER = Path(__file__).parent / "data" / "published"

SLOPE = 0.831
BIAS = (-0.277, -0.174, -0.174, -0.062, -0.062, 0.020, 0.020)
STS = (1.404, 1.342, 1.342, 1.206, 1.190, 1.150, 1.170)
"""Positions beyond 7 take the last entry."""

PAPER = "DSpark, arXiv 2607.05147"
NOMINAL_CONTEXT = 8192
"""Cached tokens per request assumed where a source shows a per-request cost but no context."""

Rates = dict[str, tuple[float, ...]]

_DOMAINS = {"SPEED-Bench 1K/2K c64 T1.0 top_p0.95": "speed-bench", "developer prior": "any"}


@cache
def published_table(name: str) -> pd.DataFrame:
    """One digitised table as it ships, e.g. ``paper_fig5_threshold_sweep``; don't write to it."""
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.csv")))
        raise ValueError(f"unknown published table {name!r}; known: {known}")
    return pd.read_csv(path)


def latency_names() -> list[str]:
    """Names that ``published_latency`` knows."""
    return sorted(_LATENCY)


def trace_names() -> list[str]:
    """Names that ``published_traces`` knows."""
    return sorted(_TRACES)


def published_latency(name: str, gamma: int = 7) -> LatencyModel:
    """Step costs of a published table, for blocks of ``gamma`` draft tokens; see _LATENCY."""
    if name not in _LATENCY:
        raise ValueError(f"unknown published latency {name!r}; known: {', '.join(latency_names())}")
    return _LATENCY[name](name, gamma)


def published_traces(
    name: str,
    *,
    responses: int = 300,
    response_tokens: int = 400,
    calibrated: bool = True,
    seed: int = 0,
) -> AcceptanceTraces:
    """Made-up responses with a source's acceptance by domain and position; see _TRACES.

    ``responses`` per domain of ``response_tokens`` on average. ``calibrated=False`` gives the raw,
    over-confident confidences. Equal arguments give equal bytes.
    """
    rates, citation = _source(name)
    gamma = len(next(iter(rates.values())))
    means = solve_means(tuple(rates.values()), Difficulty())
    traces = draw_traces(tuple(rates), means, Difficulty(), responses, response_tokens, seed)
    raw = raw_confidence(traces.alpha)
    scales = _per_position(STS, gamma) if calibrated else 1.0
    return replace(
        traces,
        name=name,
        origin=Origin("published", f"{citation}; responses generated to fit, seed {seed}"),
        confidence=calibrate(raw, scales),
    )


def trace_rates(name: str) -> Rates:
    """The source's conditional acceptance: domain -> one rate per position."""
    return _source(name)[0]


def _source(name: str) -> tuple[Rates, str]:
    if name not in _TRACES:
        raise ValueError(f"unknown published traces {name!r}; known: {', '.join(trace_names())}")
    return _TRACES[name]()


def raw_confidence(q: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over-confident head outputs for true acceptance probabilities q [A, gamma]."""
    odds = logit(np.clip(q, EDGE, 1 - EDGE)) - _per_position(BIAS, q.shape[1])
    raw: npt.NDArray[np.float32] = expit(odds / np.float32(SLOPE)).astype(np.float32)
    return raw


def _per_position(values: tuple[float, ...], gamma: int) -> npt.NDArray[np.float32]:
    return np.array([values[min(k, len(values) - 1)] for k in range(gamma)], dtype=np.float32)


def _fig2(method: str) -> tuple[Rates, str]:
    table = published_table("paper_fig2_conditional_acceptance")
    rows = table[table["method"] == method]
    rates = {
        str(domain).lower(): tuple(group.sort_values("draft_position")["conditional_acceptance"])
        for domain, group in rows.groupby("domain", sort=False)
    }
    return rates, f"{PAPER}, Fig. 2 and 6, {method} on Qwen3-4B"


def _per_position_survival(model: str, arm: str, citation: str) -> tuple[Rates, str]:
    """Rates from unconditional survivals: r_k = S_k / S_(k-1)."""
    table = published_table("published_perpos")
    rows = table[(table["model"] == model) & table["arm"].str.startswith(arm)]
    rates = {}
    for workload, group in rows.groupby("workload", sort=False):
        survival = group.sort_values("position_1based")["unconditional_survival"].to_numpy()
        conditional = survival / np.concatenate(([1.0], survival[:-1]))
        rates[_DOMAINS.get(str(workload), str(workload).lower())] = tuple(map(float, conditional))
    return rates, f"{citation}; confidences as in {PAPER}, Fig. 6"


_TRACES: dict[str, Callable[[], tuple[Rates, str]]] = {
    "dspark-qwen3-4b": lambda: _fig2("DSpark"),
    "dflash-qwen3-4b": lambda: _fig2("DFlash"),
    "eagle3-qwen3-4b": lambda: _fig2("Eagle3"),
    "dspark-kimi-k3": lambda: _per_position_survival(
        "Kimi K3", "fixed k7", "vLLM blog 2026-07-27, DSpark on Kimi K3"
    ),
    "dspark-glm-5.2": lambda: _per_position_survival(
        "GLM-5.2-NVFP4 4xGB200", "baseline", "vllm#52992, DSpark k=16 on GLM-5.2"
    ),
    "dspark-v4-prior": lambda: _per_position_survival(
        "DeepSeek-V4-Flash/Qwen3", "prior", "vLLM fork a6f6bb1d, survival prior"
    ),
}


def _vllm_fig2(name: str, gamma: int) -> LatencyModel:
    """vLLM blog 2026-08-14, Fig. 2: medians of 5 by captured size; eager beyond 1,024 tokens.

    The medians stay as they are, dips included: repeats agree within 0.6 %. A parallel drafter
    costs the same whatever length is asked for. Profiled with 8,192 cached tokens per request.
    """
    table = published_table("vllm_fig2").iloc[:, :4]
    table = table.set_axis(["table", "kind", "size", "ms"], axis=1)
    median = table[table["kind"] == "median_of_5"]
    verify, draft = (median[median["table"] == kind] for kind in ("verify", "draft"))
    sizes, seconds = verify["size"].to_numpy(dtype=np.int64), verify["ms"].to_numpy() / 1e3
    limit, last = 1024, int(sizes[-1])
    graph = sizes <= limit
    dense = densify(sizes[~graph], seconds[~graph], "linear", last)
    dense[: limit + 1] = staircase(sizes[graph], seconds[graph], limit)
    requests = draft["size"].to_numpy()
    curve = staircase(requests, draft["ms"].to_numpy() / 1e3, int(requests[-1]))
    return LatencyModel(
        name,
        Origin("published", "vLLM blog 2026-08-14, Fig. 2: DeepSeek-V4-Flash, TP4, B300"),
        _any_length(curve, gamma),
        dense,
        spread=0.006,
        captured_sizes=tuple(int(s) for s in sizes[graph]),
        max_context_tokens=int(requests[-1]) * NOMINAL_CONTEXT,
    )


def _dcut(name: str, gamma: int) -> LatencyModel:
    """D-Cut documentation: verify time by batch R and keep ratio, so over T = R * 16 * ratio.

    At equal T the time rises with R by 0.4 ms a request, which is reading its cache: charged per
    cached token at NOMINAL_CONTEXT. Drafting isn't in the source and costs nothing here.
    """
    table = published_table("dcut_cost_table")
    rows = table[table["model"] == "Qwen3-8B dense"]
    cells = pd.DataFrame(
        {
            "requests": rows["batch_size"],
            "tokens": (rows["batch_size"] * 16 * rows["keep_ratio"]).astype(int),
            "context_tokens": NOMINAL_CONTEXT,
            "seconds": rows["verify_step_ms"] / 1e3,
        }
    )
    sizes, seconds, slope = levels(cells, "tokens")
    last, most = int(sizes[-1]), int(cells["requests"].max())
    return LatencyModel(
        name,
        Origin("published", "D-Cut documentation (arXiv 2607.14647): Qwen3-8B, H20 TP1"),
        np.zeros((gamma + 1, most + 1)),
        densify(sizes, np.maximum.accumulate(seconds), "linear", last),
        context_s=slope,
        max_context_tokens=most * NOMINAL_CONTEXT,
    )


def _any_length(curve: npt.NDArray[np.float64], gamma: int) -> npt.NDArray[np.float64]:
    table = np.tile(curve, (gamma + 1, 1))
    table[0] = 0.0
    table[:, 0] = 0.0
    return table


_LATENCY: dict[str, Callable[[str, int], LatencyModel]] = {
    "vllm-v4-flash-b300": _vllm_fig2,
    "dcut-qwen3-8b-h20": _dcut,
}
