"""Where is the frontier? Throughput against interactivity, over a sweep of concurrency."""

import pandas as pd
import streamlit as st

from app import charts, controls, frames, load, tables

LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROUNDS = 6  # requests of a point, in multiples of its concurrency
FEWEST = 60  # but never fewer requests than this


def choose() -> list[tuple[str, load.Settings]]:
    """The sweep: (policy, settings) of every point; stops while there is none."""
    with st.container(border=True):
        left, middle, right = st.columns(3)
        with left:
            bundle = controls.pick_bundle()
        with middle:
            latency = controls.pick_latency()
        with right:
            scenario = controls.pick_scenario()
        left, right = st.columns([2, 1])
        with left:
            policies = controls.pick_policies()
        with right:
            levels = st.multiselect(
                "Requests out at any time (concurrency)",
                LEVELS,
                default=[1, 4, 16, 64],
                key="levels",
                **controls.BOUND,
            )
    if not policies or not levels:
        controls.ask("Choose at least one policy and one concurrency.")
    points = [
        load.Settings(
            bundle=bundle,
            latency=latency,
            scenario=scenario,
            concurrency=level,
            requests=max(FEWEST, ROUNDS * level),
        )
        for level in sorted(levels)
    ]
    return [(policy, point) for policy in policies for point in points]


def sweep(points: list[tuple[str, load.Settings]]) -> pd.DataFrame:
    """One row per policy and concurrency, with a progress bar."""
    bar = st.progress(0.0, text="Getting ready")
    parts = []
    for done, (policy, point) in enumerate(points):
        text = f"{policy} with {point.concurrency} requests out"
        bar.progress(done / len(points), text=text)
        row = frames.comparison({policy: load.served(point, policy).summary})
        parts.append(row.assign(concurrency=point.concurrency))
    bar.empty()
    return pd.concat(parts, ignore_index=True)


st.title("Where is the frontier?")
st.markdown("Up: more output from the machine. Right: faster for each user. Each point is a run.")
points = controls.after_run(
    "where_is_the_frontier", choose(), "Press Run: one closed-loop run per policy and concurrency."
)
with controls.one_line_errors():
    frame = sweep(points)
origin = controls.source(load.origins(load.world(points[0][1])))
st.plotly_chart(
    charts.throughput(frame, origin, "Throughput against interactivity, by concurrency")
)
st.caption(
    f"Simulated: traffic {points[0][1].scenario}, closed loop, seed 0, {ROUNDS} requests for each"
    f" one out, at least {FEWEST}"
)
tables.show(frame)
