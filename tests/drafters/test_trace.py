"""Dense traces: at T = 0, walking them gives the rounds of a real speculative loop, one for one."""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from drafters import profile, trace
from drafters.base import Sampler
from drafters.block import BlockDrafter
from drafters.errors import UserError
from drafters.layers import LayerShape
from drafters.presets import build_drafter
from drafters.rope import Rope
from drafters.target import Target
from drafters.trace import check_confidences, dense_anchors, main
from gpu_traces.bundle import read_bundle
from tests.drafters.live import save_models
from tests.limits import largest_file

SHAPE = LayerShape(32, 64, 4, 2, 8, 1e-5, Rope(10000.0), qk_norm=False)
VOCAB, GAMMA = 61, 4


@pytest.fixture
def models() -> tuple[Target, BlockDrafter]:
    torch.manual_seed(0)
    target = Target(SHAPE, 5, VOCAB).eval().requires_grad_(False)
    args = argparse.Namespace(
        feature_layers=None, layers=2, intermediate=0, rank=8, head="vanilla", gamma=GAMMA
    )
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
    save_models(folder)
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


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of home to work in and to change; latencies are not measured but made up."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    steps = read_bundle("smollm2-dspark-cpu").steps.query("mode == 'verify'")
    monkeypatch.setattr(profile, "measure", lambda *_: steps)
    return tmp_path / "home"


RECORD = ["record", "--target", "target", "--drafter", "drafter", "--prompts", "prompts.jsonl"]
RECORD += ["--split", "all", "--max-new", "8", "--grid", "tiny", "--out", "out"]


def interrupted(words: list[str]) -> list[Path]:
    """Parts of a recording that was stopped at its second response."""
    made = []

    def dense(*given: object) -> dict[str, np.ndarray]:
        if made:
            raise KeyboardInterrupt
        made.append(dense_anchors(*given))  # type: ignore[arg-type]
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "dense_anchors", dense)
        assert main(words) == 130
    return sorted(Path("out.part").glob("*.npz"))


def retrain(folder: Path) -> None:
    """Other weights in a model's folder."""
    path = folder / "model.safetensors"
    changed = {name: 2 * tensor for name, tensor in load_file(path).items()}
    save_file(changed, path, metadata={"format": "pt"})


def test_a_recording_goes_on_with_what_was_made(here: Path, capsys) -> None:
    """It equals one made at once, also where a part was damaged in between."""
    (part,) = interrupted(RECORD)
    part.write_bytes(part.read_bytes()[:100])
    assert main(RECORD) == 0
    assert main([*RECORD[:-1], "once"]) == 0
    assert sorted(p.name for p in here.glob("o*")) == ["once", "out"]
    resumed, once = (read_bundle(name).tables["anchors"] for name in ("out", "once"))
    assert resumed.equals(once)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--drafter other", "drafter drafter (SHA-256 {}), not other (SHA-256 {});"),
        ("--drafter ngram", "drafter drafter (SHA-256 {}), not ngram;"),
        ("--drafter retrained", "drafter drafter (SHA-256 {}), not drafter (SHA-256 {});"),
        ("--target other_target", "target target (SHA-256 {}), not other_target (SHA-256 {});"),
        ("--seed 1", "seed 0, not 1;"),
        ("--dtype bfloat16", "dtype float32, not bfloat16;"),
        ("--max-new 9", "max_new 8, not 9;"),
        ("--prompts more.jsonl", "prompts {}, not {};"),
    ],
)
def test_a_recording_never_goes_on_with_anothers_parts(
    here: Path, capsys, words: str, says: str
) -> None:
    parts = interrupted(RECORD)
    capsys.readouterr()
    option, value = words.split()
    if value == "retrained":
        retrain(here / "drafter")
        option, value = "--drafter", "drafter"
    shutil.copytree("drafter", "other")
    retrain(here / "other")
    shutil.copytree("target", "other_target")
    retrain(here / "other_target")
    (here / "more.jsonl").write_text((here / "prompts.jsonl").read_text() + '{"prompt": "six"}\n')
    assert main([*RECORD, option, value]) == 2
    line = re.escape(f"error: out.part was made with {says}").replace(r"\{\}", "[0-9a-f]+")
    error = capsys.readouterr().err
    assert re.match(line, error), error
    assert error.count("\n") == 1
    assert sorted(Path("out.part").glob("*.npz")) == parts
    assert not Path("out").exists()


def test_parts_that_do_not_say_what_made_them_are_refused(here: Path, capsys) -> None:
    interrupted(RECORD)
    Path("out.part/made_by.json").unlink()
    capsys.readouterr()
    assert main(RECORD) == 2
    assert capsys.readouterr().err.startswith("error: out.part does not say what made it")


def test_other_responses_of_the_same_names_are_drafted_anew(here: Path) -> None:
    interrupted(RECORD)
    rows = [json.loads(line) for line in Path("out.part/responses.jsonl").read_text().splitlines()]
    shutil.rmtree("out.part")
    given = [*RECORD, "--responses", "given.jsonl"]
    write_rows(rows)
    (old,) = interrupted(given)
    write_rows([row | {"response_tokens": row["response_tokens"][::-1]} for row in rows])
    (new,) = set(interrupted(given)) - {old}
    assert new != old


def write_rows(rows: list[dict[str, object]]) -> None:
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_full_disk_names_the_part(here: Path, capsys) -> None:
    (part,) = interrupted(RECORD)
    part.unlink()
    capsys.readouterr()
    with largest_file(200):
        assert main(RECORD) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {part}: File too large"
    assert not part.exists()


def test_confidences_that_are_no_numbers_are_named() -> None:
    confidence = np.full((3, GAMMA), 0.5)
    check_confidences(confidence, "k/T1/0")
    confidence[2, 1] = np.nan
    with pytest.raises(UserError, match="response k/T1/0, anchor 2: .* position 2 is not finite"):
        check_confidences(confidence, "k/T1/0")
