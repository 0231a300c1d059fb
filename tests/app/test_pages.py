"""Every page as a reader meets it: with nothing chosen, with a wrong word, and after a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.main import PAGES
from tests.app.conftest import OpenPage

NEEDS_BUNDLE = [name for name in PAGES if name != "what_a_run_did"]
SMALL = {"requests": "60", "run": "1"}


def texts(app: AppTest) -> str:
    """All markdown, captions, headings and messages of a page."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error")
    return "\n".join(str(e.value) for kind in kinds for e in app.get(kind))


def charts(app: AppTest) -> int:
    """Plotly charts on a page."""
    return len(app.get("plotly_chart"))


@pytest.mark.parametrize("name", PAGES)
def test_the_title_of_a_page_is_its_question(open_page: OpenPage, name: str) -> None:
    app = open_page(name)
    assert not app.exception
    assert app.title[0].value == PAGES[name][0]
    assert app.title[0].value.endswith("?")


def test_policies_compared(open_page: OpenPage, bundle: str) -> None:
    policies = ["none", "fixed-k:k=2", "hardware-aware"]
    app = open_page("which_policy_wins", bundle=bundle, policies=policies, **SMALL)
    assert not app.exception
    table, paired = (element.value for element in app.dataframe)
    assert table["policy"].tolist() == policies
    assert (table["requests_completed"] == 60).all()
    assert (table["output_tok_s"] > 0).all()
    assert paired["policy"].tolist() == policies[1:]
    assert charts(app) == 3
    assert "synthetic" in texts(app)
    assert f"--bundle {bundle}" in app.code[0].value
