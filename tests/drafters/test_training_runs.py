"""Training runs: every family learns, a killed run resumes, and what cannot be used is one line.

Three made-up responses of a tiny target.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import drafters
from drafters import train
from drafters.learner import fingerprint, told
from drafters.module import DraftModule
from drafters.objectives import batch_loss
from drafters.optimizers import OPTIMIZERS, make_optimizers
from drafters.presets import build_drafter, continued, mask_token
from drafters.progress import progress
from drafters.target import Target
from tests.drafters.families import LAYERS, tiny_drafter, tiny_target
from tests.drafters.test_training import GAMMA, TARGET, VOCAB, sequences


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    path = tmp_path / "responses.jsonl"
    lines = [
        {
            "name": f"{i}/T1/0",
            "domain": "made up",
            "dataset": "made up",
            "temperature": 1.0,
            "prompt_tokens": s.tokens[: s.start].tolist(),
            "response_tokens": s.tokens[s.start :].tolist(),
        }
        for i, s in enumerate(sequences())
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(responses: Path, out: Path, family: str, steps: int) -> list[str]:
    made = ["--drafter", family, "--responses", str(responses), "--out", str(out)]
    made += ["--steps", str(steps), "--gamma", str(GAMMA), "--layers", "1", "--rank", "6"]
    made += ["--feature-layers", str(LAYERS - 1 if family == "mtp" else 1), "--lr", "3e-3"]
    return made + ["--dtype", "float32", "--anchors", "8", "--batch", "3", "--log-every", "5"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> Target:
        return TARGET

    monkeypatch.setattr(train, "load_target", load)


@pytest.mark.parametrize("family", ["dspark", "dflash", "eagle3", "mtp"])
def test_every_family_learns_by_heart(family: str, responses: Path, tmp_path: Path) -> None:
    """60 steps on three short texts must cut the error rate of the first draft token visibly."""
    assert train.main(command(responses, tmp_path / family, family, 60)) == 0
    curve = (tmp_path / family / "curve.csv").read_text().splitlines()
    column = curve[0].split(",").index("ce")
    first, last = (float(line.split(",")[column]) for line in (curve[1], curve[-1]))
    assert last < first - 0.3
    drafter = drafters.load(tmp_path / family, TARGET)
    assert drafter.config.family == family
    assert drafter.gamma == GAMMA


def test_muon_takes_the_matrices_of_layers() -> None:
    """Every trainable weight is in one optimiser, tables and vectors with AdamW."""
    for family in ("dspark", "dflash", "eagle3", "mtp"):
        drafter = tiny_drafter(family, tiny_target()).requires_grad_(True)
        learned = {id(p): n for n, p in drafter.named_parameters() if p.requires_grad}
        muon, adamw = (
            [learned[id(p)] for group in o.param_groups for p in group["params"]]
            for o in make_optimizers(drafter, "muon", 1e-3)
        )
        assert sorted(muon + adamw) == sorted(learned.values())
        assert any("mlp" in name for name in muon)
        assert not any("markov" in name or "confidence" in name for name in muon)


def test_muon_wants_a_torch_that_has_it(
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    made = [*command(responses, tmp_path / "run", "dspark", 5), "--optimizer", "muon"]
    assert train.main(made) == 2
    error = capsys.readouterr().err
    assert "--optimizer muon needs torch 2.9 or later; this is " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("family", ["dspark", "eagle3"])
def test_resumed_run_goes_on(family: str, responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train.main(command(responses, out, family, 5)) == 0
    before = drafters.load(out, TARGET).state_dict()
    assert train.main(command(responses, out, family, 10)) == 0
    rows = (out / "curve.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["5", "10"]
    after = drafters.load(out, TARGET).state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def several(responses: Path, out: Path, optimizer: str = "adamw") -> list[str]:
    """Two drafters, ten steps of one sequence each, a checkpoint every five."""
    made = [*command(responses, out, "dspark", 10), "--optimizer", optimizer]
    made[1:2], made[made.index("--batch") + 1] = ["dspark", "dflash"], "1"
    return [*made, "--save-minutes", "1e-9", "--negatives", "4"]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Step and batch of every step that is begun from here on."""
    seen: list[tuple[int, list[int]]] = []
    step = train.Trainer.train_step

    def watched(trainer: train.Trainer, keys: list[int]) -> None:
        seen.append((trainer.step, keys))
        step(trainer, keys)

    monkeypatch.setattr(train.Trainer, "train_step", watched)
    return seen


def stop_in(step: int, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that Ctrl-C ends in that step."""
    whole = train.Trainer.train_step

    def stopped(trainer: train.Trainer, keys: list[int]) -> None:
        if trainer.step == step:
            raise KeyboardInterrupt
        whole(trainer, keys)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", stopped)
        assert train.main(command) == 130


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_ends_as_an_undisturbed_one(
    optimizer: str,
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[tuple[int, list[int]]],
) -> None:
    """Same batches, anchors and negatives: the same weights, bit for bit. Then once more with one
    checkpoint behind the other, as a kill between the two leaves them."""
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(several(responses, whole, optimizer)) == 0
    undisturbed, batches[:] = list(batches), []
    assert len({tuple(keys) for _, keys in undisturbed}) == 3
    stop_in(7, several(responses, out, optimizer), monkeypatch)
    shutil.copytree(out / "dflash", tmp_path / "earlier")
    del batches[5:]
    assert train.main(several(responses, out, optimizer)) == 0
    assert batches == undisturbed
    weights = {n: contents(whole / n)["model.safetensors"] for n in ("dspark", "dflash")}
    assert {n: contents(out / n)["model.safetensors"] for n in weights} == weights

    shutil.rmtree(out / "dflash")
    shutil.copytree(tmp_path / "earlier", out / "dflash")
    assert train.main(several(responses, out, optimizer)) == 0
    assert {n: contents(out / n)["model.safetensors"] for n in weights} == weights


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--drafter", "dspark-rnn", "with --drafter dspark, this one has dspark-rnn"),
        ("--drafter", "dflash", "with --drafter dspark, this one has dflash"),
        ("--rank", "5", "with --rank 6, this one has 5"),
        ("--layers", "2", "with --layers 1, this one has 2"),
        ("--gamma", "3", f"with --gamma {GAMMA}, this one has 3"),
        ("--feature-layers", "0", "with --feature-layers [1], this one has [0]"),
        ("--optimizer", "muon", "with --optimizer adamw, this one has muon"),
        ("--lr", "1e-5", "this one has 1e-05"),
        ("--batch", "1", "with --batch 3, this one has 1"),
        ("--seed", "7", "with --seed 0, this one has 7"),
        ("--responses", "other.jsonl", "with responses 3 ("),
        ("--start", "first", "with --start None, this one has "),
        ("--target", "other", f"with target weights {fingerprint(TARGET)}, this one has "),
    ],
)
def test_a_run_with_other_options_is_not_resumed(
    option: str,
    value: str,
    said: str,
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, and nothing is replaced."""
    out = tmp_path / "run"
    made = command(responses, out, "dspark", 5)
    assert train.main(made) == 0
    kept = contents(out)
    if option == "--target":
        other = tiny_target(VOCAB, seed=1)
        monkeypatch.setattr(train, "load_target", lambda *_: other)
    elif option == "--responses":
        lines = responses.read_text().splitlines(keepends=True)
        (tmp_path / value).write_text("".join(lines[1:]))
        made[made.index(option) + 1] = str(tmp_path / value)
    elif option in ("--seed", "--optimizer"):
        made += [option, value]
    elif option == "--start":
        shutil.copytree(out, tmp_path / "first")
        made += [option, str(tmp_path / "first")]
    else:
        made[made.index(option) + 1] = value
    capsys.readouterr()
    assert train.main(made) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert contents(out) == kept


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "fixed", "drafter", "optimizers"])
def test_a_damaged_state_is_one_line(
    damage: str, responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short, overwritten, or with a key missing, as one of an earlier version is."""
    out = tmp_path / "run"
    assert train.main(command(responses, out, "dspark", 5)) == 0
    path = out / "state.pt"
    raw, state = path.read_bytes(), torch.load(path)
    if damage in state:
        del state[damage]
        torch.save(state, path)
    else:
        path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "text": b"no zip"}[damage])
    kept = contents(out)
    capsys.readouterr()
    assert train.main(command(responses, out, "dspark", 10)) == 2
    error = capsys.readouterr().err
    assert "state.pt cannot be resumed from: it is damaged or of an earlier version" in error
    assert error.count("\n") == 1
    assert contents(out) == kept


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("dspark", {"num_anchors": 8, "markov_rank": 6, "enable_confidence_head": True}),
        ("dflash", {"num_anchors": 8, "markov_rank": 0, "enable_confidence_head": False}),
        ("eagle3", {"step_loss_decay": 0.8, "target_model_name_or_path": "some/target"}),
    ],
)
def test_a_trained_drafter_says_what_deepspec_reads(
    family: str, keys: dict[str, object], responses: Path, tmp_path: Path
) -> None:
    made = [*command(responses, tmp_path, family, 1), "--target", "some/target"]
    assert train.main(made) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config | keys == config
    depth = {"eagle3": "ttt_length"}.get(family, "block_size")
    assert (config[depth], config["num_target_layers"]) == (GAMMA, LAYERS)


def test_a_state_that_cannot_be_written_keeps_the_whole_checkpoint(
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk fills up after the weights: they stay those of the state beside them."""
    out = tmp_path / "run"
    assert train.main(command(responses, out, "dspark", 5)) == 0
    kept = contents(out)

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    capsys.readouterr()
    assert train.main(command(responses, out, "dspark", 10)) == 2
    assert "could not be written ([Errno 28] No space left" in capsys.readouterr().err
    assert contents(out) == kept


def test_a_target_is_known_by_its_weights() -> None:
    """In either precision, and down to one matrix."""
    same, other = tiny_target(VOCAB).bfloat16(), tiny_target(VOCAB)
    other.layers[0].mlp.up_proj.weight[0].add_(0.1)
    assert fingerprint(same) == fingerprint(TARGET) != fingerprint(other)


def test_a_run_can_start_from_a_checkpoint(responses: Path, tmp_path: Path) -> None:
    """From where the first run ended, in bf16 as it was stored; the curve is the new run's own."""
    assert train.main(command(responses, tmp_path / "first", "dspark", 60)) == 0
    before = drafters.load(tmp_path / "first", TARGET).state_dict()
    made = [
        *command(responses, tmp_path / "second", "dspark", 5),
        "--start",
        str(tmp_path / "first"),
    ]
    made[made.index("--lr") + 1] = "1e-5"
    assert train.main(made) == 0
    after = drafters.load(tmp_path / "second", TARGET).state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0.01, atol=1e-3)
    curves = [(tmp_path / n / "curve.csv").read_text().splitlines() for n in ("first", "second")]
    column = curves[0][0].split(",").index("tokens_per_round")
    fresh, ended, went_on = (
        float(row.split(",")[column]) for row in (curves[0][1], curves[0][-1], curves[1][1])
    )
    assert len(curves[1]) == 2
    assert abs(went_on - ended) < 0.3 * (ended - fresh)


def test_a_start_leaves_the_target_as_it_is(responses: Path, tmp_path: Path) -> None:
    """What learns is fp32 and the drafter's own; a bf16 target stays so, and frozen."""
    assert train.main(command(responses, tmp_path / "first", "dspark", 5)) == 0
    target = tiny_target(VOCAB).bfloat16().requires_grad_(False)
    drafter = continued(str(tmp_path / "first"), "dspark", GAMMA, target)
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in target.parameters())
    assert {p.dtype for p in drafter.parameters() if p.requires_grad} == {torch.float32}
    shared = {n for n, p in drafter.named_parameters() if not p.requires_grad}
    assert shared == {"embed_tokens.weight", "lm_head.weight"}


def test_another_kind_of_start_is_refused(
    responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command(responses, tmp_path / "first", "dflash", 5)) == 0
    capsys.readouterr()
    made = command(responses, tmp_path / "second", "dspark", 5)
    assert train.main([*made, "--start", str(tmp_path / "first")]) == 2
    error = capsys.readouterr().err
    assert f"holds dflash with gamma {GAMMA}; asked for were --drafter dspark" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("negatives", ["0", "512"])
def test_several_learn_from_the_same_batches(
    negatives: str, responses: Path, tmp_path: Path
) -> None:
    """Each in a folder of its own, with the features of its own layers out of all that were asked
    for; and a run of several resumes."""
    made = command(responses, tmp_path, "dspark", 10)
    names = ["dspark", "dspark-rnn", "dflash", "eagle3", "mtp"]
    where = made.index("--feature-layers")
    del made[where : where + 2]
    made[1:2] = names
    assert train.main([*made, "--negatives", negatives]) == 0
    for name in names:
        drafter = drafters.load(tmp_path / name, TARGET)
        family, _, head = name.partition("-")
        assert drafter.config.family == family
        assert not head or drafter.config.markov_head_type == head
        assert len((tmp_path / name / "curve.csv").read_text().splitlines()) == 3
    made[made.index("--steps") + 1] = "15"
    assert train.main([*made, "--negatives", negatives]) == 0
    rows = (tmp_path / "mtp" / "curve.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["5", "10", "15"]


def test_one_family_in_several_sizes(responses: Path, tmp_path: Path) -> None:
    made = command(responses, tmp_path, "dspark", 5)
    made[1:2] = ["dspark:layers=2;rank=3", "dspark", "dflash:layers=3;intermediate=20"]
    assert train.main(made) == 0
    width = TARGET.shape.intermediate_size
    folders = {
        "dspark-layers2-rank3": (2, width, 3),
        "dspark": (1, width, 6),
        "dflash-layers3-intermediate20": (3, 20, 0),
    }
    for folder, sizes in folders.items():
        config = drafters.load(tmp_path / folder, TARGET).config
        made_with = config.num_layers, config.shape.intermediate_size, config.markov_rank
        assert made_with == sizes


def test_a_narrower_drafter_starts_from_the_largest_neurons() -> None:
    """A target whose neurons beyond 20 are next to nothing gives a draft layer of width 20 what
    it gives one of its own width."""
    target = tiny_target()
    mlp = target.layers[-1].mlp
    small = torch.randperm(mlp.gate_proj.out_features)[20:]
    mlp.down_proj.weight[:, small] = 1e-9
    made = []
    for width in (0, 20):
        args = train.parser().parse_args(["--responses", "", "--out", "", "--layers", "1"])
        args.head, args.intermediate = "vanilla", width
        made.append(build_drafter("dflash", target, args).layers[0].mlp)
    x = torch.randn(5, target.shape.hidden_size)
    assert made[1].gate_proj.out_features == 20
    torch.testing.assert_close(made[1](x), made[0](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dspork", "unknown drafter 'dspork'"),
        ("eagle3:layers=2", "sizes of eagle3 to set: none"),
        ("dflash:rank=2", "sizes of dflash to set: layers"),
        ("dspark:layers=0", "layers must be a whole number"),
        ("dspark:layers", "'layers' must be parameter=value"),
    ],
)
def test_unknown_sizes_are_refused(
    text: str, said: str, responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(command(responses, tmp_path / "run", text, 5))
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["dspark", "dflash", "dspark"], [], "dspark twice"),
        (["dspark"], ["--layers", "4"], "4 draft layers do not fit a target of 3 layers"),
        (["dflash:layers=9"], [], "9 draft layers do not fit a target of 3 layers"),
        (["dflash"], ["--intermediate", "999"], "intermediate size 999 is wider than the target"),
        (["dspark"], ["--feature-layers", "2"], "feature layers (2,) do not fit"),
        (["mtp"], ["--feature-layers", "0", "1"], "mtp reads the target's last layer, 2, alone"),
        (["dspark", "mtp"], ["--feature-layers", "1"], "--feature-layers 1: mtp reads"),
        (["dflash", "mtp"], ["--confidence", "1"], "--confidence 1 does nothing for --drafter dfl"),
        (
            ["eagle3"],
            ["--decay", "4"],
            "--decay 4 does nothing for --drafter eagle3; it is",
        ),
        (["dspark-rnn:rank=4"], ["--depth", "2"], "it is for eagle3 and mtp; leave it out"),
        (["mtp"], ["--depth", "5"], "--depth 5 is more than the --gamma 4 tokens"),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    names: list[str],
    options: list[str],
    said: str,
    responses: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = command(responses, tmp_path / "run", "dspark", 5)
    made[1:2] = names
    assert train.main([*made, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["file", "file/run", "run"])
def test_where_nothing_can_be_written_nothing_is_trained(
    out: str,
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file, below a file, and a folder of which one drafter's own place is a file."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "dflash").write_text("")
    monkeypatch.setattr(train, "load_target", lambda *_: pytest.fail("the target was loaded"))
    made = command(responses, tmp_path / out, "dspark", 5)
    made[1:2] = ["dspark", "dflash"]
    assert train.main(made) == 2
    error = capsys.readouterr().err
    assert "is no folder that can be written to" in error
    assert error.count("\n") == 1


def test_mask_tokens() -> None:
    """SmolLM2's reserved token, for which the shipped drafters were trained; else the last id."""
    assert [mask_token(size) for size in (49152, 151936, VOCAB)] == [3, 151935, VOCAB - 1]


def test_the_bar_shows_how_every_drafter_does() -> None:
    """In 80 columns, whatever the names: bar, count, elapsed time and ETA whole, text cut."""
    row = {"loss": 1.2345, "accept_1": 0.6789, "tokens_per_round": 3.4567}
    names = ["dspark:layers=4;intermediate=768", "dflash", "eagle3", "mtp"]
    bar = progress()
    task = bar.add_task("training", total=1000, completed=345)
    bar.update(task, description=told(12345, dict.fromkeys(names, row)))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(bar.get_renderable())
    first, *lines = console.export_text().splitlines()
    assert re.search(r" 345/1000 0:00:00 (-|\d+):\S+ step 12345: loss accept tokens/round", first)
    assert [line.split()[:3] for line in lines] == [["1.234", "0.679", "3.457"]] * 4
    assert lines[0].endswith("dspark:layers=4;in…")
    assert [line.split()[3] for line in lines[1:]] == names[1:]


def broken_loss(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    loss, stats = batch_loss(*arguments)  # type: ignore[arg-type]
    return loss * float("nan"), stats


def broken_gradient(drafter: DraftModule, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss is finite, also on the next batch if there is none."""
    drafter.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    return batch_loss(drafter, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (broken_loss, "loss became nan at step 5; last checkpoint kept"),
        (broken_gradient, "weights are not finite after step 6; last checkpoint kept"),
    ],
)
def test_nan_stops_and_keeps_the_checkpoint(
    broken: Callable[..., object],
    said: str,
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the last step too, which no later loss follows."""
    out = tmp_path / "run"
    assert train.main(command(responses, out, "dspark", 5)) == 0
    kept = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_loss", broken)
        assert train.main(command(responses, out, "dspark", 6)) == 2
    assert said in capsys.readouterr().err
    assert contents(out) == kept
    assert train.main(command(responses, out, "dspark", 6)) == 0


def test_no_checkpoint_is_promised_before_the_first(
    responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = command(responses, tmp_path / "run", "dspark", 1)
    made[made.index("--lr") + 1] = "inf"
    assert train.main(made) == 2
    assert "no checkpoint was written yet" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_absent_responses_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(command(tmp_path / "none.jsonl", tmp_path / "out", "dspark", 5)) == 2
    error = capsys.readouterr().err
    assert "none.jsonl does not exist" in error
    assert error.count("\n") == 1


def test_prompts_are_answered_once_and_learned_from(
    responses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With ``--prompts`` the responses are generated before training begins, never on resuming;
    other prompts, or responses that are gone, are one line."""
    asked = []

    def answered(args: argparse.Namespace) -> None:
        asked.append(args)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(responses, args.out)

    monkeypatch.setattr(train.generate, "generate", answered)
    out = tmp_path / "run"
    words = command(responses, out, "dspark", 5)
    at = words.index("--responses")
    words[at : at + 2] = ["--prompts", "questions.jsonl", "--minutes", "2"]
    assert train.main(words) == 0
    assert train.main(words) == 0
    (args,) = asked
    assert (args.prompts, args.split, args.seconds) == (["questions.jsonl"], "train", 120)
    assert args.out == str(out / "responses.jsonl")
    told = command(responses, tmp_path / "told", "dspark", 5)
    assert train.main(told) == 0
    same = [(p / "model.safetensors").read_bytes() for p in (out, tmp_path / "told")]
    assert same[0] == same[1]
    capsys.readouterr()
    assert train.main([w.replace("questions", "others") for w in words]) == 2
    assert "['questions.jsonl'], this one has ['others.jsonl']" in capsys.readouterr().err
    Path(args.out).unlink()
    assert train.main(words) == 2
    assert f"{args.out}, from which {out} has learned, is gone; give" in capsys.readouterr().err
    assert len(asked) == 1
