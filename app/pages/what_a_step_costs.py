"""What does a step cost? The bundle's latency samples, the model fitted to them, and its error."""

import numpy as np
import pandas as pd
import streamlit as st

from app import charts, controls, frames, load
from gpu_traces.fit import FitReport
from gpu_traces.latency import LatencyModel
from policies.cost import RULES

MODES = ("verify", "prefill", "mixed")


def pass_curves(model: LatencyModel, rules: list[str]) -> pd.DataFrame:
    """The model's target pass at empty context, and engines' beliefs about it (overhead left out).

    Columns: curve, tokens, ms.
    """
    curves = {
        f"belief, lookup '{rule}'": model.cost_table(rule).verify_s - model.overhead_s
        for rule in rules
    }
    curves["model"] = model.verify_s
    parts = [
        pd.DataFrame({"curve": name, "tokens": np.arange(seconds.size), "ms": seconds * 1e3})[1:]
        for name, seconds in curves.items()
    ]
    return pd.concat(parts, ignore_index=True)


def draft_curves(model: LatencyModel) -> pd.DataFrame:
    """The model's drafting time at empty context. Columns: length, requests, ms."""
    length, requests = np.indices(model.draft_s.shape)
    frame = pd.DataFrame(
        {"length": length.ravel(), "requests": requests.ravel(), "ms": model.draft_s.ravel() * 1e3}
    )
    return frame[(frame["length"] > 0) & (frame["requests"] > 0)]


def without_context(cells: pd.DataFrame, slope_s: float) -> pd.DataFrame:
    """Samples with the share of their cached tokens (``slope_s`` each) taken off."""
    share_ms = 1e3 * slope_s * cells["requests"] * cells["context_tokens"]
    return cells.assign(ms=cells["ms"] - share_ms)


def show_numbers(model: LatencyModel, report: FitReport, steps: pd.DataFrame) -> None:
    """Error of the fit and the costs that no chart shows; a dash where nothing was measured."""
    ragged = bool(steps.get("ragged", pd.Series([False])).any())
    hosted = bool((steps["mode"] == "overhead").any())
    error, tail, context, adaptive, overhead, noise = st.columns(6)
    error.metric("Median error, held out", f"{report.median_error:.1%}")
    tail.metric("p95 error, held out", f"{report.p95_error:.1%}")
    context.metric("Per 1,000 cached tokens", f"{model.context_s * 1e9:.3g} µs")
    extra_s = model.adaptive_s + 64 * model.adaptive_token_s
    adaptive.metric("Ragged step, 64 tokens", microseconds(extra_s, ragged))
    overhead.metric("Host overhead", microseconds(model.overhead_s, hosted))
    noise.metric("Noise, log s.d.", f"{model.spread:.1%}")
    st.caption(
        f"Fitted to {report.cells:,} shapes. Error: on {report.held_out:,} of them, of a fit"
        " that did not see those."
    )


def microseconds(seconds: float, measured: bool) -> str:
    """Microseconds, or a dash."""
    return f"{seconds * 1e6:.3g} µs" if measured else "–"


st.title("What does a step cost?")
with st.container(border=True):
    left, right = st.columns(2)
    with left:
        name = controls.pick_machine()
    with right:
        rules = st.multiselect(
            "Engines' beliefs to draw beside the model",
            RULES,
            key="rules",
            placeholder="None",
            help="How engines look a size up between the ones they profiled: ceil (vLLM),"
            " stairs (goodput), floor (SGLang 1-D), clamp (SGLang 2-D), linear (TensorRT-LLM),"
            " rate (ATOM).",
            **controls.BOUND,
        )
        logarithmic = st.toggle("Logarithmic axes", key="log", **controls.BOUND)
with controls.one_line_errors():
    found = load.step_times(name)
model, steps = found.model, found.samples
origin = controls.source({f"Step times of {model.name}": str(model.origin)})
if found.report:
    show_numbers(model, found.report, steps)
else:
    st.caption("A published table: no samples to fit, so no error to state.")
passes = without_context(frames.step_cells(steps, MODES), model.context_s)
drafts = without_context(frames.step_cells(steps, ("draft",)), model.draft_context_s)
figures = [charts.step_time(passes, pass_curves(model, rules), origin)]
if model.draft_s.any():
    figures.append(charts.draft_time(drafts, draft_curves(model), origin))
else:
    st.caption("This source states no cost of drafting: its model drafts for free.")
for figure in figures:
    if logarithmic:
        figure.update_xaxes(type="log").update_yaxes(type="log", rangemode="normal")
    st.plotly_chart(figure)
st.caption(
    "Both at empty context: what reading the cached tokens costs by the model is taken off every"
    " sample, so a sample off the line is an error of the model."
)
