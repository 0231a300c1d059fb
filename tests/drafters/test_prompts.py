"""Prompt files: malformed ones are refused with file and line; the halves never overlap."""

import json
from pathlib import Path

import pytest

from drafters.errors import UserError
from drafters.generate import spread
from drafters.prompts import load_prompts
from drafters.responses import read_responses


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, "{broken"], r"p\.jsonl, line 2: not JSON \(.* at column 2\)"),
        ([{"prompt": "a"}, {"text": "b"}], r"p\.jsonl, line 2: needs a non-empty string 'prompt'"),
        ([{"prompt": "  "}], r"p\.jsonl, line 1: needs a non-empty string 'prompt'"),
        (["[1, 2]"], r"p\.jsonl, line 1: \[1, 2\] is not a JSON object"),
        ([{"prompt": "a", "temperature": -1}], r"line 1: temperature -1 must be a number, 0 or"),
        ([{"prompt": "a", "temperature": "hot"}], r"temperature 'hot' must be a number"),
        (['{"prompt": "a", "temperature": NaN}'], r"temperature nan must be a number"),
        ([{"prompt": "a", "max_tokens": 0}], r"line 1: max_tokens 0 must be a whole number, 1 or"),
        ([{"prompt": "a", "max_tokens": 1.5}], r"max_tokens 1\.5 must be a whole number"),
        ([{"prompt": "a", "max_tokens": True}], r"max_tokens True must be a whole number"),
        (['{"prompt": "a", "max_tokens": Infinity}'], r"max_tokens inf must be a whole number"),
        ([{"prompt": "a", "temperature": 10**400}], r"line 1: temperature 1000.* must be a number"),
        ([r'{"prompt": "\ud800"}'], r"line 1: 'prompt' holds half a surrogate pair"),
        ([{"prompt": "a"}, {"prompt": "a", "temperature": 1}], r"line 2: this prompt came before"),
        ([], r"no prompts in .*p\.jsonl"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load_prompts([path])


def test_prompts_may_state_temperature_and_limit(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "temperature": 0.7, "max_tokens": 5}, {"prompt": "b"}]
    stating, silent = load_prompts([write(tmp_path / "p.jsonl", rows)])
    assert (stating.temperature, stating.max_tokens) == (0.7, 5)
    assert (silent.temperature, silent.max_tokens) == (None, None)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"p\.jsonl: not UTF-8 text"):
        load_prompts([tmp_path / "p.jsonl"])


RESPONSE = {
    "name": "k/T1/0", "domain": "math", "dataset": "x", "temperature": 1.0,
    "prompt_tokens": [1, 2], "response_tokens": [3, 4],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 7}, "line 2: needs a string 'name'"),
        ({"temperature": float("nan")}, "line 2: temperature nan must be 0 or above"),
        ({"temperature": "hot"}, "line 2: temperature 'hot' must be"),
        ({"response_tokens": "abc"}, "line 2: needs a list of token ids 'response_tokens'"),
        ({"response_tokens": [3, 4.5]}, "line 2: needs a list of token ids 'response_tokens'"),
        ({"response_tokens": [3, 97]}, r"line 2: token 97 of response_tokens; .* 0\.\.96"),
        ({"prompt_tokens": [-1]}, r"line 2: token -1 of prompt_tokens; .* 0\.\.96"),
        ({"prompt_tokens": []}, "line 2: prompt_tokens is empty"),
    ],
)
def test_malformed_responses_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "r.jsonl", [RESPONSE, {**RESPONSE, **changes}])
    with pytest.raises(UserError, match=message):
        read_responses(path, 97)


def test_responses_of_the_temperatures_asked_for(tmp_path: Path) -> None:
    """One-token responses have no anchor and are left out; the file's order stays."""
    names = [(f"k{i}/T{i % 2}/0", float(i % 2)) for i in (5, 2, 3)]
    rows = [{**RESPONSE, "name": name, "temperature": heat} for name, heat in names]
    path = write(tmp_path / "r.jsonl", [*rows, {**RESPONSE, "response_tokens": [3]}])
    assert [row["name"] for row in read_responses(path)] == [name for name, _ in names]
    assert [row["name"] for row in read_responses(path, 97, [1.0])] == ["k5/T1/0", "k3/T1/0"]
    with pytest.raises(UserError, match="no response of over one token at T = 0.5"):
        read_responses(path, 97, [0.5])
    with pytest.raises(UserError, match="absent does not exist; make it with"):
        read_responses(tmp_path / "absent")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.jsonl does not exist"):
        load_prompts([tmp_path / "absent.jsonl"])


def test_halves_are_disjoint_and_cover_all_without_duplicates(tmp_path: Path) -> None:
    """A prompt that stands in two files, or with other white space, is one prompt in one half."""
    a = write(tmp_path / "a.jsonl", [{"prompt": f"question {i}"} for i in range(200)])
    b = write(tmp_path / "b.jsonl", [{"prompt": f"question  {i}"} for i in range(100, 300)])
    halves = [{p.key for p in load_prompts([a, b], split)} for split in ("train", "eval")]
    assert not halves[0] & halves[1]
    assert len(halves[0] | halves[1]) == 300
    assert min(map(len, halves)) > 100  # a fair coin gives under 100 of 300 once in 1e8


def test_limit_takes_domains_in_turn(tmp_path: Path) -> None:
    rows = [{"prompt": f"m{i}", "domain": "math"} for i in range(50)]
    rows += [{"prompt": f"c{i}", "domain": "code"} for i in range(5)]
    chosen = spread(load_prompts([write(tmp_path / "p.jsonl", rows)]), 20)
    assert sum(p.domain == "code" for p in chosen) == 5
    assert len(chosen) == 20
