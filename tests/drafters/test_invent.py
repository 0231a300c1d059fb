"""Invented prompts: begun by given words, kept in their own half, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drafters import invent
from drafters.chat import chat_opening, encode_chat
from drafters.prompts import load_prompts
from drafters.target import load_tokenizer
from tests.drafters.test_campaign import inputs  # noqa: F401


def command(inputs: Path, out: Path, *more: str) -> list[str]:  # noqa: F811
    made = ["--target", str(inputs / "tiny"), "--prompts", str(inputs / "prompts.jsonl")]
    made += ["--out", str(out), "--slots", "8", "--max-new", "64", "--dtype", "float32"]
    return [*made, *more]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_invented_prompts_stay_in_their_half(inputs: Path, tmp_path: Path, split: str) -> None:  # noqa: F811
    out = tmp_path / "made.jsonl"
    assert invent.main(command(inputs, out, "--split", split, "--count", "4")) == 0
    made = load_prompts([out])
    assert 1 <= len(made) <= 4
    assert {p.split for p in made} == {split}
    assert {p.dataset for p in made} == {"invented"}
    given = {p.domain for p in load_prompts([inputs / "prompts.jsonl"])}
    assert {p.domain for p in made} <= given


def test_a_file_that_is_there_is_kept(inputs: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "made.jsonl"
    out.write_text(json.dumps({"prompt": "mine"}) + "\n")
    assert invent.main(command(inputs, out)) == 0
    assert [p.text for p in load_prompts([out])] == ["mine"]


def test_beginnings_are_the_first_tokens_of_their_prompts(inputs: Path) -> None:  # noqa: F811
    tokenizer, prompts = load_tokenizer(str(inputs / "tiny")), load_prompts([inputs])
    made = invent.beginnings(prompts, tokenizer, 60, seed=0)
    assert len(made) == 60
    for prompt, start in made:
        tokens = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        assert start == tokens[: len(start)]
        assert 1 <= len(start) <= max(invent.FEWEST_GIVEN, len(tokens) // 2)


def test_the_opening_is_the_template_before_the_words(inputs: Path) -> None:  # noqa: F811
    tokenizer = load_tokenizer(str(inputs / "tiny"))
    opening, whole = chat_opening(tokenizer), encode_chat(tokenizer, "sun")
    assert opening == whole[: len(opening)]
    assert len(opening) < len(whole)


def test_nothing_ended_is_one_line(
    inputs: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "made.jsonl"
    assert invent.main(command(inputs, out, "--count", "1", "--max-new", "1")) == 2
    assert "ended no invented prompt" in capsys.readouterr().err
    assert not out.exists()
