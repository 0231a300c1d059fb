"""The generator: what a request is answered never depends on what runs beside it."""

import pytest
import torch

from drafters import generate
from drafters.generate import Generator, Response
from drafters.layers import LayerShape
from drafters.target import Target

SHAPE = LayerShape(32, 64, 4, 2, 8, 1e-5, 10000.0, qk_norm=True)


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
    assert generate.main([*made, "--max-prompt", "8"]) == 2
    assert "no prompt has at most --max-prompt 8 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
