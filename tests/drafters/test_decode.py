"""The command, from prompts to files: a tiny model saved as any user's would be."""

import json
from pathlib import Path

import numpy as np
import pytest

from drafters.decode import build, main, parser, write
from drafters.errors import UserError
from drafters.graphs import say_once
from drafters.grids import Grid
from drafters.policy_choice import choose
from drafters.target import load_target
from gpu_traces.bundle import BundleError, read_bundle
from tests.drafters.live import (
    arguments,
    cost_table,
    transformers_greedy,
)
from tests.limits import largest_file


def code_of(words: list[str]) -> int:
    """Exit code of the command, argparse's own exits included."""
    try:
        return main(words)
    except SystemExit as stop:
        return int(str(stop.code))


def test_a_run_writes_tables_that_add_up(home: Path, tmp_path: Path, capsys) -> None:
    """live_steps and live_requests count the same rounds, and the text is the target's own."""
    out = tmp_path / "run"
    assert main([*arguments(home, out), "--json"]) == 0
    printed = capsys.readouterr().out
    done = json.loads(printed.splitlines()[-1])
    bundle = read_bundle(out)
    steps, requests = bundle.live_steps, bundle.live_requests
    assert steps is not None
    assert requests is not None
    assert (bundle.manifest.drafter_family, bundle.manifest.drafter_layers) == ("dspark", 1)
    assert done["requests_completed"] == len(requests) == 6
    assert done["rounds"] == requests["rounds"].sum() == steps["requests"].sum()
    for name in ("lengths", "accepted"):
        total = sum(int(np.sum(row)) for row in steps[name])
        assert total == requests["verified" if name == "lengths" else name].sum()
    assert (steps["requests"] <= 3).all()
    planned = steps["requests"] + steps["lengths"].map(np.sum) + steps["prefill_tokens"]
    assert (planned == steps["tokens_planned"]).all()
    assert (steps["tokens_padded"] >= steps["tokens_planned"]).all()
    spent = steps[["draft_us", "verify_us", "plan_us", "overhead_us"]]
    assert (spent >= 0).all(axis=None)
    assert (requests["ttft_s"] <= requests["e2e_s"]).all()
    texts = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert [t["request_id"] for t in texts] == list(range(6))
    assert "tokens per round" in printed


def test_text_is_that_of_transformers(home: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from drafters.chat import encode_chat
    from drafters.prompts import load_prompts
    from drafters.target import load_tokenizer

    assert main(arguments(home, tmp_path / "run")) == 0
    model = AutoModelForCausalLM.from_pretrained(home / "target")
    tokenizer = load_tokenizer(str(home / "target"))
    rows = (tmp_path / "run" / "responses.jsonl").read_text().splitlines()
    for prompt, row in zip(load_prompts([home / "prompts.jsonl"]), rows, strict=True):
        output = transformers_greedy(model, encode_chat(tokenizer, prompt.text), 12)
        end = tokenizer.eos_token_id
        output = output[: output.index(end) + 1] if end in output else output
        assert json.loads(row)["text"] == tokenizer.decode(output, skip_special_tokens=True)


def test_greedy_and_sampled_prompts_share_a_run(home: Path, tmp_path: Path) -> None:
    """What a line of the prompt file states holds for its request alone; greedy texts stay."""
    lines = [json.loads(line) for line in (home / "prompts.jsonl").read_text().splitlines()]
    lines[1]["temperature"], lines[2]["max_tokens"] = 1.5, 3
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(map(json.dumps, lines)))
    texts = []
    for name, prompts in (("plain", home / "prompts.jsonl"), ("mixed", mixed)):
        assert main(arguments(home, tmp_path / name, prompts=str(prompts))) == 0
        rows = (tmp_path / name / "responses.jsonl").read_text().splitlines()
        texts.append([json.loads(row)["text"] for row in rows])
    bundle = read_bundle(tmp_path / "mixed")
    assert bundle.manifest.temperatures == (0.0, 1.5)
    assert bundle.live_requests is not None
    assert bundle.live_requests["temperature"].tolist() == [0, 1.5, 0, 0, 0, 0]
    assert bundle.live_requests["output_tokens"][2] <= 3
    assert texts[0][:1] + texts[0][3:] == texts[1][:1] + texts[1][3:]


def test_policies_by_name_profile_the_engine_first(home: Path, tmp_path: Path, capsys) -> None:
    changed = {"policy": "goodput", "drafter": "ngram", "limit": "1", "max-context": "600"}
    assert main(arguments(home, tmp_path / "run", **changed)) == 0
    assert "measured at start-up" in capsys.readouterr().err


def test_policies_that_read_no_cost_begin_at_once(
    home: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("drafters.profile.Profiler.run")
    changed = {"policy": "fixed-k:k=2", "drafter": "ngram", "limit": "1", "max-context": "600"}
    assert main(arguments(home, tmp_path / "run", **changed)) == 0
    assert "cost table: none, which fixed-k does not read" in capsys.readouterr().err


def test_the_start_up_profile_reaches_the_concurrency(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Grid] = []

    def measure(target: object, drafter: object, shapes: Grid, graphs: bool) -> None:
        asked.append(shapes)
        raise UserError("seen enough")

    monkeypatch.setattr("drafters.profile.measure", measure)
    for concurrency, counts in (("1", (1,)), ("3", (1, 3)), ("40", (1, 4, 16, 40))):
        changed = {"policy": "goodput", "concurrency": concurrency}
        assert main(arguments(home, tmp_path / "run", **changed)) == 2
        assert asked.pop().requests == counts


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max-step-tokens": "10"}, "max step tokens 10 must be at least"),
        ({"max-context": "5000"}, "more than the target's 2048 positions"),
        ({"policy": "oracle"}, "true acceptance"),
        ({"policy": "hardware-aware:lag=0", "temperature": "1"}, "--allow-anticipating"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_measured(
    home: Path,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str],
    says: str,
) -> None:
    monkeypatch.delattr("drafters.profile.Profiler.run")
    assert main(arguments(home, tmp_path / "run", **{"policy": "goodput", **changed})) == 2
    assert says in capsys.readouterr().err


def test_nothing_served_is_no_success(home: Path, tmp_path: Path, capsys) -> None:
    changed = {"max-context": "13", "policy": "fixed-k:k=2"}
    assert main(arguments(home, tmp_path / "run", **changed)) == 1
    assert "0 completed, 6 failed" in capsys.readouterr().out


def test_a_run_without_git_is_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DSPARK_LAB_COMMIT", raising=False)
    assert main(arguments(home, tmp_path / "run", limit="1")) == 0
    assert read_bundle(tmp_path / "run").manifest.commit == ""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"policy": "nonsense"}, "unknown policy 'nonsense'; known: "),
        ({"policy": "fixed-k:k=99"}, "k=99 must lie in 0..5"),
        ({"policy": "missing.json"}, "missing.json"),
        ({"policy": "oracle"}, "true acceptance"),
        ({"policy": "hardware-aware:lag=0", "temperature": "1"}, "--allow-anticipating"),
        ({"temperature": "-1"}, "'-1' must be a number, 0 or more"),
        ({"temperature": "nan"}, "'nan' must be a number, 0 or more"),
        ({"concurrency": "0"}, "--concurrency: '0' must be a whole number, 1 or more"),
        ({"seed": "x"}, "--seed: 'x' must be a whole number, 0 or more"),
        ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"device": "gpu"}, "device 'gpu' cannot be used ("),
        ({"target": "nowhere"}, "target 'nowhere' cannot be loaded (neither a folder nor"),
        ({"drafter": "nowhere"}, "no drafter 'nowhere': not a folder"),
        ({"bundle": "smollm2-dspark-cpu"}, "has gamma 7, the drafter 5"),
        ({"drafter": ""}, "needs --drafter"),
        ({"arrivals": "nowhere.csv"}, "no such file"),
        ({"max-step-tokens": "17"}, "must be at least max requests x (1 + gamma) = 3 x 6 = 18"),
    ],
)
def test_bad_input_is_one_line(
    home: Path, tmp_path: Path, capsys, monkeypatch, changed: dict[str, str], says: str
) -> None:
    """Exit code 2, one line, nothing written. Policies by name need no profile here."""
    monkeypatch.setattr(
        "drafters.policy_choice.measured_cost", lambda *_: (cost_table(), "made for the test")
    )
    assert code_of(arguments(home, tmp_path / "run", **changed)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bundle", "origin"),
    [("smollm2-dspark-epyc", "measured (CPU"), ("smollm2-eagle3-h100", "made for the test")],
)
def test_costs_a_bundle_lacks_are_profiled(
    home: Path, monkeypatch: pytest.MonkeyPatch, bundle: str, origin: str
) -> None:
    """Calibration comes from the bundle either way."""
    monkeypatch.setattr(
        "drafters.policy_choice.measured_cost", lambda *_: (cost_table(), "made for the test")
    )
    choice = choose("goodput", load_target(str(home / "target")), None, bundle)
    assert choice.cost_origin.startswith(origin)
    assert {c.temperature for c in choice.calibration} == {0.0, 1.0}


def test_a_full_disk_leaves_no_run(home: Path, tmp_path: Path, capsys) -> None:
    """Nor one without its texts, which are the largest file here."""
    out, texts = tmp_path / "run", [{"text": "x" * 80_000}]
    args = parser().parse_args(arguments(home, out, policy="none", limit="1"))
    args.command_line = ["decode"]
    engine, _, _ = build(args)
    with largest_file(40_000), pytest.raises(BundleError, match="run could not be written"):
        write(args, engine, ("a",), texts)
    assert list(tmp_path.iterdir()) == []
    write(args, engine, ("a",), texts)
    assert json.loads((out / "responses.jsonl").read_text()) == texts[0]


def test_an_existing_folder_is_kept_unless_forced(home: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main(arguments(home, out)) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*arguments(home, out), "--force"]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "keep"


def test_without_cuda_a_run_falls_back_and_says_so_once(
    home: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    say_once.cache_clear()
    for name in ("a", "b"):
        out = tmp_path / name
        assert main([*arguments(home, out, device="cuda", limit="1"), "--graphs"]) == 0
        assert read_bundle(out).manifest.hardware
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA device for 'cuda': running on the CPU",
        "--graphs needs a CUDA device; steps on cpu run eagerly",
    ]
    with pytest.raises(UserError, match="sees no CUDA device; give --device cpu"):
        load_target(str(home / "target"), device="cuda")


def test_help_states_every_default() -> None:
    text = parser().format_help()
    options = [a for a in parser()._actions if a.option_strings and a.dest != "help"]
    needs_default = [a for a in options if not a.required]
    assert text.count("(default:") == len(needs_default) > 10
