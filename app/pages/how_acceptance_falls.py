"""How does acceptance fall with position? By domain, and whether confidences can be trusted."""

import streamlit as st

from app import charts, controls, frames, load, tables
from gpu_traces.walk import accepted_length

VIEWS = {"conditional": "given all before", "survival": "whole prefix"}
st.title("How does acceptance fall with position?")
with st.container(border=True), controls.one_line_errors():
    left, middle, right = st.columns([2, 1, 1])
    with left:
        name = controls.pick_bundle()
    everything = load.traces(name)
    temperatures = sorted({float(t) for t in everything.temperature})
    with middle:
        temperature = st.segmented_control(
            "Sampling temperature",
            temperatures,
            default=temperatures[-1],
            required=True,
            format_func="{:g}".format,
            key="temperature",
            **controls.BOUND,
        )
    with right:
        domains = st.pills(
            "Domains",
            everything.domains,
            selection_mode="multi",
            default=everything.domains,
            key="domains",
            **controls.BOUND,
        )
if not domains:
    controls.ask("Choose at least one domain.")

with controls.one_line_errors():
    traces = load.traces(name, temperature)
    table = load.acceptance(name, temperature)
    trust = load.reliability(name, temperature)
origin = controls.source(
    {f"Acceptance of {traces.name}, temperature {temperature:g}": str(traces.origin)}
)
value = st.segmented_control(
    "Accepted",
    list(VIEWS),
    default="conditional",
    required=True,
    format_func=VIEWS.__getitem__,
    key="view",
    **controls.BOUND,
)
left, right = st.columns(2)
left.plotly_chart(charts.acceptance(table[table["domain"].isin(domains)], origin, value))
right.plotly_chart(charts.reliability(trust, origin))
errors = [
    f"{kind}: calibration error (ECE) **{frames.calibration_error(rows):.3f}**"
    for kind, rows in trust.groupby("confidence", sort=False)
]
right.markdown(" · ".join(errors))
lengths = accepted_length(traces)
left.markdown("**Tokens per round** when every round verifies the whole block (bonus included)")
with left:
    tables.show(lengths[lengths["domain"].isin(domains)])
st.caption(
    "Counted on the walk that a decoder takes, not over dense anchors: a decoder jumps over easy"
    " text in long strides and stands more often on hard text. Intervals take responses as the"
    " independent units."
)
