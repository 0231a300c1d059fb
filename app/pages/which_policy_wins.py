"""Which policy wins at this load? Several policies serve the same requests."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from app import charts, controls, frames, load, tables
from sim.paired import paired_table


def choose() -> load.Settings:
    """The controls; stops with an instruction while something is missing."""
    with st.container(border=True):
        left, middle, right = st.columns(3)
        with left:
            bundle = controls.pick_bundle()
        with middle:
            latency = controls.pick_latency()
        with right:
            scenario = controls.pick_scenario()
        policies = controls.pick_policies()
        traffic, requests, seed = st.columns([4, 1, 1], vertical_alignment="bottom")
        with traffic:
            rate = controls.pick_load()
        with requests:
            count = controls.whole("Requests in the run", "requests", 20, 2000, 50_000)
        with seed:
            chosen = controls.whole("Seed", "seed", 0, 0, 2**31 - 1)
    if not policies:
        controls.ask("Choose at least one policy; the first is the baseline of the others.")
    return load.Settings(
        bundle=bundle,
        latency=latency,
        scenario=scenario,
        policies=policies,
        requests=count,
        seed=chosen,
        **rate,
    )


def serve(settings: load.Settings) -> dict[str, load.Served]:
    """Every policy's run, with a progress bar."""
    bar = st.progress(0.0, text="Getting ready")
    results = {}
    for done, policy in enumerate(settings.policies):
        bar.progress(done / len(settings.policies), text=f"Serving requests under {policy}")
        results[policy] = load.served(replace(settings, policies=()), policy)
    bar.empty()
    return results


def load_text(settings: load.Settings) -> str:
    """The load of a run in words."""
    if settings.concurrency:
        return f"closed loop with {settings.concurrency} requests out"
    rate_rps = load.load_rps(settings)
    return f"{rate_rps:,.3g} requests/s" if rate_rps else "arrivals at their recorded rate"


def show(settings: load.Settings, results: dict[str, load.Served]) -> None:
    """Verdict, tables and charts, each beside where its numbers come from."""
    summaries = {policy: result.summary for policy, result in results.items()}
    requests = {policy: result.requests for policy, result in results.items()}
    frame = frames.comparison(summaries)
    st.subheader(frames.verdict(requests, summaries))
    origin = controls.source(load.origins(load.world(settings)))
    st.caption(
        f"Simulated: {settings.requests:,} requests per policy, seed {settings.seed},"
        f" traffic {settings.scenario}, {load_text(settings)}"
    )
    for policy, summary in summaries.items():
        if summary["unstable"]:
            st.warning(f"{policy}: {summary['unstable']}", icon=":material/warning:")
    tables.show(frame)
    show_differences(requests)
    left, right = st.columns(2)
    left.plotly_chart(charts.throughput(frame, origin, "Throughput against interactivity"))
    right.plotly_chart(charts.latencies(frame, origin))
    st.plotly_chart(charts.positions(frames.position_rates(summaries), origin))
    st.caption("The same run from a terminal")
    st.code(settings.command(), language="bash", wrap_lines=True)


def show_differences(requests: dict[str, pd.DataFrame]) -> None:
    """Every policy against the first, request by request."""
    if len(requests) > 1:
        st.markdown(f"**Against {next(iter(requests))}**, request by request (below 0: faster)")
        tables.show(frames.differences(paired_table(requests)))


st.title("Which policy wins at this load?")
asked = choose()
settings = controls.after_run(
    "which_policy_wins", asked, "Press Run: every policy serves the same requests."
)
with controls.one_line_errors():
    results = serve(settings)
show(settings, results)
