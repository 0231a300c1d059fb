"""Tables: one place for column names, units and formats."""

from __future__ import annotations

import pandas as pd
import streamlit as st

_number = st.column_config.NumberColumn

COLUMNS = {
    "policy": st.column_config.TextColumn("policy", pinned=True),
    "domain": st.column_config.TextColumn("domain"),
    "concurrency": _number("requests out"),
    "output_tok_s": _number("tok/s", format="%,.0f"),
    "tok_s_per_user": _number("tok/s/user", format="%.1f", help="Median over requests"),
    "ttft_p50_ms": _number("TTFT p50, ms", format="%,.1f"),
    "ttft_p99_ms": _number("TTFT p99, ms", format="%,.1f"),
    "tpot_p50_ms": _number("TPOT p50, ms", format="%.2f"),
    "tpot_p99_ms": _number("TPOT p99, ms", format="%.2f"),
    "e2e_p50_ms": _number("E2E p50, ms", format="%,.0f"),
    "tokens_per_round": _number(
        "tok/round", format="%.2f", help="Tokens per round, bonus included"
    ),
    "wasted_percent": _number("waste, %", format="%.0f", help="Verified, but not accepted"),
    "mean_budget_tokens": _number(
        "budget", format="%.1f", help="Mean draft tokens verified in a step"
    ),
    "mean_batch": _number("batch", format="%.1f", help="Mean decoding requests in a step"),
    "mean_step_ms": _number("step, ms", format="%.2f"),
    "goodput_rps": _number("goodput, req/s", format="%.2f", help="Requests/s that met every SLO"),
    "slo_percent": _number("SLO met, %", format="%.0f"),
    "requests_completed": _number("completed", format="%,d"),
    "e2e_s": st.column_config.TextColumn("mean E2E, difference (95 %)"),
    "tpot_s": st.column_config.TextColumn("mean TPOT, difference (95 %)"),
    "responses": _number("responses", format="%,d"),
    "rounds": _number("rounds", format="%,d"),
}
"""Column -> title with unit and number format; the order is the order of display."""


def show(frame: pd.DataFrame) -> None:
    """Show the columns of ``frame`` that ``COLUMNS`` knows, in its order."""
    order = [name for name in COLUMNS if name in frame]
    st.dataframe(frame, hide_index=True, column_config=COLUMNS, column_order=order)
