"""How well generated traces fit their sources: ``python -m gpu_traces.published_check --out docs``.

Prints the tables of docs/published.md and writes its figures: what was fitted (Fig. 2 and 6 of the
DSpark paper) and what was not (the threshold sweep of Fig. 5). The tests hold the same functions
against the same sources.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit

from gpu_traces.calibration import calibrate
from gpu_traces.generator import Difficulty, draw_traces, solve_means
from gpu_traces.published import (
    STS,
    published_latency,
    published_table,
    published_traces,
    raw_confidence,
    trace_rates,
)
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.svg import Line, Panel, figure
from gpu_traces.walk import marginals, room, walk, walked_anchors

Floats = npt.NDArray[np.float64]

ALPACA = (0.769, 0.737, 0.737, 0.727, 0.727, 0.7245, 0.7245)
"""Conditional acceptance on Alpaca: the observed survivals of Fig. 6, geometric between them."""

DRAFTERS = ("dspark-qwen3-4b", "dflash-qwen3-4b", "eagle3-qwen3-4b")


class Reliability(NamedTuple):
    """Walked rounds [n, 7]: cumulative confidences before and after STS, and prefix accepted."""

    before: Floats
    after: Floats
    outcome: Floats


def generate(rates: tuple[float, ...], responses: int, seed: int) -> AcceptanceTraces:
    """Traces of one unnamed domain with the published difficulty."""
    means = solve_means((rates,), Difficulty())
    return draw_traces(("one",), means, Difficulty(), responses, 400, seed)


@cache
def alpaca(responses: int = 1000, seed: int = 6) -> Reliability:
    """Generated counterpart of Fig. 6."""
    traces = generate(ALPACA, responses, seed)
    rows = walked_anchors(traces)
    rows = rows[room(traces, rows) == traces.gamma]
    raw = raw_confidence(traces.alpha[rows])
    outcome = traces.accepted[rows, None] > np.arange(7)
    before, after = (np.cumprod(c, axis=1, dtype=np.float64) for c in (raw, calibrate(raw, STS)))
    return Reliability(before, after, outcome.astype(np.float64))


def expected_calibration_error(predicted: Floats, outcome: Floats) -> float:
    """Mean |predicted - observed| over 20 equal-width bins, weighted by their share."""
    bins = np.minimum((predicted * 20).astype(int), 19)
    gap = np.bincount(bins, predicted - outcome, 20)
    return float(np.abs(gap).sum() / predicted.size)


def roc_auc(predicted: Floats, outcome: Floats) -> float:
    """Probability that an accepted prefix ranks above a rejected one."""
    rank = np.empty(predicted.size)
    rank[np.argsort(predicted, kind="stable")] = np.arange(1, predicted.size + 1)
    positive = outcome.sum()
    pairs = positive * (outcome.size - positive)
    return float((rank[outcome > 0].sum() - positive * (positive + 1) / 2) / pairs)


def reliability_table() -> pd.DataFrame:
    """ECE before and after STS and AUC, printed against generated, at positions 1, 3, 5, 7."""
    sample = alpaca()
    rows = []
    for position, before, after, auc in published_table("paper_fig6_ece_auc").to_numpy():
        k = int(position) - 1
        outcome = sample.outcome[:, k]
        made_before = expected_calibration_error(sample.before[:, k], outcome)
        made_after = expected_calibration_error(sample.after[:, k], outcome)
        made_auc = roc_auc(sample.after[:, k], outcome)
        rows.append((k + 1, before, made_before, after, made_after, auc, made_auc))
    names = ["position", "ECE raw", "made", "ECE STS", "made ", "AUC", "made  "]
    return pd.DataFrame(rows, columns=names)


def threshold_sweep(domain: str, responses: int = 150) -> pd.DataFrame:
    """Fig. 5's dataset of a domain: accepted and rejected tokens per step, printed and generated.

    The domain's rates are shifted, in logits, to the dataset's accepted length at threshold 0.
    """
    table = published_table("paper_fig5_threshold_sweep")
    printed = table[table["domain"] == domain]
    goal = float(printed["accepted_tokens_per_step_incl_bonus"].iloc[0])
    odds = logit(trace_rates("dspark-qwen3-4b")[domain.lower()])

    def excess(shift: float) -> float:
        return float(1 + np.cumprod(expit(odds + shift)).sum() - goal)

    shift = brentq(excess, -2.0, 2.0)
    traces = generate(tuple(map(float, expit(odds + shift))), responses, seed=5)
    raw = raw_confidence(traces.alpha)
    rows = [_one_threshold(traces, raw, t) for t in printed["confidence_threshold"]]
    made = pd.DataFrame(rows, columns=["made accepted", "made rejected"], index=printed.index)
    kept = printed.iloc[:, [0, 1, 2, 3]].set_axis(
        ["domain", "threshold", "accepted", "rejected"], axis=1
    )
    return kept.join(made)


def _one_threshold(
    traces: AcceptanceTraces, raw: npt.NDArray[np.float32], threshold: float
) -> tuple[float, float]:
    """Accepted (with bonus) and rejected tokens per step, cut before the first c < threshold."""
    length = np.cumprod(raw >= threshold, axis=1, dtype=np.int8).sum(axis=1, dtype=np.int8)
    gained = np.minimum(traces.accepted, length)
    rows = walk(traces.first_anchor, gained, traces.gamma)
    rows = rows[room(traces, rows) == traces.gamma]
    return float(gained[rows].mean() + 1), float((length - gained)[rows].mean())


def acceptance_figure() -> str:
    """Fig. 2: printed values as points, generated ones as lines."""
    panels = []
    for name in DRAFTERS:
        traces = published_traces(name)
        seen = marginals(traces, walked_anchors(traces))
        lines = []
        for i, (domain, rates) in enumerate(trace_rates(name).items()):
            made = seen[seen["domain"] == domain]
            lines.append(Line(domain, made["position"], made["conditional"], i))
            lines.append(Line("", np.arange(1, len(rates) + 1), rates, i, points=True))
        panels.append(Panel(name, "draft position", "accepted | before", lines, (0.5, 1.0)))
    return figure(panels)


def reliability_figure() -> str:
    """Fig. 6, positions 1, 3 and 7: distribution functions of raw cumulative confidence."""
    table = published_table("paper_fig6_histogram")
    edges = np.arange(1, 21) / 20
    panels = []
    for position in (1, 3, 7):
        share = table[table["draft_position"] == position]["sample_share"].to_numpy()
        mine, _ = np.histogram(alpaca().before[:, position - 1], bins=20, range=(0, 1))
        lines = [
            Line("generated", edges, np.cumsum(mine / mine.sum()), 0),
            Line("paper", edges, np.cumsum(share / share.sum()), 1, points=True),
        ]
        title = f"raw prefix confidence, position {position}"
        panels.append(Panel(title, "confidence", "share below", lines, (0.0, 1.0)))
    return figure(panels)


def threshold_figure(sweeps: list[pd.DataFrame]) -> str:
    """Fig. 5, not fitted: accepted against rejected tokens per step."""
    panels = []
    for sweep in sweeps:
        lines = [
            Line("generated", sweep["made rejected"], sweep["made accepted"], 0),
            Line("paper", sweep["rejected"], sweep["accepted"], 1, points=True),
        ]
        domain = str(sweep["domain"].iloc[0])
        panels.append(Panel(domain, "rejected per step", "accepted", lines, (1.0, 7.0)))
    return figure(panels)


def latency_figure() -> str:
    """The vLLM world inside its captured sizes, and what three lookup rules believe of it."""
    world = published_latency("vllm-v4-flash-b300")
    sizes = np.arange(1, 1025)
    zoom = slice(127, 260)
    lines = [Line("world", sizes, world.verify_s[1:1025] * 1e3)]
    near = [
        Line(rule, sizes[zoom], world.cost_table(rule).verify_s[sizes[zoom]] * 1e3, i + 1)
        for i, rule in enumerate(("ceil", "floor", "linear"))
    ]
    near.append(Line("world", sizes[zoom], world.verify_s[sizes[zoom]] * 1e3))
    draft = Line("drafting", np.arange(1, 257), world.draft_s[7, 1:] * 1e3)
    return figure(
        [
            Panel("verify, captured sizes", "tokens", "ms", lines, (0.0, 24.0)),
            Panel("beliefs, 128 to 260 tokens", "tokens", "ms", near, (8.0, 13.0)),
            Panel("draft", "requests", "ms", [draft], (0.0, 6.0)),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Print the tables; write the figures under ``--out``/img."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs", help="folder of the docs (default: docs)")
    images = Path(parser.parse_args(argv).out) / "img"
    images.mkdir(parents=True, exist_ok=True)
    sweeps = [threshold_sweep(domain) for domain in ("Math", "Code", "Chat")]
    print(reliability_table().round(3).to_string(index=False))
    print(pd.concat(sweeps).round(2).to_string(index=False))
    for name, text in {
        "published_acceptance": acceptance_figure(),
        "published_confidence": reliability_figure(),
        "published_thresholds": threshold_figure(sweeps),
        "published_latency": latency_figure(),
    }.items():
        (images / f"{name}.svg").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
