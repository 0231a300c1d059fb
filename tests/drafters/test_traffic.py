"""Arrival files of the live loop, and the requests that they make."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from drafters.errors import UserError
from drafters.prompts import Prompt
from drafters.traffic import Arrival, make_requests, read_arrivals
from sim.importers import load
from sim.traffic import main as convert


def times_of(path: Path) -> list[float]:
    return [arrival.at_s for arrival in read_arrivals(path)]


def test_arrivals_are_read_from_csv_and_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"arrival_s": [3.0, 3.5, 5.0], "prompt_tokens": 1})
    frame.to_csv(tmp_path / "a.csv")
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert times_of(tmp_path / name) == [0.0, 0.5, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        "Timestamp,Model\n5,a\n5.25,b\n65,c\n",
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9799600,1\n2023-11-16 18:17:04.2299600,1\n"
        "2023-11-16 18:18:03.9799600,1\n",
    ],
    ids=["BurstGPT", "Azure"],
)
def test_arrivals_are_read_from_published_traces(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert times_of(tmp_path / "a.csv") == pytest.approx([0.0, 0.25, 60.0], abs=1e-6)


def test_failed_requests_of_burstgpt_do_not_arrive(tmp_path: Path) -> None:
    """The same requests as in the simulator."""
    path = tmp_path / "burst.csv"
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n1,a,5,0\n2,a,5,7\n4,a,5,3\n")
    assert times_of(path) == [0.0, 2.0]
    assert load(path).arrival_s.size == 2
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n1,a,5,0\n")
    with pytest.raises(UserError, match="every request failed"):
        read_arrivals(path)


def test_other_traces_come_by_way_of_a_conversion(tmp_path: Path) -> None:
    """The refusal names a command that works."""
    trace, made = tmp_path / "trace.jsonl", tmp_path / "arrivals.parquet"
    row = {"input_length": 4, "output_length": 4}
    lines = [json.dumps({"timestamp": ms, **row}) for ms in (0, 50, 2000)]
    trace.write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"sim.traffic convert {trace} --out arrivals.parquet"):
        read_arrivals(trace)
    assert convert(["convert", str(trace), "--out", str(made)]) == 0
    assert times_of(made) == [0.0, 0.05, 2.0]


@pytest.mark.parametrize("name", ["output_tokens", "GeneratedTokens", "Response tokens"])
def test_answers_are_as_long_as_the_file_says(tmp_path: Path, name: str) -> None:
    clock = "TIMESTAMP" if name == "GeneratedTokens" else "arrival_s"
    at = ["2023-11-16 18:17:03", "2023-11-16 18:17:04"] if clock == "TIMESTAMP" else [5, 6]
    pd.DataFrame({clock: at, name: [3, 900]}).to_csv(tmp_path / "a.csv")
    arrivals = read_arrivals(tmp_path / "a.csv")
    assert arrivals == [Arrival(0.0, 3), Arrival(1.0, 900)]
    prompts = [Prompt("1", "one", "math", "set")]
    made = make_requests(prompts, [[1, 2]], arrivals, ["math"], 64, 0.0)
    assert [request.max_new for request in made] == [3, 64]
    assert [request.arrival_s for request in made] == [0.0, 1.0]


def test_without_a_file_requests_come_as_there_is_room() -> None:
    prompts = [Prompt("1", "one", "math", "set"), Prompt("2", "two", "chat", "set")]
    made = make_requests(prompts, [[1], [2, 3]], [], ["chat", "math"], 64, 0.0)
    assert [request.arrival_s for request in made] == [None, None]
    assert [request.domain for request in made] == [1, 0]
    assert {request.max_new for request in made} == {64}


def test_a_domain_that_the_bundle_lacks_is_none_of_its_own() -> None:
    made = make_requests([Prompt("1", "one", "law", "set")], [[1]], [], ["chat"], 64, 0.0)
    assert made[0].domain == -1


def test_a_prompt_that_states_its_temperature_and_limit_has_them() -> None:
    prompts = [
        Prompt("1", "one", "math", "set", temperature=0.7, max_tokens=5),
        Prompt("2", "two", "math", "set", temperature=0.0, max_tokens=900),
        Prompt("3", "three", "math", "set"),
    ]
    encoded = [[1]] * 3
    made = make_requests(prompts, encoded, [], ["math"], 64, 1.0)
    assert [(r.temperature, r.max_new) for r in made] == [(0.7, 5), (0.0, 64), (1.0, 64)]
    assert [r.name for r in made] == ["1/T0.7/0", "2/T0/0", "3/T1/0"]
    short = make_requests(prompts, encoded, [Arrival(0.0, 3)] * 3, ["math"], 64, 1.0)
    assert [r.max_new for r in short] == [3, 3, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s\n1\nx\n", "row 1: x"),
        ("arrival_s\n2\n1\n", "row 1: 1"),
        ("time\n1\n", "no column arrival_s; it has time"),
        ("arrival_s\n", "no rows"),
        ("arrival_s,output_tokens\n1,4\n2,0.5\n", "row 1: output_tokens 0.5"),
    ],
)
def test_bad_arrivals_name_the_row(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_arrivals(tmp_path / "a.csv")
