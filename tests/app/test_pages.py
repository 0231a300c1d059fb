"""Every page as a reader meets it: with nothing chosen, with a wrong word, and after a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.conftest import MAIN, OpenPage, staircase_model

QUESTIONS = {
    "which_policy_wins": "Which policy wins at this load?",
    "where_is_the_frontier": "Where is the frontier?",
    "how_acceptance_falls": "How does acceptance fall with position?",
    "what_a_step_costs": "What does a step cost?",
    "what_a_run_did": "What did a run do?",
}


def words(app: AppTest) -> str:
    """All markdown, captions, headings and messages of a page."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error")
    return "\n".join(str(e.value) for kind in kinds for e in app.get(kind))


def charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


def test_every_page_is_in_the_navigation() -> None:
    pages = {path.stem for path in (Path(MAIN).parent / "pages").glob("*.py")}
    assert pages == set(QUESTIONS)


@pytest.mark.parametrize("name", QUESTIONS)
def test_title_is_the_question_and_nothing_chosen_gives_an_instruction(
    open_page: OpenPage, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.load.RUNS", tmp_path)
    for names in ("acceptance_names", "latency_names"):
        monkeypatch.setattr(f"app.load.{names}", list)
    app = open_page(name)
    assert not app.exception
    assert app.title[0].value == QUESTIONS[name]
    assert len(app.info) == 1
    assert charts(app) == 0


def test_no_policy_gives_an_instruction(open_page: OpenPage, bundle: str) -> None:
    app = open_page("which_policy_wins", bundle=bundle)
    app.multiselect(key="policies").set_value([]).run()
    assert not app.exception
    assert "at least one policy" in app.info[0].value


def test_nothing_runs_before_run_is_pressed(open_page: OpenPage, bundle: str) -> None:
    app = open_page("which_policy_wins", bundle=bundle, requests="60")
    assert "Press Run" in app.info[0].value
    app.button(key="run_which_policy_wins").click().run()
    assert not app.exception
    assert charts(app) == 3
    assert app.query_params["run"] == "1"
    app.number_input(key="seed").set_value(1).run()
    assert "Settings have changed" in app.warning[0].value


def test_policies_are_compared_on_the_same_requests(open_page: OpenPage, bundle: str) -> None:
    policies = ["none", "fixed-k:k=2", "hardware-aware"]
    app = open_page("which_policy_wins", bundle=bundle, policies=policies, requests="60", run="1")
    assert not app.exception
    table, paired = (element.value for element in app.dataframe)
    assert table["policy"].tolist() == policies
    assert (table["requests_completed"] == 60).all()
    assert (table["output_tok_s"] > 0).all()
    assert paired["policy"].tolist() == policies[1:]
    assert "synthetic" in words(app)
    assert f"--bundle {bundle}" in app.code[0].value
    assert "--requests 60" in app.code[0].value


def test_each_half_of_a_world_names_its_own_origin(open_page: OpenPage, bundle: str) -> None:
    url = {"policies": "none", "traffic": "concurrency", "concurrency": "4", "requests": "20"}
    latency = "published:dcut-qwen3-8b-h20"
    app = open_page("which_policy_wins", bundle=bundle, latency=latency, run="1", **url)
    assert not app.exception
    assert not app.error
    assert "Acceptance of small: :orange-badge[synthetic]" in words(app)
    assert "Step times of dcut-qwen3-8b-h20, drafting free: :blue-badge[published]" in words(app)


@pytest.mark.parametrize(
    ("page", "url", "says"),
    [
        ("which_policy_wins", {"bundle": "nowhere"}, "no bundle 'nowhere'"),
        ("which_policy_wins", {"policies": "nope"}, "unknown policy 'nope'; known: "),
        ("which_policy_wins", {"policies": "fixed-k:k=x"}, "must be of type int"),
        ("which_policy_wins", {"scenario": "nowhere"}, "nowhere"),
        ("where_is_the_frontier", {"latency": "nowhere"}, "no bundle 'nowhere'"),
        ("how_acceptance_falls", {"bundle": "nowhere"}, "no bundle 'nowhere'"),
        ("what_a_step_costs", {"machine": "published:x"}, "unknown published latency 'x'"),
        ("what_a_run_did", {"folder": "nowhere"}, "not a run folder"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    open_page: OpenPage, bundle: str, page: str, url: dict[str, str], says: str
) -> None:
    app = open_page(page, **{"bundle": bundle, "run": "1", "requests": "20", **url})
    assert not app.exception
    [error] = app.error
    assert says in error.value
    assert "\n" not in error.value


def test_frontier_has_a_point_per_policy_and_concurrency(open_page: OpenPage, bundle: str) -> None:
    url = {"policies": ["none", "fixed-k"], "levels": ["1", "4"]}
    app = open_page("where_is_the_frontier", bundle=bundle, run="1", **url)
    assert not app.exception
    table = app.dataframe[0].value
    points = list(zip(table["policy"], table["concurrency"], strict=True))
    assert points == [("none", 1), ("none", 4), ("fixed-k", 1), ("fixed-k", 4)]
    rate = table.set_index(["policy", "concurrency"])["output_tok_s"]
    assert rate["none", 4] > rate["none", 1]
    assert charts(app) == 1


def test_acceptance_of_the_chosen_domains(open_page: OpenPage, bundle: str) -> None:
    app = open_page("how_acceptance_falls", bundle=bundle, domains=["math", "chat"])
    assert not app.exception
    assert app.dataframe[0].value["domain"].tolist() == ["math", "chat"]
    assert charts(app) == 2
    assert "calibration error" in words(app)
    app.pills(key="domains").set_value([]).run()
    assert "at least one domain" in app.info[0].value


def test_step_times_state_the_error_of_the_fit(open_page: OpenPage, bundle: str) -> None:
    app = open_page("what_a_step_costs", machine=bundle, rules=["ceil", "floor"])
    assert not app.exception
    shown = {metric.label: metric.value for metric in app.metric}
    assert float(shown["Median error, held out"].rstrip("%")) < 5
    overhead_us = float(shown["Host overhead"].removesuffix(" µs"))
    assert overhead_us == pytest.approx(staircase_model().overhead_s * 1e6, rel=0.02)
    assert shown["Ragged step, 64 tokens"] == "–"
    assert charts(app) == 2


def test_a_published_table_of_step_times_has_curves_but_no_error(open_page: OpenPage) -> None:
    app = open_page("what_a_step_costs", machine="published:dcut-qwen3-8b-h20")
    assert not app.exception
    assert not app.metric
    assert ":blue-badge[published]" in words(app)
    assert "no cost of drafting" in words(app)
    assert charts(app) == 1


def test_a_run_folder_is_shown_as_it_was_written(open_page: OpenPage, folder: str) -> None:
    app = open_page("what_a_run_did", folder=folder)
    assert not app.exception
    assert app.dataframe[0].value["policy"].tolist() == ["none", "confidence"]
    assert folder in words(app)
    assert ":orange-badge[synthetic]" in words(app)
    assert charts(app) == 3


def test_a_damaged_run_folder_is_one_line(open_page: OpenPage, folder: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "requests.parquet").write_bytes(b"PAR1 not really")
    app = open_page("what_a_run_did", folder=str(broken))
    assert not app.exception
    assert len(app.error) == 1
    (broken / "summary.json").write_text("{}")
    app = open_page("what_a_run_did", folder=str(broken))
    assert "summary.json has no bundle" in app.error[0].value
