"""The evaluation's figures: pure functions from a table of ``drafters.evaluate`` to a plot.

A colour is a drafter, the same in every figure; temperatures stand below each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from drafters.comparison import FEWEST_BLOCKS, in_order, shown_positions

Tables = dict[str, pd.DataFrame]

COLOURS = px.colors.qualitative.D3
LEAST_WEIGHT = 1e-3
"""Share of a position's anchors that a bin needs to be drawn."""
ROW_PX = 260
NAMES = {
    "tokens_per_round": "tokens per round",
    "conditional": "acceptance",
    "position": "draft position",
    "rejected": "rejected drafts per round",
    "draft_length": "drafts verified",
    "layers": "draft layers",
    "temperature": "T",
    "requests": "running requests",
    "milliseconds": "ms",
}


def _lines(table: pd.DataFrame, **rest: Any) -> go.Figure:
    """Lines with markers, a colour per drafter."""
    return _figure(px.line, in_order(table), markers=True, **rest)


def _figure(draw: Callable[..., go.Figure], table: pd.DataFrame, **rest: Any) -> go.Figure:
    order = {c: list(table[c].cat.categories) for c in table.select_dtypes("category")}
    heats = sorted(table["temperature"].unique(), reverse=True) if "temperature" in table else []
    rows = table[rest["facet_row"]].nunique() if "facet_row" in rest else 1
    made = draw(
        table,
        **{"color": "drafter", **rest},
        color_discrete_sequence=COLOURS,
        category_orders={**order, "temperature": heats},
        labels=NAMES,
        template="plotly_white",
        height=130 + ROW_PX * rows,
    )
    made.for_each_annotation(lambda note: note.update(text=note.text.replace("domain=", "")))
    return made


def accepted_length(tables: Tables) -> go.Figure:
    """Table 1: tokens per round by domain, one bar per drafter."""
    table = in_order(tables["accepted_length"].query("dataset == 'all'"))
    return _figure(
        px.bar, table, x="domain", y="tokens_per_round", error_y="half_width", barmode="group",
        facet_row="temperature", title="Accepted length, bonus included",
    )  # fmt: skip


def depth_sweep(tables: Tables) -> go.Figure:
    """Fig. 3: tokens per round by draft layers, a line per family."""
    table = tables["depth_sweep"].sort_values("layers")
    return _lines(
        table, x="layers", y="tokens_per_round", error_y="half_width", color="family",
        facet_col="domain", facet_row="temperature", title="Draft layers",
    )  # fmt: skip


def conditional_acceptance(tables: Tables) -> go.Figure:
    """Fig. 2: acceptance by draft position, given that all before were accepted."""
    table = tables["conditional_acceptance"]
    return _lines(
        table[table["reached"] >= FEWEST_BLOCKS], x="position", y="conditional",
        facet_col="domain", facet_row="temperature", title="Conditional acceptance",
    )  # fmt: skip


def threshold_sweep(tables: Tables) -> go.Figure:
    """Fig. 5: accepted against rejected tokens per round, along the threshold."""
    return _lines(
        tables["threshold_sweep"], x="rejected", y="tokens_per_round", facet_col="domain",
        facet_row="temperature", hover_data=["threshold", "rate"],
        title="Static confidence threshold",
    )  # fmt: skip


def length_sweep(tables: Tables) -> go.Figure:
    """Fig. 4: tokens per round by number of verified drafts."""
    return _lines(
        tables["length_sweep"], x="draft_length", y="tokens_per_round", error_y="half_width",
        facet_col="domain", facet_row="temperature", title="Verified drafts",
    )  # fmt: skip


def reliability(tables: Tables) -> go.Figure:
    """Fig. 6: observed against predicted prefix survival, before and after calibration."""
    table = shown_positions(tables["reliability"])
    whole = table.groupby(["drafter", "temperature", "method", "position"])["weight"]
    table = table[table["weight"] >= LEAST_WEIGHT * whole.transform("sum")]
    figure = _lines(
        table, x="predicted", y="observed", color="method", line_dash="temperature",
        facet_col="position", facet_row="drafter", title="Reliability of the prefix survival",
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.replace("drafter=", "")))
    figure.add_shape(
        type="line", x0=0, y0=0, x1=1, y1=1, line={"dash": "dot", "color": "gray"},
        row="all", col="all",
    )  # fmt: skip
    return figure


def round_latency(tables: Tables) -> go.Figure:
    """Time of drafting and of the whole round by running requests."""
    parts = {"draft_ms": "drafting", "round_ms": "whole round"}
    table = tables["round_latency"].rename(columns=parts).melt(
        ["drafter", "requests"], list(parts.values()), "part", "milliseconds"
    )  # fmt: skip
    figure = _lines(
        table, x="requests", y="milliseconds", facet_col="part", log_x=True, log_y=True,
        title="Time of a full-length round",
    )  # fmt: skip
    return figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))


FIGURES: dict[str, Callable[[Tables], go.Figure]] = {
    "accepted_length": accepted_length,
    "depth_sweep": depth_sweep,
    "conditional_acceptance": conditional_acceptance,
    "threshold_sweep": threshold_sweep,
    "length_sweep": length_sweep,
    "reliability": reliability,
    "round_latency": round_latency,
}


def draw(tables: Tables) -> dict[str, go.Figure]:
    """Every figure that there are numbers for, by name."""
    return {name: make(tables) for name, make in FIGURES.items() if name in tables}


def page(drawn: dict[str, go.Figure]) -> str:
    """One HTML page with all figures; works without a network."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=(i == 0))
        for i, figure in enumerate(drawn.values())
    ]
    body = "\n".join(parts)
    return f'<!doctype html><meta charset="utf-8"><title>Drafters compared</title>\n{body}\n'
