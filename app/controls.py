"""Widgets that pages share. Each is bound to the URL under its key, so a view is a link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import streamlit as st

from app import load, theme
from policies import registry
from sim.capacity import LOADS

T = TypeVar("T")

BOUND: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}
"""Kept in the URL, and when the reader goes to another page and back."""

FIRST = ("none", "fixed-k", "confidence", "hardware-aware")
"""Policies chosen before the reader chooses."""

WORD, RATE, CLOSED = "load word", "requests/s", "concurrency"


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


def pick_bundle(label: str = "Trace bundle") -> str:
    """Name or folder of a bundle; stops with an instruction while there is none."""
    chosen = st.selectbox(
        label,
        load.bundles(),
        key="bundle",
        index=0 if load.bundles() else None,
        accept_new_options=True,
        placeholder="A shipped name, or type a folder",
        help="A bundle that ships with the lab, or the folder of your own.",
        **BOUND,
    )
    if not chosen:
        ask(
            "Choose a trace bundle, or type the folder of one. Record your own with"
            " `python -m drafters.trace record`."
        )
    return str(chosen)


def pick_latency() -> str:
    """Name or folder of the bundle that gives step times; empty: the one that gives acceptance."""
    chosen = st.selectbox(
        "Step times",
        load.bundles(),
        key="latency",
        index=None,
        accept_new_options=True,
        placeholder="Those of the bundle",
        help="Another bundle's machine: replay this acceptance at that one's step times.",
        **BOUND,
    )
    return str(chosen or "")


def pick_policies() -> tuple[str, ...]:
    """Chosen policies, in order; the first is the one that others are compared with."""
    known = registry.names()
    return tuple(
        st.multiselect(
            "Policies",
            known,
            default=[name for name in FIRST if name in known],
            key="policies",
            accept_new_options=True,
            placeholder="Choose at least one",
            help="The first is the baseline. Type parameters as in `fixed-k:k=3`.",
            **BOUND,
        )
    )


def pick_load() -> dict[str, Any]:
    """Fields ``load`` and ``concurrency`` of ``load.Settings``."""
    kind = st.segmented_control(
        "Load as", [WORD, RATE, CLOSED], default=WORD, required=True, key="traffic", **BOUND
    )
    if kind == CLOSED:
        return {"concurrency": _whole("Requests out at any time", "concurrency", 1, 32, 4096)}
    if kind == RATE:
        rate = st.number_input("Requests per second", 0.001, 1e6, 10.0, key="rps", **BOUND)
        return {"load": f"{rate:g}"}
    word = st.select_slider(
        "Share of what no speculation sustains",
        list(LOADS),
        value="high",
        format_func=lambda word: f"{word} ({LOADS[word]:.0%})",
        key="load",
        **BOUND,
    )
    return {"load": word}


def pick_size(requests: int) -> dict[str, int]:
    """Fields ``requests`` and ``seed`` of ``load.Settings``."""
    return {
        "requests": _whole("Requests in the run", "requests", 20, requests, 50_000),
        "seed": _whole("Seed", "seed", 0, 0, 2**31 - 1),
    }


def _whole(label: str, key: str, least: int, value: int, most: int) -> int:
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
    """Show where numbers come from; returns the same as plain text for a chart."""
    st.markdown(" · ".join(f"{what}: {theme.badge(origin)}" for what, origin in origins.items()))
    return "; ".join(f"{what}: {origin}" for what, origin in origins.items())
