"""Navigation of the dashboard: ``streamlit run app/main.py`` (or ``make app``)."""

import streamlit as st

PAGES = {
    "which_policy_wins": ("Which policy wins at this load?", ":material/trophy:"),
    "where_is_the_frontier": ("Where is the frontier?", ":material/show_chart:"),
    "how_acceptance_falls": ("How does acceptance fall with position?", ":material/trending_down:"),
    "what_a_step_costs": ("What does a step cost?", ":material/timer:"),
    "what_a_run_did": ("What did a run do?", ":material/folder_open:"),
}

st.set_page_config(page_title="DSpark Lab", page_icon=":material/bolt:", layout="wide")
st.navigation(
    [st.Page(f"pages/{name}.py", title=title, icon=icon) for name, (title, icon) in PAGES.items()],
    position="top",
).run()
