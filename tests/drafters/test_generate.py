"""The generator: what a request is answered never depends on what runs beside it."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from drafters import decode, generate, invent, train
from drafters.generate import Generator, Response
from drafters.layers import LayerShape
from drafters.rope import Rope
from drafters.target import Target
from tests.drafters.live import WORDS, save_model, save_tokenizer
from tests.limits import largest_file

SHAPE = LayerShape(32, 64, 4, 2, 8, 1e-5, Rope(10000.0), qk_norm=True)


def queue() -> list[Response]:
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5], [35], [8, 9, 7, 9]] * 3
    return [Response(f"r{i}", "d", "s", float(i % 2), p) for i, p in enumerate(prompts)]


def answers(slots: int, seed: int = 0) -> dict[str, list[int]]:
    torch.manual_seed(0)
    target = Target(SHAPE, 3, 50).eval().requires_grad_(False)
    generator = Generator(target, frozenset({7}), slots, max_new=24, seed=seed)
    return {r.name: r.response_tokens for r in generator.run(queue())}


def test_answers_do_not_depend_on_the_batch() -> None:
    one, many = answers(slots=1), answers(slots=5)
    assert one == many
    assert len(one) == 12


def test_sampled_answers_change_with_the_seed_and_greedy_ones_do_not() -> None:
    a, b = answers(4, seed=0), answers(4, seed=1)
    assert all(a[f"r{i}"] == b[f"r{i}"] for i in range(0, 12, 2))
    assert any(a[f"r{i}"] != b[f"r{i}"] for i in range(1, 12, 2))


def test_answers_end_at_the_stop_token_or_the_limit() -> None:
    for tokens in answers(slots=3).values():
        assert 7 not in tokens[:-1]
        assert tokens[-1] == 7 or len(tokens) == 24


def test_when_time_is_up_what_was_begun_is_finished() -> None:
    """No slot is free after the first three, and none is begun: three responses, all whole."""
    torch.manual_seed(0)
    target = Target(SHAPE, 3, 50).eval().requires_grad_(False)
    generator = Generator(target, frozenset({7}), 3, max_new=24, seed=0)
    generator.admit_together = 3
    run = generator.run(queue(), seconds=0.5)
    clock = iter([0.0, 0.1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate.time, "monotonic", lambda: next(clock, 9.0))
        made = {r.name: r.response_tokens for r in run}
    whole = answers(slots=1)
    assert len(made) == 3
    assert all(made[name] == whole[name] for name in made)


def test_prompts_all_too_long_are_an_error(monkeypatch, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"domain": "code", "dataset": "made up", "prompt": "one two three"}\n')
    monkeypatch.setattr(generate, "load_tokenizer", lambda name: None)
    monkeypatch.setattr(generate, "encode_chat", lambda tokenizer, text: [1] * 9)
    made = ["--prompts", str(prompts), "--split", "all", "--out", str(tmp_path / "out.jsonl")]
    made += ["--target", str(tmp_path)]
    assert generate.main([*made, "--max-prompt", "8"]) == 2
    assert "no prompt has at most --max-prompt 8 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that makes two responses, in a folder with its models and prompts."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "target")
    save_tokenizer(tmp_path / "target")
    lines = [json.dumps({"prompt": text}) + "\n" for text in ("one two", "six seven")]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    return ["--target", "target", "--prompts", "prompts.jsonl", "--out", "out.jsonl", "--split",
            "all", "--samples", "0", "--max-new", "6", "--slots", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--seed", "1"], "seed 0, not 1"),
        (["--max-new", "7"], "max_new 6, not 7"),
        (["--dtype", "float32"], "dtype bfloat16, not float32"),
        (["--target", "other"], "target target (SHA-256 "),
    ],
)
def test_responses_of_another_maker_are_never_added(
    words: list[str], capsys: pytest.CaptureFixture[str], changed: list[str], says: str
) -> None:
    """Nor does a file that does not say what made it get any; the same command goes on."""
    assert generate.main([*words, "--tokens", "1"]) == 0
    out = Path("out.jsonl")
    first = out.read_text()
    assert first.count("\n") == 1
    capsys.readouterr()
    shutil.copytree("target", "other")
    weights = Path("other/model.safetensors")
    made = {name: 2 * tensor for name, tensor in load_file(weights).items()}
    save_file(made, weights, metadata={"format": "pt"})
    assert generate.main([*words, *changed]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: out.jsonl was made with {says}")
    assert error.count("\n") == 1
    assert out.read_text() == first
    assert generate.main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2
    out.write_text("".join(json.dumps(row | {"made_by": None}) + "\n" for row in rows))
    assert generate.main(words) == 2
    assert "out.jsonl does not say what made it" in capsys.readouterr().err


def test_negative_seconds_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        generate.main([*words, "--seconds", "-1"])
    assert caught.value.code == 2
    assert "--seconds" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_a_full_disk_names_the_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with largest_file(50):
        assert generate.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: out.jsonl: File too large"
    assert generate.main(words) == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (generate, ["--split", "all"]),
        (invent, ["--split", "train"]),
        (train, ["--steps", "1"]),
        (decode, ["--drafter", "ngram", "--policy", "none", "--split", "all"]),
    ],
    ids=["generate", "invent", "train", "decode"],
)
def test_a_target_without_a_chat_template_is_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], command: ModuleType, options: list[str]
) -> None:
    lines = [json.dumps({"prompt": f"one {word}"}) + "\n" for word in WORDS.split()]
    Path("prompts.jsonl").write_text("".join(lines))  # some of either half
    Path("target/chat_template.jinja").unlink()
    given = ["--target", "target", "--prompts", "prompts.jsonl", "--out", "out"]
    assert command.main([*given, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: target 'target' has no chat template; give one")
    assert error.count("\n") == 1
