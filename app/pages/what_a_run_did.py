"""What did a run do? A folder written by ``sim.run``, opened."""

import streamlit as st

from app import charts, controls, frames, load, tables

METRICS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2e_ms": "E2E"}


def choose() -> str:
    """The run folder; stops with an instruction while none is chosen."""
    folder = controls.pick_run()
    if not folder:
        controls.ask(
            "Type the folder of a run. Make one with"
            " `python -m sim.run --policy none,confidence --load high --out runs/first`."
        )
    return folder


def show_over_time(run: load.Run, origin: str) -> None:
    """Batch, queue, budget and step time of one policy on its first replica."""
    policy = st.segmented_control(
        "Over time",
        list(run.summary["policies"]),
        default=next(reversed(run.summary["policies"])),
        required=True,
        key="policy",
        **controls.BOUND,
    )
    steps = load.of_policy(run.steps, policy)
    steps = steps[steps["replica"] == 0]
    steps = frames.thin(steps.assign(step_ms=(steps["end_s"] - steps["start_s"]) * 1e3))
    st.plotly_chart(charts.timeline(steps, origin, policy))


st.title("What did a run do?")
with controls.one_line_errors():
    folder = choose()
    run = load.run_folder(folder)
document = run.summary
origin = controls.source(
    {
        f"Acceptance of {document['bundle']}": document["origin"],
        f"Step times of {document['latency']}": document["latency_origin"],
    }
)
load_text = (
    f"{document['load_rps']:,.3g} requests/s"
    if document["load_rps"]
    else f"closed loop with {document['concurrency']} requests out"
)
st.caption(
    f"Run {folder}: scenario {document['scenario']}, {document['requests']:,} requests,"
    f" {load_text}, {document['replicas']} replica(s), seed {document['seed']}"
)
summaries = document["policies"]
requests = {label: load.of_policy(run.requests, label) for label in summaries}
st.subheader(frames.verdict(requests, summaries))
tables.show(frames.comparison(summaries))
if document["paired"]:
    st.markdown(f"**Against {document['paired'][0]['against']}**, request by request")
    tables.show(frames.differences(document["paired"]))
metric = st.segmented_control(
    "Time of a request",
    list(METRICS),
    default="tpot_ms",
    required=True,
    format_func=METRICS.__getitem__,
    key="metric",
    **controls.BOUND,
)
times = {label: frames.request_times(rows) for label, rows in requests.items()}
left, right = st.columns(2)
left.plotly_chart(charts.distribution(times, origin, metric))
right.plotly_chart(charts.positions(frames.position_rates(summaries), origin))
show_over_time(run, origin)
with st.expander("Provenance"):
    st.json(run.provenance)
