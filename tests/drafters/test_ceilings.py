"""Ceilings of block drafters: continuations are the target's own, and the command goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from drafters import ceilings, generate
from drafters.ceilings import Anchor
from tests.drafters.families import tiny_target
from tests.drafters.test_campaign import inputs  # noqa: F401

TARGET = tiny_target(12)
PREFIX = torch.tensor([5, 3, 8, 1, 1, 7])


def law_after(tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    positions = torch.arange(len(tokens))[None]
    hidden = TARGET(tokens[None], positions).hidden[0, -1]
    return torch.softmax(TARGET.lm_head(hidden) / temperature, -1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_continuations_are_drawn_from_the_target_and_carry_its_laws(temperature: float) -> None:
    """Chi-square of 2,000 first tokens, a false alarm in 1,000 runs."""
    cache = TARGET.new_cache(2000, len(PREFIX) + 4)
    found = list(ceilings.continuations(TARGET, cache, Anchor("a", PREFIX, 3), 4, temperature))
    assert len(found) == 3
    expected = law_after(PREFIX, temperature) * 2000
    counts = torch.bincount(found[0][0], minlength=12)
    common = expected > 5
    assert int(common.sum()) > 1
    rest = [float(expected[~common].sum()) + 1e-3, int(counts[~common].sum()) + 1e-3]
    seen = torch.cat((counts[common].double(), torch.tensor([rest[1]]).double()))
    hoped = torch.cat((expected[common].double(), torch.tensor([rest[0]]).double()))
    assert chisquare(seen, hoped * seen.sum() / hoped.sum()).pvalue > 1e-3
    for row in range(0, 2000, 500):
        text = torch.cat((PREFIX, torch.stack([previous[row] for previous, _ in found])))
        for k, (_, laws) in enumerate(found, 1):
            right = law_after(text[: len(PREFIX) + k], temperature)
            torch.testing.assert_close(laws[row], right, atol=1e-4, rtol=1e-3)


def test_bigrams_are_what_the_target_says_after_two_tokens() -> None:
    support, previous = torch.tensor([2, 7, 11]), torch.tensor([4, 9])
    logits = ceilings.bigram_logits(TARGET, 5, previous, support)
    for row, token in zip(logits, previous, strict=True):
        right = law_after(torch.tensor([5, int(token)]), 1.0)[support]
        torch.testing.assert_close(torch.softmax(row, -1), right / right.sum())


def test_ended_continuations_do_not_count() -> None:
    cache = TARGET.new_cache(16, len(PREFIX) + 4)
    anchor = Anchor("a", PREFIX, 0)
    assert len(ceilings.measure(TARGET, cache, anchor, 4, 1.0, frozenset())) == 3
    assert ceilings.measure(TARGET, cache, anchor, 4, 1.0, frozenset(range(12))) == []


@pytest.fixture(scope="module")
def responses(inputs: Path) -> Path:  # noqa: F811
    out = inputs / "responses-for-ceilings.jsonl"
    command = ["--target", str(inputs / "tiny"), "--prompts", str(inputs / "prompts.jsonl")]
    command += ["--out", str(out), "--split", "all", "--max-new", "24", "--dtype", "float32"]
    assert generate.main(command) == 0
    return out


def command(inputs: Path, responses: Path, out: Path, *more: str) -> list[str]:  # noqa: F811
    made = ["--target", str(inputs / "tiny"), "--responses", str(responses), "--out", str(out)]
    made += ["--samples", "16", "--gamma", "3", "--dtype", "float32"]
    return [*made, *more]


def test_a_stopped_run_goes_on_and_refuses_other_settings(
    inputs: Path,  # noqa: F811
    responses: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, whole = tmp_path / "c.jsonl", tmp_path / "whole.jsonl"
    assert ceilings.main(command(inputs, responses, whole, "--anchors", "6")) == 0
    assert ceilings.main(command(inputs, responses, out, "--anchors", "3")) == 0
    with out.open("a") as file:
        file.write('{"name": "cut o')  # killed in the middle of a line
    assert ceilings.main(command(inputs, responses, out, "--anchors", "6")) == 0
    assert out.read_text() == whole.read_text()
    shown = capsys.readouterr().out
    assert "| position" in shown
    assert "markov: 1 + a1 x" in shown
    table = ceilings.read_table(whole)
    assert (table[list(ceilings.BOUNDS)].to_numpy() <= 1 + 1e-6).all()
    assert table["position"].isin([2, 3]).all()
    assert ceilings.main(command(inputs, responses, out, "--samples", "32")) == 2
    assert "was made with samples 16, not 32" in capsys.readouterr().err


def test_no_response_at_that_temperature_is_one_line(
    inputs: Path,  # noqa: F811
    responses: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "c.jsonl"
    assert ceilings.main(command(inputs, responses, out, "--temperature", "0.5")) == 2
    assert "no response of over one token at T = 0.5" in capsys.readouterr().err
    assert not out.exists()


def test_the_report_multiplies_positions_up(tmp_path: Path) -> None:
    rows = [
        {"name": f"r{i}", "ceilings": [dict.fromkeys(ceilings.BOUNDS, x) for x in (0.5, 0.25)]}
        for i in range(2)
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = ceilings.report(ceilings.read_table(path))
    assert "1 + a1 x 1.62" in text  # 1 + 0.5 + 0.5 * 0.25
    assert "0.250 ± 0.000" in text
