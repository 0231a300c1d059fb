"""The command, from prompts to files: a tiny model saved as any user's would be."""

import json
import os
import signal
from pathlib import Path
from threading import Timer

import numpy as np
import pandas as pd
import pytest

from drafters.checkpoint import save_drafter
from drafters.decode import Stop, build, main, parser, serve, write
from drafters.engine import Engine, EngineConfig
from drafters.errors import UserError
from drafters.graphs import say_once
from drafters.policy_choice import choose
from drafters.request import Request
from drafters.target import load_target
from drafters.traffic import read_arrivals
from gpu_traces.bundle import BundleError, read_bundle
from policies.export import PolicyFile, write_policy
from policies.registry import create
from sim.importers import load
from sim.traffic import main as convert
from tests.drafters.live import (
    GAMMA,
    WORDS,
    block_drafter,
    cost_table,
    save_model,
    save_tokenizer,
    transformers_greedy,
)
from tests.limits import largest_file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with target, drafter, prompts and a policy file."""
    folder = tmp_path_factory.mktemp("home")
    save_model(folder / "target")
    save_tokenizer(folder / "target")
    save_drafter(block_drafter(load_target(str(folder / "target"))), folder / "drafter")
    rng = np.random.default_rng(0)
    lines = [
        {"prompt": " ".join(rng.choice(WORDS.split(), 6)), "domain": ("a", "b")[i % 2]}
        for i in range(6)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "prompts.jsonl").write_text(text)
    stored = PolicyFile("confidence", {}, GAMMA, cost_table())
    write_policy(folder / "policy.json", stored)
    return folder


def arguments(home: Path, out: Path, **changed: str) -> list[str]:
    options = {
        "policy": str(home / "policy.json"), "target": str(home / "target"),
        "drafter": str(home / "drafter"), "prompts": str(home / "prompts.jsonl"),
        "concurrency": "3", "max-new": "12", "max-context": "64", "out": str(out), **changed,
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", value)]


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


def test_policies_by_name_profile_the_engine_first(home: Path, tmp_path: Path, capsys) -> None:
    changed = {"policy": "fixed-k:k=2", "drafter": "ngram", "limit": "1", "max-context": "600"}
    assert main(arguments(home, tmp_path / "run", **changed)) == 0
    assert "measured at start-up" in capsys.readouterr().err


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


def test_a_signal_stops_after_the_step_and_the_log_is_kept(home: Path) -> None:
    target = load_target(str(home / "target"))
    config = EngineConfig(max_requests=2, max_context=64)
    engine = Engine(target, None, create("none", GAMMA), cost_table(), config)
    for i in range(4):
        engine.submit(Request(request_id=i, name=str(i), prompt=(1, 2, 3), max_new=40))
    stop, steps = Stop(), 0
    step = engine.step

    def interrupted() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    engine.step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals():
        serve(engine, stop)
    assert stop.asked
    assert len(engine.log) == steps == 5
    assert len(engine.everyone()) == 4
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_an_arrival(home: Path, number: int) -> None:
    target = load_target(str(home / "target"))
    engine = Engine(target, None, create("none", GAMMA), cost_table(), EngineConfig())
    late = Request(request_id=0, name="0", prompt=(1, 2, 3), max_new=4, arrival_s=20.0)
    engine.submit(late)
    stop = Stop()
    with stop.on_signals():
        engine.start()
        Timer(0.2, os.kill, (os.getpid(), number)).start()
        serve(engine, stop)
    assert stop.asked
    assert engine.now_s() < 10.0


def test_a_second_interrupt_keeps_what_was_measured(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised in this thread, each is handled before the next; of two that wait, one is lost. Tests
    that run in the background of a shell are started with Ctrl-C ignored."""
    step, out, before = Engine.step, tmp_path / "run", signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(engine: Engine) -> None:
        if len(engine.log) == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    try:
        assert main(arguments(home, out)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    steps = read_bundle(out).live_steps
    assert steps is not None
    assert len(steps) == 4


def test_arrivals_are_read_from_csv_and_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"arrival_s": [3.0, 3.5, 5.0], "prompt_tokens": 1})
    frame.to_csv(tmp_path / "a.csv")
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert read_arrivals(tmp_path / name) == [0.0, 0.5, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        "Timestamp,Model\n5,a\n5.25,b\n65,c\n",
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9799600,1\n2023-11-16 18:17:04.2299600,1\n"
        "2023-11-16 18:18:03.9799600,1\n",
    ],
    ids=["BurstGPT", "Azure"],
)
def test_arrivals_are_read_from_published_traces(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert read_arrivals(tmp_path / "a.csv") == pytest.approx([0.0, 0.25, 60.0], abs=1e-6)


def test_failed_requests_of_burstgpt_do_not_arrive(tmp_path: Path) -> None:
    """The same requests as in the simulator."""
    path = tmp_path / "burst.csv"
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n1,a,5,0\n2,a,5,7\n4,a,5,3\n")
    assert read_arrivals(path) == [0.0, 2.0]
    assert load(path).arrival_s.size == 2
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n1,a,5,0\n")
    with pytest.raises(UserError, match="every request failed"):
        read_arrivals(path)


def test_other_traces_come_by_way_of_a_conversion(tmp_path: Path) -> None:
    """The refusal names a command that works."""
    trace, made = tmp_path / "trace.jsonl", tmp_path / "arrivals.parquet"
    row = {"input_length": 4, "output_length": 4}
    lines = [json.dumps({"timestamp": ms, **row}) for ms in (0, 50, 2000)]
    trace.write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"sim.traffic convert {trace} --out arrivals.parquet"):
        read_arrivals(trace)
    assert convert(["convert", str(trace), "--out", str(made)]) == 0
    assert read_arrivals(made) == [0.0, 0.05, 2.0]


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s\n1\nx\n", "row 1: x"),
        ("arrival_s\n2\n1\n", "row 1: 1"),
        ("time\n1\n", "no column arrival_s; it has time"),
        ("arrival_s\n", "no rows"),
    ],
)
def test_bad_arrivals_name_the_row(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_arrivals(tmp_path / "a.csv")


def test_help_states_every_default() -> None:
    text = parser().format_help()
    options = [a for a in parser()._actions if a.option_strings and a.dest != "help"]
    needs_default = [a for a in options if not a.required]
    assert text.count("(default:") == len(needs_default) > 10
