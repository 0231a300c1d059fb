"""The recording campaign: stages end to end on tiny models, resuming, packing, weights in parts."""

import importlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drafters import (
    campaign,
    campaign_latency,
    campaign_live,
    campaign_report,
    campaign_run,
    campaign_stages,
    campaign_traces,
    campaign_warm,
    generate,
)
from drafters.campaign_check import check
from drafters.campaign_gguf import BLOCK, llama_weights, read_gguf
from drafters.campaign_latency import as_served, without_graphs
from drafters.campaign_live import make_arrivals
from drafters.campaign_pack import files_under, read_parts, write_parts
from drafters.campaign_run import Campaign, Progress, State, Task
from drafters.campaign_sizes import DRAFTERS, TRAINED
from drafters.campaign_stages import SHARES, Plan, choose_stages, tasks
from drafters.campaign_weights import join_target
from drafters.errors import UserError
from gpu_traces.bundle import read_bundle
from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from sim import live_speed
from tests.drafters.live import WORDS, save_model, save_tokenizer

PROMPTS = 24
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny target and prompts of two domains."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "tiny")
    save_tokenizer(folder / "tiny")
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": " ".join(rng.choice(WORDS.split(), 5)), "domain": ("math", "chat")[i % 2]}
        for i in range(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def plan_of(inputs: Path, out: Path, stages: tuple[str, ...]) -> Plan:
    prompts = (str(inputs / "prompts.jsonl"),)
    return Plan(out, str(inputs / "tiny"), prompts, "cpu", "float32", "small", stages)


def run_here(task: Task) -> int:
    """The task's command in this process (in one of its own it takes seconds to import)."""
    module, *argv = campaign_run.expanded(task.command)
    code: int = importlib.import_module(module).main(argv)
    return code


@pytest.fixture(scope="module")
def recorded(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small campaign."""
    out = tmp_path_factory.mktemp("campaign")
    small = replace(campaign_stages.SIZES["small", "any"], steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(campaign_stages.SIZES, ("small", "any"), small)
        patch.setattr(campaign_latency, "MOST_REPETITIONS", 3)
        _run_all(inputs, out)
    return out


def _run_all(inputs: Path, out: Path) -> None:
    for task in tasks(plan_of(inputs, out, tuple(SHARES))):
        assert task.not_here or run_here(task) == 0, task.name


def test_campaign_records_every_drafter_with_traces_and_latencies(recorded: Path) -> None:
    lines, problems = check(recorded)
    assert problems == []
    for name in DRAFTERS:
        bundle = read_bundle(recorded / "bundles" / f"tiny-{name}")
        assert bundle.manifest.drafter == name
        assert bundle.manifest.temperatures == (0.0, 1.0)
        assert bundle.manifest.hardware.startswith("CPU")
        assert set(bundle.steps["mode"]) >= {"verify", "prefill", "overhead", "draft"}
        assert len(bundle.manifest.calibration) == 2
        exact = "float16" if name == "dspark" else "uint8"
        assert bundle.manifest.encodings["anchors.confidence"].startswith(exact)
    shaped = read_bundle(recorded / "bundles" / "tiny-dspark-2L").manifest
    assert not shaped.has_traces
    assert "random weights" in shaped.notes
    assert any("live" in line for line in lines)


def test_drafters_are_compared_on_the_same_responses_and_target_passes(recorded: Path) -> None:
    first, *others = (read_bundle(recorded / "bundles" / f"tiny-{name}") for name in DRAFTERS)
    for other in others:
        pd.testing.assert_frame_equal(first.responses, other.responses)
        target = [b.steps[b.steps["mode"] == "verify"] for b in (first, other)]
        assert target[0]["microseconds"].tolist() == target[1]["microseconds"].tolist()


def test_a_smaller_bundle_holds_the_first_responses(
    recorded: Path, inputs: Path, tmp_path: Path
) -> None:
    argv = ["bundle", "--target", str(inputs / "tiny"), "--drafter-name", "ngram", "--limit", "5"]
    argv += ["--responses", str(recorded / "responses" / "eval.jsonl")]
    argv += ["--shards", str(recorded / "shards" / "ngram"), "--out", str(tmp_path / "small")]
    assert campaign_traces.main([*argv, "--steps", str(tmp_path / "none")]) == 0
    small = read_bundle(tmp_path / "small")
    whole = read_bundle(recorded / "bundles" / "tiny-ngram")
    pd.testing.assert_frame_equal(small.responses, whole.responses.head(5))
    anchors = small.traces.anchors
    assert (small.traces.accepted == whole.traces.accepted[:anchors]).all()


def test_halves_share_no_prompt_and_the_check_notices_if_they_do(
    recorded: Path, tmp_path: Path
) -> None:
    names = [
        {json.loads(row)["name"].split("/")[0] for row in path.read_text().splitlines()}
        for path in sorted((recorded / "responses").glob("*.jsonl"))
    ]
    assert len(names) == 2
    assert not names[0] & names[1]
    for half in ("train", "eval"):
        (tmp_path / "responses").mkdir(exist_ok=True)
        (tmp_path / "responses" / f"{half}.jsonl").write_text('{"name": "k/T0/0"}\n')
    assert any("both halves" in problem for problem in check(tmp_path)[1])


def test_live_runs_serve_all_requests_under_every_policy_and_load(recorded: Path) -> None:
    runs = sorted(p.parent.name for p in (recorded / "live").glob("*/manifest.json"))
    loads = ("c1", "c2", "steady", "bursty")
    assert runs == sorted(f"{p}-{load}" for p in ("none", "fixed-k", "vllm") for load in loads)
    for run in runs:
        requests = read_bundle(recorded / "live" / run).live_requests
        assert requests is not None
        assert np.isfinite(requests["e2e_s"]).all()
        assert (requests["output_tokens"] > 0).all()


def test_closed_loops_give_the_same_text_lengths_under_every_policy(recorded: Path) -> None:
    """Speculation at temperature 0 is lossless, so only rounds may differ."""
    tables = [
        read_bundle(recorded / "live" / f"{p}-c2").live_requests
        for p in ("none", "fixed-k", "vllm")
    ]
    assert all(t["output_tokens"].equals(tables[0]["output_tokens"]) for t in tables)
    assert (tables[1]["verified"] > 0).any()


def test_the_simulator_serves_the_live_runs_again(recorded: Path, tmp_path: Path, capsys) -> None:
    """At temperature 0 with a fixed length, round for round."""
    bundle, out = recorded / "bundles" / "tiny-dspark", tmp_path / "speed.csv"
    words = [str(recorded / "live"), "--bundle", str(bundle), "--csv", str(out)]
    assert live_speed.main(words) == 0
    assert "tokens per second of 12 runs" in capsys.readouterr().out
    table = pd.read_csv(out).set_index("run")
    assert (table["sim_tok_s"] > 0).all()
    fixed = table.loc[["fixed-k-c1", "fixed-k-c2"]]
    assert (fixed["live_tokens_per_round"] > 1).any()
    assert fixed["sim_tokens_per_round"].tolist() == pytest.approx(
        fixed["live_tokens_per_round"].tolist()
    )


def test_report_fills_the_page_between_its_markers(recorded: Path, tmp_path: Path) -> None:
    page = tmp_path / "recording.md"
    begin, end = campaign_report.BEGIN, campaign_report.END
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert campaign.main(["report", str(recorded), "--out", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "Measured on CPU" in text
    assert "H200" not in text
    for image in re.findall(r"\((img/.*?\.svg)\)", text):
        assert (tmp_path / image).read_text().startswith("<svg")
    assert all(f"| {name} |" in text for name in TRAINED)
    campaign.main(["report", str(recorded), "--out", str(page)])
    assert page.read_text() == text


def test_bundles_of_one_drafter_go_by_their_own_names(tmp_path: Path) -> None:
    bundles = []
    for seed, name in enumerate(("one", "two")):
        traces = synthetic_traces(
            {"math": 0.8}, gamma=3, responses=20, response_tokens=50, seed=seed
        )
        folder = synthetic_bundle(tmp_path / name, replace(traces, name=name))
        bundles.append(read_bundle(folder))
    drawn = campaign_report.acceptance(bundles, bundles[0].manifest.temperatures[0])
    assert all(f">{bundle.name}<" in drawn for bundle in bundles)
    assert set(campaign_report.calibrations(bundles)[0]["drafter"]) == {"one", "two"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--policies", "adaspec"], "biases sampled text"),
        (["--policies", "oracle"], "needs the true acceptance"),
        (["--arrivals", "a/x.csv", "b/x.csv"], "give each its own name"),
        (["--arrivals", "none.csv"], "none.csv: no such file"),
        (["--concurrency", "0"], "'0' must be a whole number, 1 or more"),
        (["--max-new", "0"], "'0' must be a whole number, 1 or more"),
    ],
)
def test_live_runs_are_refused_before_models_are_loaded(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("drafters.campaign_live.Live.__init__")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text("arrival_s\n0\n")
    common = ["--drafter", "ngram", "--bundle", "smollm2-dspark-cpu"]
    common += ["--prompts", "prompts", "--out", "out"]
    try:
        code = campaign_live.main([*common, *words])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    assert says in capsys.readouterr().err


def test_threads_of_a_processor_are_one_machine(tmp_path: Path) -> None:
    traces = synthetic_traces({"math": 0.8}, gamma=3, responses=3, response_tokens=9, seed=0)
    made = read_bundle(synthetic_bundle(tmp_path / "made", traces))
    bundles = [
        replace(made, manifest=replace(made.manifest, kind="measured", name=name, hardware=machine))
        for name, machine in (("one", "CPU, 1 thread of X"), ("two", "CPU, 2 threads of X"))
    ]
    assert {campaign_report.machine_of(bundle) for bundle in bundles} == {"CPU, X"}
    noted = campaign_report._overview(bundles).set_index("bundle")["note"]
    assert noted.to_dict() == {"one": "1 thread", "two": "2 threads"}


def test_report_refuses_a_page_without_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(UserError, match="has no lines"):
        campaign_report.write([tmp_path], page)


def test_traces_stopped_and_resumed_equal_those_made_at_once(
    recorded: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_traces, "SHARD", 4)
    common = ["anchors", "--target", str(inputs / "tiny"), "--drafter", "ngram"]
    common += ["--responses", str(recorded / "responses" / "eval.jsonl")]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert campaign_traces.main([*common, "--shards", str(whole)]) == 0
    assert campaign_traces.main([*common, "--shards", str(stopped), "--seconds", "0"]) == 0
    assert len(list(stopped.glob("*.npz"))) < len(list(whole.glob("*.npz")))
    assert campaign_traces.main([*common, "--shards", str(stopped)]) == 0
    assert_same_shards(whole, stopped)
    shared = tmp_path / "shared"
    for part in ("2/2", "1/2"):
        assert len(list(shared.glob("*.npz"))) < len(list(whole.glob("*.npz")))
        assert campaign_traces.main([*common, "--shards", str(shared), "--part", part]) == 0
    assert_same_shards(whole, shared)


def test_shards_are_joined_only_with_their_own(
    recorded: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is a damaged one read; each is named in one line."""
    responses, shards = tmp_path / "eval.jsonl", tmp_path / "shards"
    lines = (recorded / "responses" / "eval.jsonl").read_text().splitlines(keepends=True)
    responses.write_text("".join(lines))
    common = ["--target", str(inputs / "tiny"), "--responses", str(responses)]
    common += ["--shards", str(shards)]
    made = ["anchors", *common, "--drafter", "ngram"]
    joined = ["bundle", *common, "--steps", str(tmp_path / "no"), "--out", str(tmp_path / "out")]

    def refused(words: list[str], says: str) -> None:
        capsys.readouterr()
        assert campaign_traces.main(words) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1

    assert campaign_traces.main([*made, "--limit", "5"]) == 0
    refused(made, "shards was made with limit 5, not 0")
    dspark = str(recorded / "drafters" / "dspark")
    refused([*made[:-1], dspark, "--limit", "5"], "made with drafter ngram, not dspark (SHA-256 ")
    refused([*joined, "--seed", "1"], "made with seed 0, not 1")
    responses.write_text("".join(lines[1:]))
    refused([*made, "--limit", "5"], "made with responses ")
    refused(joined, "made with responses ")
    responses.write_text("".join(lines))
    (shard,) = shards.glob("*.npz")
    shard.write_bytes(shard.read_bytes()[:100])
    refused(joined, f"{shard} is damaged; remove it")


def assert_same_shards(one: Path, other: Path) -> None:
    assert {p.name for p in one.glob("*.npz")} == {p.name for p in other.glob("*.npz")}
    for path in one.glob("*.npz"):
        with np.load(path) as a, np.load(other / path.name) as b:
            assert all((a[name] == b[name]).all() for name in a.files)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_a_wrong_part_is_refused(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["anchors", "--responses", "r", "--shards", "s", "--drafter", "ngram", "--part", part]
    with pytest.raises(SystemExit, match="2"):
        campaign_traces.main(argv)
    assert "--part: invalid" in capsys.readouterr().err


def test_a_line_torn_by_a_kill_is_cut_off_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text('{"name": "a"}\n{"name": "b')
    assert generate.whole_lines(path) == ['{"name": "a"}']
    assert path.read_text() == '{"name": "a"}\n'


# --- running in pieces: commands are one-liners run by the timeit module ---


def task(name: str, code: str, **rest: object) -> Task:
    command = ("timeit", "-n", "1", "-r", "1", code)
    return Task("stage", name, command, **{"budget_s": 60.0, **rest})  # type: ignore[arg-type]


def mark(path: Path) -> str:
    return f"open({str(path)!r}, 'a').write('x')"


def test_a_killed_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    made = [task("first", mark(tmp_path / "a")), task("second", "import time; time.sleep(60)")]
    stopped = Campaign(made, tmp_path / "out", seconds=1.5)
    assert not stopped.run()
    assert stopped.state.tasks["first"].status == "done"
    assert stopped.state.tasks["second"].status == "open"
    assert stopped.state.tasks["second"].spent_s > 0
    made[1] = task("second", mark(tmp_path / "b"))
    resumed = Campaign(made, tmp_path / "out", seconds=60)
    assert resumed.run()
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent died")
def test_nothing_runs_on_after_the_campaign_is_killed(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    forever = f"import time\nwhile True: {mark(beat)}; time.sleep(.02)"
    script = (
        "from drafters.campaign_run import Campaign, Task\n"
        f"t = Task('s', 't', ('timeit', '-n', '1', '-r', '1', {forever!r}), 60.0)\n"
        f"from pathlib import Path; Campaign([t], Path({str(tmp_path)!r}), 60).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    while not beat.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(0.3)
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size


def test_time_of_a_task_is_limited_and_partial_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_run, "START_UP_S", 0.0)
    monkeypatch.setattr(campaign_run, "LOADING_S", 0.0)
    sleep = "import time; time.sleep(60)"
    made = [
        task("kept", sleep, budget_s=0.3, partial=True),
        task("lost", sleep, budget_s=0.1),
        task("after", "pass"),
    ]
    run = Campaign(made, tmp_path, seconds=60)
    assert run.run()
    assert {n: p.status for n, p in run.state.tasks.items()} == {
        "kept": "enough", "lost": "given up", "after": "done",
    }  # fmt: skip
    assert run.failed == ["lost"]


def test_failed_tasks_name_their_error_and_are_tried_again(tmp_path: Path) -> None:
    run = Campaign([task("bad", "raise ValueError('why')")], tmp_path, seconds=60)
    assert run.run()
    assert run.failed == ["bad"]
    assert "why" in run.state.tasks["bad"].note
    again = Campaign([task("bad", mark(tmp_path / "ran"))], tmp_path, seconds=60)
    assert again.run()
    assert again.failed == []
    assert (tmp_path / "ran").exists()


def test_tasks_that_measure_time_run_alone(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    claim = f"import os, time; os.mkdir({str(busy)!r}); time.sleep(.3); os.rmdir({str(busy)!r})"
    run = Campaign(
        [task(f"t{i}", claim, alone=True) for i in range(2)], tmp_path / "o", 60, together=4
    )
    assert run.run()
    assert run.failed == []


def test_state_survives_writing(tmp_path: Path) -> None:
    state = State(tmp_path / "campaign.json", {"a": Progress("done", 1.5, "note")})
    state.save()
    assert State.read(state.path).tasks == state.tasks


# --- stages ---


def test_stages_are_chosen_and_skipped_in_order() -> None:
    assert choose_stages(["live", "train"], []) == ("train", "live")
    assert "kernels" not in choose_stages([], ["kernels"])
    assert sum(SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--stages", "trian"], "unknown stage 'trian'; known: invent, generate, train"),
        (["--stages", "train", "--skip", "train"], "no stage is left"),
        (["--stages", "generate"], "need --prompts"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--minutes", "0"], "must be above 0"),
        (["--device", "cuda", "--stages", "kernels"], "sees no CUDA device"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    out = tmp_path / "out"
    assert campaign.main(["--minutes", "1", "--out", str(out), *argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_families_learn_from_the_same_responses_as_long(tmp_path: Path) -> None:
    """In two groups on a GPU, in one on a CPU."""
    for device, groups in (("cuda", 2), ("cpu", 1)):
        plan = Plan(tmp_path, "smollm2-135m", ("p",), device, "bfloat16", "full", ("train",))
        made = tasks(plan)
        assert len(made) == groups
        learned = []
        for task in made:
            start, end = (task.command.index(word) for word in ("--drafter", "--target"))
            learned += task.command[start + 1 : end]
        assert sorted(learned) == sorted(TRAINED)
        for option in ("--minutes", "--responses", "--batch", "--lr"):
            assert len({t.command[t.command.index(option) + 1] for t in made}) == 1


def test_arrival_files_have_the_asked_rate_and_stay(tmp_path: Path) -> None:
    """Means of 4,000 gaps: standard error 1.6 % and 4 % (CV 1 and 2.5); 4.5 of them allowed."""
    steady, bursty = make_arrivals(tmp_path, 20.0, 4000)
    gaps = [np.diff(pd.read_csv(path)["arrival_s"]) for path in (steady, bursty)]
    assert gaps[0].mean() == pytest.approx(0.05, rel=0.072)
    assert gaps[1].mean() == pytest.approx(0.05, rel=0.18)
    assert gaps[1].std() > 2 * gaps[0].std()
    before = steady.read_text()
    make_arrivals(tmp_path, 99.0, 10)
    assert steady.read_text() == before


def test_graph_and_eager_samples_make_two_engines() -> None:
    """A graph engine runs eagerly only what is larger than its largest captured size."""
    rows = [
        ("verify", 1, 8, False), ("verify", 1, 8, True), ("verify", 4, 32, False),
        ("draft", 2, 0, False), ("draft", 2, 0, True), ("draft", 4, 0, False),
        ("prefill", 1, 8, False),
    ]  # fmt: skip
    steps = pd.DataFrame(rows, columns=["mode", "requests", "tokens", "graph"])
    assert not without_graphs(steps)["graph"].any()
    assert len(without_graphs(steps)) == 5
    assert list(as_served(steps).itertuples(index=False, name=None)) == [
        rows[i] for i in (1, 2, 4, 5, 6)
    ]


# --- parts ---


def test_packing_and_unpacking_gives_back_every_byte(tmp_path: Path) -> None:
    rng, source = np.random.default_rng(0), tmp_path / "source"
    for name in ("a.bin", "deep/b.bin", "deep/empty"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(rng.bytes(0 if name.endswith("empty") else 40_000))
    parts = write_parts(files_under(source), tmp_path / "parts", "results", part_mib=0.03)
    assert len(parts) > 2
    assert max(p.stat().st_size for p in parts) <= 0.03 * 2**20
    read_parts(parts[::-1], tmp_path / "back")
    for path, name in files_under(source):
        assert (tmp_path / "back" / name).read_bytes() == path.read_bytes()
    assert {n for _, n in files_under(tmp_path / "back")} == {n for _, n in files_under(source)}


def test_incomplete_or_mixed_parts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 50_000)
    parts = write_parts([(tmp_path / "f", "f")], tmp_path / "p", "results", part_mib=0.03)
    with pytest.raises(UserError, match="part 01 is missing"):
        read_parts([parts[0], *parts[2:]], tmp_path / "out")
    with pytest.raises(UserError, match="one set"):
        read_parts([*parts, *write_parts([(tmp_path / "f", "f")], tmp_path / "q", "x", 1)],
                   tmp_path / "out")  # fmt: skip
    with pytest.raises(UserError, match="not a file named like"):
        read_parts([tmp_path / "f"], tmp_path / "out")


def test_pack_leaves_training_state_and_working_files_out(tmp_path: Path) -> None:
    for name in ("drafters/a/state.pt", "drafters/a/config.json", "shards/a/0.npz"):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_text("x")
    assert campaign.main(["pack", str(tmp_path / "c"), "--out", str(tmp_path / "p")]) == 0
    parts = [str(p) for p in (tmp_path / "p").iterdir()]
    assert campaign.main(["unpack", *parts, "--out", str(tmp_path / "b")]) == 0
    assert [n for _, n in files_under(tmp_path / "b")] == ["drafters/a/config.json"]


def test_chosen_folders_are_packed_alone(tmp_path: Path) -> None:
    for name in ("bundles/a/x", "drafters/a/x", "campaign.json"):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_text(name)
    argv = ["pack", str(tmp_path / "c"), "--out", str(tmp_path / "p")]
    assert campaign.main([*argv, "--only", "bundles", "campaign.json"]) == 0
    parts = [str(p) for p in (tmp_path / "p").iterdir()]
    assert campaign.main(["unpack", *parts, "--out", str(tmp_path / "b")]) == 0
    assert [n for _, n in files_under(tmp_path / "b")] == ["bundles/a/x", "campaign.json"]


# --- weights out of GGUF ---

TINY = {"heads": 4, "kv_heads": 2, "width": 64, "inner": 96, "layers": 2, "vocabulary": 40}


def write_gguf(path: Path) -> None:
    """A random Llama in the mixture of storage types that small GGUF files have."""
    gguf = pytest.importorskip("gguf")
    writer, rng, t = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0), TINY
    writer.add_name("tiny model")
    writer.add_block_count(t["layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(t["width"])
    writer.add_feed_forward_length(t["inner"])
    writer.add_head_count(t["heads"])
    writer.add_head_count_kv(t["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(t["vocabulary"])
    writer.add_token_list([f"t{i}" for i in range(t["vocabulary"])])

    def add(name: str, shape: tuple[int, ...], kind: str) -> None:
        values = rng.standard_normal(shape).astype(np.float32)
        stored = gguf.GGMLQuantizationType[kind]
        if kind == "F16":
            writer.add_tensor(f"{name}.weight", values.astype(np.float16))
        else:
            packed = values if kind == "F32" else gguf.quants.quantize(values, stored)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=stored)

    head = t["width"] // t["heads"]
    add("token_embd", (t["vocabulary"], t["width"]), "Q8_0")
    add("output_norm", (t["width"],), "F32")
    for i in range(t["layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{norm}", (t["width"],), "F32")
        add(f"blk.{i}.attn_q", (t["width"], t["width"]), "Q4_1")
        add(f"blk.{i}.attn_k", (t["kv_heads"] * head, t["width"]), "Q4_1")
        add(f"blk.{i}.attn_v", (t["kv_heads"] * head, t["width"]), "F16")
        add(f"blk.{i}.attn_output", (t["width"], t["width"]), "Q4_1")
        add(f"blk.{i}.ffn_gate", (t["inner"], t["width"]), "Q4_1")
        add(f"blk.{i}.ffn_up", (t["inner"], t["width"]), "Q8_0")
        add(f"blk.{i}.ffn_down", (t["width"], t["inner"]), "Q4_1")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_weights_equal_those_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "tiny.gguf")
    mine = llama_weights(tmp_path / "tiny.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    ).state_dict()
    theirs.pop("lm_head.weight")
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(torch.from_numpy(tensor), theirs[name]), name


def test_damaged_gguf_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"nope" * BLOCK)
    with pytest.raises(UserError, match="not a GGUF file"):
        read_gguf(path)


def test_parts_with_another_file_than_the_pinned_one_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_LAB_CACHE", str(tmp_path / "cache"))
    fake = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    fake.write_bytes(b"GGUF")
    parts = write_parts([(fake, fake.name)], tmp_path / "parts", "smollm2-135m", 1)
    with pytest.raises(UserError, match="SHA-256"):
        join_target("smollm2-135m", parts)
    assert not (tmp_path / "cache" / "smollm2-135m").exists()


def test_policies_of_the_live_runs_are_compiled_before(tmp_path: Path) -> None:
    stages = ("generate", "live")
    plan = Plan(tmp_path, "smollm2-135m", ("p",), "cuda", "bfloat16", "full", stages)
    made = {task.name: task for task in tasks(plan)}
    live = made["live"].command
    names = made["compile"].command[1:]
    assert "goodput" in names
    assert live[live.index("--policies") + 1 :][: len(names)] == names
    assert campaign_warm.main(["none", "vllm"]) == 0


def test_warming_takes_the_costs_of_the_runs_own_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no other bundle has to be there."""
    shipped = campaign_warm.default_bundle()

    def missing() -> str:
        raise AssertionError("another bundle was asked for")

    monkeypatch.setattr(campaign_warm, "default_bundle", missing)
    campaign_warm.warm(["vllm"], shipped)
    with pytest.raises(AssertionError, match="another bundle"):
        campaign_warm.warm(["vllm"])
