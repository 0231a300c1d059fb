"""The evaluation's figures: pure functions from a table of ``drafters.evaluate`` to a plot."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

Tables = dict[str, pd.DataFrame]

TOKENS = "tokens per round, bonus included"


def _series(table: pd.DataFrame) -> pd.DataFrame:
    """Adds ``series``: drafter and temperature in one label."""
    labels = [f"{d}, T={t:g}" for d, t in zip(table["drafter"], table["temperature"], strict=True)]
    return table.assign(series=labels)


def accepted_length(tables: Tables) -> go.Figure:
    """Fig. 3: tokens per round by domain, one bar per drafter (families, depths)."""
    table = _series(tables["accepted_length"].query("dataset == 'all'"))
    return px.bar(
        table, x="domain", y="tokens_per_round", error_y="half_width", color="series",
        barmode="group", title="Accepted length", labels={"tokens_per_round": TOKENS},
    )  # fmt: skip


def conditional_acceptance(tables: Tables) -> go.Figure:
    """Fig. 2: acceptance by draft position, given that all before were accepted."""
    return px.line(
        _series(tables["conditional_acceptance"]), x="position", y="conditional", color="series",
        facet_col="domain", markers=True, title="Conditional acceptance",
    )  # fmt: skip


def threshold_sweep(tables: Tables) -> go.Figure:
    """Fig. 5: accepted against rejected tokens per round, along the threshold."""
    return px.line(
        _series(tables["threshold_sweep"]), x="rejected", y="tokens_per_round", color="series",
        facet_col="domain", markers=True, hover_data=["threshold", "rate"],
        title="Static confidence threshold", labels={"tokens_per_round": TOKENS},
    )  # fmt: skip


def length_sweep(tables: Tables) -> go.Figure:
    """Fig. 4: tokens per round by number of verified drafts."""
    return px.line(
        _series(tables["length_sweep"]), x="draft_length", y="tokens_per_round", color="series",
        facet_col="domain", error_y="half_width", markers=True,
        title="Verified drafts", labels={"tokens_per_round": TOKENS},
    )  # fmt: skip


def reliability(tables: Tables) -> go.Figure:
    """Fig. 6: observed against predicted prefix survival, before and after calibration."""
    table = _series(tables["reliability"])
    lines = table.assign(series=table["series"] + ", " + table["method"])
    figure = px.line(
        lines, x="predicted", y="observed", color="series", facet_col="position",
        facet_col_wrap=4, markers=True, title="Reliability of the prefix survival",
    )  # fmt: skip
    figure.add_shape(
        type="line", x0=0, y0=0, x1=1, y1=1, line={"dash": "dot", "color": "gray"},
        row="all", col="all",
    )  # fmt: skip
    return figure


FIGURES: dict[str, Callable[[Tables], go.Figure]] = {
    "accepted_length": accepted_length,
    "conditional_acceptance": conditional_acceptance,
    "threshold_sweep": threshold_sweep,
    "length_sweep": length_sweep,
    "reliability": reliability,
}


def draw(tables: Tables) -> dict[str, go.Figure]:
    """Every figure by name."""
    return {name: make(tables) for name, make in FIGURES.items()}


def page(drawn: dict[str, go.Figure]) -> str:
    """One HTML page with all figures; works without a network."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=(i == 0))
        for i, figure in enumerate(drawn.values())
    ]
    body = "\n".join(parts)
    return f'<!doctype html><meta charset="utf-8"><title>Drafters compared</title>\n{body}\n'
