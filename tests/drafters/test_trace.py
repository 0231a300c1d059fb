"""Dense traces: at T = 0, walking them gives the rounds of a real speculative loop, one for one."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drafters.base import Sampler
from drafters.block import BlockDrafter
from drafters.checkpoint import save_drafter
from drafters.errors import UserError
from drafters.layers import LayerShape
from drafters.presets import build_drafter
from drafters.target import Target, load_target
from drafters.trace import check_confidences, dense_anchors, main
from tests.drafters.live import block_drafter, save_model, save_tokenizer

SHAPE = LayerShape(32, 64, 4, 2, 8, 1e-5, 10000.0, qk_norm=False)
VOCAB, GAMMA = 61, 4


@pytest.fixture
def models() -> tuple[Target, BlockDrafter]:
    torch.manual_seed(0)
    target = Target(SHAPE, 5, VOCAB).eval().requires_grad_(False)
    args = argparse.Namespace(feature_layers=None, layers=2, rank=8, head="vanilla", gamma=GAMMA)
    drafter = build_drafter("dspark", target, args).eval()
    torch.nn.init.normal_(drafter.markov_head.markov_w2.weight, std=0.02)
    return target, drafter


def greedy(target: Target, prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        ids = torch.tensor([tokens])
        hidden = target(ids, torch.arange(len(tokens))[None]).hidden[0, -1]
        tokens.append(int(target.lm_head(hidden).argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def speculate(
    target: Target, drafter: BlockDrafter, prompt: list[int], length: int
) -> list[tuple[int, int]]:
    """(anchor position, accepted) of each round of a plain cached speculative loop."""
    cache, state = target.new_cache(1, 128), drafter.new_state(1, 128)
    slot, ids = torch.tensor([0]), torch.tensor([prompt])
    at = torch.arange(len(prompt))[None]
    out = target(ids, at, cache, slot, drafter.feature_layers, fresh=True)
    drafter.extend(state, ids, out.features, at, slot)
    response = [int(target.lm_head(out.hidden[0, -1]).argmax())]
    rounds = []
    sampler = Sampler(torch.zeros(1), torch.zeros(1, GAMMA))
    while len(response) < length:
        position = len(prompt) + len(response) - 1
        anchor = torch.tensor([response[-1]])
        drafts = drafter.propose(state, anchor, torch.tensor([position]), GAMMA, sampler).tokens[0]
        fed = torch.cat((anchor, drafts))[None]
        at = position + torch.arange(GAMMA + 1)[None]
        out = target(fed, at, cache, slot, drafter.feature_layers)
        choice = target.lm_head(out.hidden[0]).argmax(-1)
        accepted = int((drafts == choice[:-1]).long().cumprod(0).sum())
        accepted = min(accepted, length - len(response))
        kept = slice(0, accepted + 1)
        drafter.extend(state, fed[:, kept], out.features[:, kept], at[:, kept], slot)
        rounds.append((len(response) - 1, accepted))
        response += choice[: accepted + 1].tolist()
        response = response[:length]
    return rounds


def test_walk_of_dense_trace_equals_live_loop(models: tuple[Target, BlockDrafter]) -> None:
    target, drafter = models
    prompt, accepted_any = [5, 9, 2, 33, 17], 0
    response = greedy(target, prompt, 60)
    row = {"prompt_tokens": prompt, "response_tokens": response, "name": "x", "temperature": 0.0}
    dense = dense_anchors(target, drafter, row, seed=0)
    assert dense["position"].tolist() == list(range(len(response) - 1))
    walked, t = [], 0
    while t < len(response) - 1:
        walked.append((t, int(dense["accepted"][t])))
        t += walked[-1][1] + 1
        accepted_any += walked[-1][1]
    assert walked == speculate(target, drafter, prompt, len(response))
    assert accepted_any > 0


def test_sampled_trace_is_reproducible_and_capped(models: tuple[Target, BlockDrafter]) -> None:
    target, drafter = models
    response = torch.randint(VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    row = {"prompt_tokens": [1, 2], "response_tokens": response, "name": "y", "temperature": 1.0}
    a, b = (dense_anchors(target, drafter, row, seed=7) for _ in range(2))
    assert (a["confidence"] == b["confidence"]).all()
    assert (a["accepted"] <= len(response) - 1 - a["position"]).all()
    assert a["accepted"].max() > 0
    other = dense_anchors(target, drafter, row, seed=8)
    assert (other["accepted"] != a["accepted"]).any()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Target, drafter and prompts as any user's."""
    folder = tmp_path_factory.mktemp("home")
    save_model(folder / "target")
    save_tokenizer(folder / "target")
    save_drafter(block_drafter(load_target(str(folder / "target"))), folder / "drafter")
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "one two three"}) + "\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "one"}\n{\n')
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompts", "empty.jsonl"], "no prompts in"),
        (["--prompts", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
        (["--responses", "broken.jsonl"], "broken.jsonl, line 1: needs a string 'name'"),
        (["--responses", "absent.jsonl"], "absent.jsonl does not exist"),
        (["--prompts", "prompts.jsonl", "--split", "all", "--temperatures", "0.7"], "choose from"),
        (["--prompts", "prompts.jsonl", "--max-new", "1"], "'1' must be a whole number, 2 or more"),
        (["--prompts", "prompts.jsonl", "--drafter", "absent"], "no drafter 'absent'"),
        ([], "give --prompts or --responses"),
    ],
)
def test_bad_input_is_one_line(
    home: Path, tmp_path: Path, monkeypatch, capsys, words: list[str], says: str
) -> None:
    """Exit code 2 and nothing written, not even the folder of an unfinished recording."""
    monkeypatch.chdir(home)
    given = ["record", "--target", "target", "--drafter", "drafter", "--out", str(tmp_path / "o")]
    try:
        code = main([*given, *words])
    except SystemExit as stop:
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_confidences_that_are_no_numbers_are_named() -> None:
    confidence = np.full((3, GAMMA), 0.5)
    check_confidences(confidence, "k/T1/0")
    confidence[2, 1] = np.nan
    with pytest.raises(UserError, match="response k/T1/0, anchor 2: .* position 2 is not finite"):
        check_confidences(confidence, "k/T1/0")
