"""Figures: pure functions from a frame to a plotly figure, with units on every axis.

``origin`` says where the numbers come from and becomes the figure's subtitle, so that it stays with
the picture when the picture leaves the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import theme

HEIGHT = 460
SUBTITLE_WIDTH = 96
"""Characters that fit over a chart of half the page."""

RANKS = {"p50": "circle", "p95": "circle-open", "p99": "line-ns-open"}


def throughput(frame: pd.DataFrame, origin: str, title: str) -> go.Figure:
    """Output tok/s against tok/s/user, a line per policy over its concurrencies if it has several.

    Columns: policy, tok_s_per_user, output_tok_s, and optionally concurrency.
    """
    figure = _figure(title, origin, "tok_s_per_user", "output_tok_s")
    swept = "concurrency" in frame
    for policy, rows in frame.groupby("policy", sort=False):
        rows = rows.sort_values("concurrency") if swept else rows
        style = theme.policy_style(str(policy))
        figure.add_scatter(
            x=rows["tok_s_per_user"],
            y=rows["output_tok_s"],
            name=str(policy),
            mode="lines+markers" if len(rows) > 1 else "markers",
            line={"color": style.colour, "dash": style.dash},
            marker={"color": style.colour, "symbol": style.symbol, "size": 9 if swept else 14},
            customdata=rows[["concurrency"]] if swept else None,
            hovertemplate="%{x:,.4s} tok/s/user, %{y:,.4s} tok/s"
            + (", %{customdata[0]} requests out" if swept else ""),
        )
    figure.update_xaxes(rangemode="tozero", tickformat=",")
    return figure.update_yaxes(rangemode="tozero", tickformat=",")


def latencies(frame: pd.DataFrame, origin: str) -> go.Figure:
    """TTFT and TPOT of each policy: p50, p95 and p99 on one line. Frame: ``frames.comparison``."""
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    for column, metric in enumerate(("ttft", "tpot"), start=1):
        for row in frame.to_dict("records"):
            _ranks(figure, row, metric, column)
        figure.update_xaxes(title=theme.TITLES[f"{metric}_ms"], rangemode="tozero", col=column)
    _dress(figure, "How long requests wait: p50 (dot), p95 (ring), p99 (tick)", origin)
    figure.update_yaxes(autorange="reversed", title="Policy", col=1)
    return figure.update_layout(showlegend=False, height=max(HEIGHT, 170 + 34 * len(frame)))


def _ranks(figure: go.Figure, row: dict[str, object], metric: str, column: int) -> None:
    colour = theme.policy_style(str(row["policy"])).colour
    figure.add_scatter(
        x=[row[f"{metric}_{rank}_ms"] for rank in RANKS],
        y=[row["policy"]] * len(RANKS),
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "symbol": list(RANKS.values()), "size": 12},
        marker_line={"width": 2, "color": colour},
        name=str(row["policy"]),
        customdata=list(RANKS),
        hovertemplate="%{customdata}: %{x:.4g} ms",
        row=1,
        col=column,
    )


def acceptance(frame: pd.DataFrame, origin: str, value: str) -> go.Figure:
    """Acceptance by draft position, a line per domain with 95 % intervals.

    ``frame``: ``frames.acceptance``; ``value``: conditional or survival.
    """
    title = "Acceptance by draft position, 95 % intervals"
    figure = _figure(title, origin, "position", value)
    for domain, rows in frame.dropna(subset=[value]).groupby("domain", sort=False):
        colour = theme.domain_colour(str(domain))
        figure.add_scatter(
            x=rows["position"],
            y=rows[value],
            error_y={"array": rows[f"{value}_half"].fillna(0.0), "thickness": 1.2},
            name=str(domain),
            mode="lines+markers",
            line={"color": colour},
            customdata=rows[["blocks"]],
            hovertemplate="position %{x}: %{y:.1%}, %{customdata[0]:,} blocks",
        )
    figure.update_xaxes(dtick=1)
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def reliability(frame: pd.DataFrame, origin: str) -> go.Figure:
    """Predicted against observed survival, a line per kind of confidence, and the diagonal.

    ``frame``: one or more ``frames.reliability`` on top of each other.
    """
    title = "Can the confidences be trusted? On the diagonal, yes"
    figure = _figure(title, origin, "predicted", "observed")
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", hoverinfo="skip",
        line={"color": theme.NEUTRAL.colour, "dash": "dot", "width": 1.5},
    )  # fmt: skip
    for colour, (name, rows) in zip(
        (theme.PALETTE[3], theme.PALETTE[0]), frame.groupby("confidence", sort=False), strict=False
    ):
        figure.add_scatter(
            x=rows["predicted"],
            y=rows["observed"],
            name=str(name),
            mode="lines+markers",
            line={"color": colour},
            customdata=rows[["blocks"]],
            hovertemplate="predicted %{x:.1%}, observed %{y:.1%}, %{customdata[0]:,} blocks",
        )
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%")
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def step_time(cells: pd.DataFrame, curves: pd.DataFrame, origin: str) -> go.Figure:
    """Measured passes as points by context, and the model's curves over T.

    ``cells``: ``frames.step_cells``; ``curves``: columns curve (one is ``model``), tokens, ms.
    """
    figure = _figure("What a target pass costs", origin, "tokens", "pass_ms")
    contexts = sorted(cells["context_tokens"].unique())
    for colour, context in zip(_shades(len(contexts)), contexts, strict=True):
        rows = cells[cells["context_tokens"] == context]
        figure.add_scatter(
            x=rows["tokens"],
            y=rows["ms"],
            mode="markers",
            name=f"samples, {context:,} cached tokens per request",
            marker={"color": colour, "size": 5},
            customdata=rows[["requests", "mode", "repetitions"]],
            hovertemplate="%{customdata[1]}, T = %{x}, R = %{customdata[0]}: %{y:.4g} ms"
            " (median of %{customdata[2]})",
        )
    beliefs = cycle(theme.PALETTE[4:] + theme.PALETTE[1:3])
    for name, rows in curves.groupby("curve", sort=False):
        colour = theme.PALETTE[3] if name == "model" else next(beliefs)
        figure.add_scatter(
            x=rows["tokens"], y=rows["ms"], mode="lines", name=str(name),
            line={"color": colour, "shape": "hv", "width": 1.8},
            hovertemplate="T = %{x}: %{y:.4g} ms",
        )  # fmt: skip
    return figure.update_yaxes(rangemode="tozero")


def draft_time(cells: pd.DataFrame, curves: pd.DataFrame, origin: str) -> go.Figure:
    """Cost of drafting against R: samples as points, the model as a line, per draft length.

    ``cells``: ``frames.step_cells`` of mode draft; ``curves``: columns length, requests, ms.
    """
    figure = _figure("What drafting costs, by draft length", origin, "requests", "draft_ms")
    lengths = sorted(curves["length"].unique())
    for colour, length in zip(_shades(len(lengths)), lengths, strict=True):
        line = curves[curves["length"] == length]
        points = cells[cells["draft_length"] == length]
        figure.add_scatter(
            x=line["requests"], y=line["ms"], mode="lines", name=f"length {length}",
            line={"color": colour}, legendgroup=str(length),
        )  # fmt: skip
        figure.add_scatter(
            x=points["requests"], y=points["ms"], mode="markers", showlegend=False,
            marker={"color": colour, "size": 6}, legendgroup=str(length),
            customdata=points[["context_tokens"]],
            hovertemplate="R = %{x}, %{customdata[0]:,} cached tokens each: %{y:.4g} ms",
        )  # fmt: skip
    return figure.update_yaxes(rangemode="tozero")


TIMELINE = {
    "decode_requests": "Decoding requests",
    "queue_length": "Queue (requests)",
    "budget_tokens": "Budget (tokens)",
    "step_ms": "Step time (ms)",
}


def timeline(steps: pd.DataFrame, origin: str, policy: str) -> go.Figure:
    """Batch, queue, budget and step time over a run. Columns: start_s, step_ms and the others."""
    figure = make_subplots(rows=len(TIMELINE), shared_xaxes=True, vertical_spacing=0.035)
    colour = theme.policy_style(policy).colour
    for row, (column, title) in enumerate(TIMELINE.items(), start=1):
        figure.add_scatter(
            x=steps["start_s"], y=steps[column], mode="lines", name=title,
            line={"color": colour, "width": 1.2}, row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title=title, rangemode="tozero", row=row)
    figure.update_xaxes(title=theme.TITLES["time_s"], row=len(TIMELINE))
    _dress(figure, f"{policy} over time", origin)
    return figure.update_layout(showlegend=False, height=760)


def distribution(times: dict[str, pd.DataFrame], origin: str, metric: str) -> go.Figure:
    """Share of requests that took at most a time. ``times``: policy -> ``frames.request_times``."""
    figure = _figure("How long requests took", origin, metric, "share")
    for policy, frame in times.items():
        values = np.sort(frame[metric].dropna().to_numpy())
        style = theme.policy_style(policy)
        share = np.linspace(0, 1, min(400, values.size)) if values.size else values
        figure.add_scatter(
            x=np.quantile(values, share) if values.size else values,
            y=share,
            mode="lines",
            name=policy,
            line={"color": style.colour, "dash": style.dash},
            hovertemplate="%{y:.0%} of requests within %{x:.4g} ms",
        )
    return figure.update_yaxes(
        range=[0, 1.02], tickformat=".0%", title="Share of completed requests"
    )


def positions(frame: pd.DataFrame, origin: str) -> go.Figure:
    """Share of rounds that verified (outline) and accepted (filled) each draft position.

    ``frame``: ``frames.position_rates``.
    """
    figure = _figure("Verified (outline) and accepted (filled)", origin, "position", "share")
    for policy, rows in frame.groupby("policy", sort=False):
        colour = theme.policy_style(str(policy)).colour
        for column, fill in (("verified", "rgba(0,0,0,0)"), ("accepted", colour)):
            figure.add_bar(
                x=rows["position"], y=rows[column], name=str(policy), offsetgroup=str(policy),
                marker={"color": fill, "line": {"color": colour, "width": 1.5}},
                legendgroup=str(policy), showlegend=column == "accepted",
                hovertemplate=f"{column} in %{{y:.1%}} of rounds",
            )  # fmt: skip
    figure.update_layout(barmode="group").update_xaxes(dtick=1)
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero", title="Share of rounds")


def _figure(title: str, origin: str, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    figure.update_xaxes(title=theme.TITLES.get(x, x))
    figure.update_yaxes(title=theme.TITLES.get(y, y))
    return _dress(figure, title, origin)


def _dress(figure: go.Figure, title: str, origin: str) -> go.Figure:
    lines = [part for line in origin.split("<br>") for part in wrap(line, SUBTITLE_WIDTH)]
    subtitle = {"text": "<br>".join(lines), "font": {"size": 12}}
    figure.update_layout(
        title={"text": title, "subtitle": subtitle},
        height=HEIGHT + 20 * len(lines),
        margin={"l": 10, "r": 10, "t": 72 + 20 * len(lines), "b": 10},
        legend={"orientation": "h", "y": -0.24, "yanchor": "top"},
        hoverlabel={"namelength": -1},
    )
    return figure.update_xaxes(gridcolor=theme.GRID).update_yaxes(gridcolor=theme.GRID)


def _shades(count: int) -> Sequence[str]:
    """``count`` steps from pale to dark blue, for an ordered quantity."""
    share = np.linspace(0, 1, count) if count != 1 else np.array([1.0])
    pale, dark = np.array([158, 202, 225]), np.array([8, 48, 107])
    return [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in pale + share[:, None] * (dark - pale)]
