"""Prompt files: malformed ones are refused with file and line; the halves never overlap."""

import json
from pathlib import Path

import pytest

from drafters.errors import UserError
from drafters.generate import spread
from drafters.prompts import load_prompts


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, "{broken"], r"p\.jsonl:2: not JSON"),
        ([{"prompt": "a"}, {"text": "b"}], r"p\.jsonl:2: needs a non-empty string 'prompt'"),
        ([{"prompt": "  "}], r"p\.jsonl:1: needs a non-empty string 'prompt'"),
        (["[1, 2]"], r"p\.jsonl:1: needs"),
        ([], r"no prompts in .*p\.jsonl"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load_prompts([path])


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
