"""Widgets that pages share. Every choice is in the URL, so a view is a link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import streamlit as st

from app import load, theme
from policies import registry
from sim.capacity import LOADS, RECORDED
from sim.scenarios import SCENARIOS
from sim.setup import OWN

T = TypeVar("T")

BOUND: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}
"""For widgets of one page: kept in the URL, and while the reader is on another page."""

FIRST = ("none", "fixed-k", "confidence", "hardware-aware")
"""Policies chosen before the reader chooses."""

WORD, RATE, AS_RECORDED, CLOSED = "share", "requests/s", "recorded", "concurrency"

TYPE = "Choose, or type a folder"
BUNDLE_HELP = "A bundle that ships, a published source, or the folder of your own bundle."


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show an error of the user as one line and stop the page."""
    try:
        yield
    except (ValueError, OSError) as error:
        st.error(str(error).replace("\n", " "), icon=":material/error:")
        st.stop()


def ask(instruction: str) -> None:
    """Say what to do next, and stop."""
    st.info(instruction, icon=":material/arrow_upward:")
    st.stop()


def pick_bundle() -> str:
    """Whose acceptance is replayed; stops with an instruction while there is none."""
    return _required(_pick("bundle", "Trace bundle", load.acceptance_names(), BUNDLE_HELP))


def pick_latency() -> str:
    """Whose step times are used; empty: those of the bundle."""
    note = "Replay the acceptance of one machine and model at the step times of another."
    return _pick("latency", "Step times", load.latency_names(), note, "Those of the bundle")


def pick_machine() -> str:
    """Whose step times to look at; first those that the other pages simulate with."""
    simulated = _kept("latency") or _kept("bundle") or ""
    first = "" if simulated in load.acceptance_names() else simulated
    names = load.latency_names()
    return _required(_pick("machine", "Step times of", names, BUNDLE_HELP, first=first))


def pick_run() -> str:
    """A run folder, the newest one first; empty while there is none."""
    return _pick("folder", "Run folder", load.runs(), "A folder that `sim.run` wrote.")


def pick_scenario() -> str:
    """What traffic arrives."""
    note = "`bundle`: the bundle's own prompts and answers. Or a file of arrivals."
    return _pick("scenario", "Traffic", [OWN, *SCENARIOS], note) or OWN


def _pick(
    key: str, label: str, known: list[str], note: str, empty: str = TYPE, first: str = ""
) -> str:
    """A name from a list, or anything typed; empty without a choice. Pages share its value."""
    fallback = first or (known[0] if known and empty == TYPE else None)
    _recall(key, fallback)
    typed = st.session_state[key]
    names = known if typed in (None, *known) else [*known, typed]
    chosen = st.selectbox(
        label, names, key=key, index=None, accept_new_options=True, placeholder=empty, help=note
    )
    _keep(key, chosen)
    return str(chosen or "")


def _required(chosen: str) -> str:
    if not chosen:
        ask(
            "Choose a trace bundle, or type the folder of one. Record your own with"
            " `python -m drafters.trace record`."
        )
    return chosen


def pick_policies() -> tuple[str, ...]:
    """Chosen policies, in order; the first is the one that others are compared with."""
    known = registry.names()
    _recall("policies", [name for name in FIRST if name in known])
    chosen = st.multiselect(
        "Policies",
        known,
        key="policies",
        accept_new_options=True,
        placeholder="Choose at least one",
        help="The first is the baseline. Type parameters as in `fixed-k:k=3`.",
    )
    _keep("policies", chosen)
    return tuple(chosen)


def _recall(key: str, fallback: Any) -> None:
    """Give a shared widget its value: from the URL, from another page, or ``fallback``."""
    if key in st.session_state:
        return
    found = st.query_params.get_all(key)
    if not found:
        st.session_state[key] = _kept(key) or fallback
    else:
        st.session_state[key] = found if isinstance(fallback, list) else found[0]


def _kept(key: str) -> Any:
    return st.session_state.get(f"kept_{key}")


def _keep(key: str, chosen: Any) -> None:
    """Remember a shared choice for other pages, and write it into the URL."""
    st.session_state[f"kept_{key}"] = chosen
    if chosen:
        st.query_params[key] = chosen
    else:
        st.query_params.pop(key, None)


def pick_load() -> dict[str, Any]:
    """Fields ``load`` and ``concurrency`` of ``load.Settings``."""
    left, right = st.columns(2)
    kind = left.segmented_control(
        "Load as",
        [WORD, RATE, AS_RECORDED, CLOSED],
        default=WORD,
        required=True,
        key="traffic",
        **BOUND,
    )
    with right:
        if kind == CLOSED:
            return {"concurrency": whole("Requests out at any time", "concurrency", 1, 32, 4096)}
        if kind == RATE:
            rate = st.number_input("Requests per second", 0.001, 1e6, 10.0, key="rps", **BOUND)
            return {"load": f"{rate:g}"}
        if kind == AS_RECORDED:
            return {"load": RECORDED}
        return {"load": _load_word()}


def _load_word() -> str:
    return st.select_slider(
        "Share of what no speculation sustains",
        list(LOADS),
        value="high",
        format_func=lambda word: f"{word} ({LOADS[word]:.0%})",
        key="load",
        **BOUND,
    )


def whole(label: str, key: str, least: int, value: int, most: int) -> int:
    """A whole number."""
    return int(st.number_input(label, least, most, value, step=1, key=key, **BOUND))


def after_run(page: str, asked: T, instruction: str) -> T:
    """The Run button: what the latest run of this page asked; an instruction before the first.

    A link to a view that was run carries ``run`` and runs at once when it is opened.
    """
    pressed = st.button("Run", type="primary", icon=":material/play_arrow:", key=f"run_{page}")
    ran = st.session_state.get(page)
    if pressed or (ran is None and "run" in st.query_params):
        ran = st.session_state[page] = asked
        st.query_params["run"] = "1"
    if ran is None:
        ask(instruction)
    elif ran != asked:
        st.warning("Settings have changed since this run. Press Run to see their effect.")
    return cast(T, ran)


def source(origins: Mapping[str, str]) -> str:
    """Show where numbers come from; returns the same as lines for a chart's subtitle."""
    st.markdown(" · ".join(f"{what}: {theme.badge(origin)}" for what, origin in origins.items()))
    return "<br>".join(f"{what}: {origin}" for what, origin in origins.items())
