"""The command lines, in process: output, files, exit codes, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpu_traces.bundle import default_bundle, read_bundle
from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from policies.export import read_policy
from sim import __main__ as experiments
from sim import run
from sim.scenarios import scenario
from sim.setup import PRODUCTION

KEYS = {
    "bundle", "origin", "seed", "capacity_rps", "load_rps", "wall_s", "policies",
}  # fmt: skip
POLICY_KEYS = {
    "requests_completed", "engine_steps", "output_tok_s", "tok_s_per_user_p50", "ttft_s", "tpot_s",
    "itl_s", "e2e_s", "verified_tokens", "accepted_tokens", "wasted_tokens", "mean_budget_tokens",
    "mean_step_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return str(synthetic_bundle(folder, synthetic_traces(responses=10, response_tokens=40)))


@pytest.fixture
def call(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run ``sim.run`` on the tiny bundle; returns the JSON document and what was printed."""

    def made(*words: str) -> tuple[dict[str, Any], str]:
        base = ["--bundle", bundle, "--max-requests", "8", "--requests", "120", "--json"]
        out = [] if "--out" in words else ["--out", str(tmp_path / "run")]
        assert run.main([*base, *out, *words]) == 0
        text = capsys.readouterr().out
        return json.loads(text.splitlines()[-1]), text

    return made


def test_document_and_folder(call, tmp_path: Path) -> None:
    document, text = call("--policy", "none,hardware-aware", "--load", "high")
    assert set(document) >= KEYS
    for summary in document["policies"].values():
        assert set(summary) >= POLICY_KEYS
        assert set(summary["itl_s"]) == {"p50", "p95", "p99"}
    assert document["load_rps"] == pytest.approx(0.9 * document["capacity_rps"])
    assert "synthetic" in text.splitlines()[0]
    assert "TTFT p50" in text
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"summary.json", "provenance.json", "requests.parquet", "steps.parquet"}
    requests = pd.read_parquet(folder / "requests.parquet")
    assert requests.groupby("policy", observed=True).size().to_dict() == {
        "none": 120,
        "hardware-aware": 120,
    }
    assert json.loads((folder / "provenance.json").read_text())["bundles"]


def test_counts_balance(call, tmp_path: Path) -> None:
    """Rounds, tokens, verified and accepted drafts are the same however they are counted."""
    document, _ = call("--policy", "fixed-k:k=3")
    [summary] = document["policies"].values()
    requests = pd.read_parquet(tmp_path / "run" / "requests.parquet")
    steps = pd.read_parquet(tmp_path / "run" / "steps.parquet")
    histogram = summary["accept_histogram"]
    assert sum(histogram) == summary["rounds"] == requests["rounds"].sum()
    assert sum(i * n for i, n in enumerate(histogram)) == summary["accepted_tokens"]
    assert summary["verified_tokens"] == steps["budget_tokens"].sum()
    decoded = requests["generated_tokens"].sum() - len(requests)
    assert summary["tokens_per_round"] == pytest.approx(decoded / summary["rounds"])
    assert summary["positions"][0]["accepted"] == sum(histogram[1:])


def test_policies_see_the_same_requests(call, tmp_path: Path) -> None:
    call("--policy", "none,fixed-k")
    table = pd.read_parquet(tmp_path / "run" / "requests.parquet")
    none, fixed = (table[table["policy"] == p].reset_index() for p in ("none", "fixed-k"))
    for column in ("arrival_s", "prompt_tokens", "output_tokens", "domain"):
        assert none[column].equals(fixed[column])


def test_same_seed_same_files(call, tmp_path: Path) -> None:
    for name in ("a", "b"):
        call("--policy", "hardware-aware", "--seed", "4", "--out", str(tmp_path / name))
    for table in ("requests", "steps", "stalls", "outcomes"):
        first, second = ((tmp_path / n / f"{table}.parquet").read_bytes() for n in ("a", "b"))
        assert first == second


def test_closed_loop_keeps_requests_out(call, tmp_path: Path) -> None:
    document, _ = call("--concurrency", "4", "--policy", "none")
    assert document["load_rps"] is None
    steps = pd.read_parquet(tmp_path / "run" / "steps.parquet")
    assert steps["decode_requests"].max() == 4


def test_what_is_printed_says_where_it_comes_from(call, tmp_path: Path) -> None:
    """Traffic with origin, method and stand-ins; the window and its rule; goodput by class."""
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{k / 40},{20 + k},{5 + k % 30},code\n" for k in range(100))
    trace.write_text("arrival_s,prompt_tokens,output_tokens,domain\n" + rows)
    words = ("--scenario", str(trace), "--policy", "none", "--slo", "interactive:ttft=9;tpot=9")
    document, text = call(*words, "--load", "20", "--rate-method", "thin")
    assert document["traffic_origin"].startswith("measured (user file")
    assert "thin 0.5" in text
    assert "rates and latencies from" in text
    assert "MSER-5 cuts" in text
    assert "interactive: SLO met, goodput" in text
    assert "100.0%" in text
    _, text = call(*words, "--load", "recorded")
    assert "at its recorded rate" in text
    assert "closed loop" not in text


def test_trouble_is_told(call) -> None:
    """Evictions, failed replicas and time-outs are printed, not only recorded."""
    words = ("--policy", "none", "--kv-tokens", "1200", "--timeout", "0.4")
    document, text = call(*words, "--load", "overload", "--outage", "0@0.2+0.2")
    summary = document["policies"]["none"]
    assert summary["preemptions"]
    assert summary["retries"]
    assert f"{summary['requests_by_status']['timed out']} timed out" in text
    assert "preemptions (KV cache full)" in text


def test_impatient_clients_cancel(call) -> None:
    """With a mean patience near the median stay a good part cancels; the note says so."""
    document, text = call("--policy", "none", "--load", "high", "--patience", "0.1")
    statuses = document["policies"]["none"]["requests_by_status"]
    assert 10 < statuses["cancelled"] < 110
    assert sum(statuses.values()) == 120
    assert "clients give up after 0.1 s on average" in text


def test_overload_is_named_and_ends(call) -> None:
    document, text = call("--load", "2000", "--policy", "none", "--requests", "400")
    assert "unstable: queue grew from" in document["policies"]["none"]["unstable"]
    assert "unstable" in text


def test_export_is_a_policy_file(call, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    call("--policy", "fixed-k:k=2,none", "--export", str(path))
    exported = read_policy(path)
    assert (exported.policy, exported.parameters["k"], exported.gamma) == ("fixed-k", 2, 7)
    assert exported.provenance["bundle"] == "tiny"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "nope"], "unknown policy 'nope'; known: "),
        (["--policy", "fixed-k:k=9"], "k=9 must lie in 0..7"),
        (["--policy", "fixed-k:k=two"], "must be of type int"),
        (["--policy", "none,none"], "name each once"),
        (["--load", "extreme"], "must be low, medium, high, overload, recorded"),
        (["--load", "-3"], "requests per second above 0"),
        (["--load", "high", "--concurrency", "4"], "leave it out with --concurrency"),
        (["--requests", "0"], "1 or more"),
        (["--scenario", "nowhere.csv"], "is no file; scenarios: bundle, azure-conv"),
        (["--scenario", "agentic"], "is a closed loop; give --concurrency"),
        (["--max-requests", "100000"], "profiled to"),
        (["--kv-tokens", "16"], "raise --kv-tokens"),
        (["--export", str(Path(__file__).parent)], "is a folder; name a file"),
        (["--export", __file__ + "/policy.json"], "is no folder that can be written to"),
        (["--slo", "vip:ttft=1"], "unknown SLO class 'vip'; known: interactive"),
        (["--horizon", "-5"], "must be a number, 0 or more"),
        (["--patience", "0"], "must be a number above 0"),
        (["--outage", "3@1"], "must be GROUP@SECONDS+SECONDS"),
        (["--group-size", "2"], "can't form lock-step groups of 2"),
    ],
)
def test_errors_are_one_line(
    words: list[str], said: str, bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    try:
        code = run.main(["--bundle", bundle, "--requests", "20", "--out", str(out), *words])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_an_interrupt_is_one_line(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """Ctrl-C: exit code 130, nothing half-written, and an experiment says where it goes on."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "simulate", stop)
    assert run.main(["--bundle", bundle, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "python -m sim.run: interrupted; nothing was written\n"
    assert not list(tmp_path.iterdir())
    from sim import cells

    monkeypatch.setattr(cells, "measure", stop)
    words = ["compare", "--bundle", bundle, "--jobs", "1", "--out", str(tmp_path / "c")]
    assert experiments.main(words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_bundle_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_out_is_never_somebody_elses_folder(bundle: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    assert run.main(["--bundle", bundle, "--out", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_help_states_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for option in ("--policy", "--load", "--concurrency", "--replicas", "--scenario", "--bundle"):
        assert option in text
    assert "(default: 2000)" in text


def verb(name: str, bundle: str, out: Path, *words: str) -> dict[str, Any]:
    base = ["--bundle", bundle, "--requests", "60", "--max-requests", "8", "--jobs", "1"]
    assert experiments.main([name, *base, "--out", str(out), *words]) == 0
    return json.loads((out / f"{name}.json").read_text())


def test_compare_shows_what_is_shown(bundle: str, tmp_path: Path) -> None:
    """The same policy twice, by another name, shows no difference; another one does."""
    made = verb(
        "compare", bundle, tmp_path, "--policy", "none,fixed-k:k=0,fixed-k:k=7", "--load", "low",
        "--replications", "5",
    )  # fmt: skip
    rows = {(r["policy"], r["metric"]): r for r in made["differences"]}
    assert not any(r["shown"] for (p, _), r in rows.items() if p == "fixed-k:k=0")
    faster = rows["fixed-k:k=7", "tpot_s.p50"]
    assert faster["shown"]
    assert faster["high"] < 0
    assert made["stopped_by"] in ("precision", "limit")


def test_frontier_trades_speed_for_throughput(bundle: str, tmp_path: Path) -> None:
    made = verb("frontier", bundle, tmp_path, "--policy", "none", "--at", "1,8", "--seeds", "2")
    one, many = made["points"]
    assert many["output_tok_s"]["mean"] > 3 * one["output_tok_s"]["mean"]
    assert many["tok_s_per_user_p50"]["mean"] < one["tok_s_per_user_p50"]["mean"]


def test_capacity_brackets(bundle: str, tmp_path: Path) -> None:
    words = ("--policy", "none", "--seeds", "2", "--tolerance", "0.2")
    words += ("--slo", "interactive:ttft=0.5;tpot=0.0025")
    row = verb("capacity", bundle, tmp_path, *words)["policies"]["none"]
    assert 0 < row["capacity_rps"] < row["fails_at_rps"] <= 1.25 * row["capacity_rps"]


def test_a_closed_scenario_has_a_frontier(bundle: str, tmp_path: Path) -> None:
    """Agents are a closed loop: the frontier's concurrency is the number of users."""
    words = ("--scenario", "agentic", "--extrapolate", "--policy", "none", "--at", "2,4")
    made = verb("frontier", bundle, tmp_path, *words, "--seeds", "1")
    assert [point["concurrency"] for point in made["points"]] == [2, 4]
    assert made["traffic_origin"].startswith("synthetic (agentic generator")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frontier", "--load", "3"], "frontier sets the load itself"),
        (["capacity", "--concurrency", "3"], "capacity sets the load itself"),
        (["capacity", "--attainment", "1.5"], "above 0 and at most 1"),
        (["compare", "--policy", "nope"], "unknown policy 'nope'"),
        (["compare", "--seed", "3"], "give --base-seed"),
        (["compare", "--seed=3"], "give --base-seed"),
        (["sweep", "--set", "colour=red"], "must be OPTION=value,value with an option"),
        (["sweep", "--set", "load=high", "--samples", "3"], "needs two numbers, low,high"),
    ],
)
def test_experiments_refuse_in_one_line(
    words: list[str], said: str, bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = words
    try:
        code = experiments.main([name, "--bundle", bundle, "--out", str(tmp_path / "o"), *rest])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiments.main(["conquer"]) == 2
    assert "unknown verb 'conquer'; known: run, compare" in capsys.readouterr().err


def test_capacity_is_where_the_queue_begins_to_grow(call) -> None:
    """With policy none, 0.9 of the capacity found is stable and 1.2 of it is not."""
    words = ("--policy", "none", "--requests", "3000", "--load")
    assert call(*words, "high")[0]["policies"]["none"]["unstable"] == ""
    assert call(*words, "overload")[0]["policies"]["none"]["unstable"] != ""


def test_extrapolation_is_marked(call) -> None:
    """Outside the profile a run is refused, or, on request, says so where the numbers come from."""
    words = ("--max-requests", "600", "--max-step-tokens", "9000", "--policy", "none")
    document, text = call(*words, "--extrapolate")
    assert "extrapolated from R=512, T=8192 to R=600, T=9000" in document["latency_origin"]
    assert "extrapolated from" in text


def test_a_prefix_is_cached_where_the_session_was(call, tmp_path: Path) -> None:
    """Agents' prompts repeat themselves: a sticky router prefills less than round robin."""
    prefilled = {}
    words = ("--scenario", "agentic", "--concurrency", "6", "--extrapolate", "--prefix-cache")
    for router in ("sticky", "round-robin"):
        call(*words, "--replicas", "3", "--router", router, "--policy", "none")
        steps = pd.read_parquet(tmp_path / "run" / "steps.parquet")
        prefilled[router] = steps["prefill_tokens"].sum()
    assert prefilled["sticky"] < 0.7 * prefilled["round-robin"]


def test_a_production_scenario_takes_production_models_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the best measured profile does not hold its longest request, and says so; what is given
    is never changed."""
    made = ["--scenario", "azure-conv", "--requests", "40", "--policy", "none", "--load", "low"]
    longest = scenario("azure-conv").longest_request_tokens
    small, best = read_bundle("smollm2-dspark-h100"), read_bundle(default_bundle())
    assert small.latency_fit[0].max_context_tokens < longest
    assert best.latency_fit[0].max_context_tokens >= longest
    run.main([*made, "--out", str(tmp_path / "best")])
    told = capsys.readouterr()
    assert "taking" not in told.err
    assert f"acceptance: {best.name}" in told.out

    monkeypatch.setattr("sim.setup.default_bundle", lambda: small.name)
    assert run.main([*made, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert f"acceptance: {PRODUCTION[0]}" in told.out
    assert f"more than {small.name} was profiled for; taking --bundle {PRODUCTION[0]}" in told.err
    run.main([*made, "--bundle", small.name, "--out", str(tmp_path / "given")])
    told = capsys.readouterr()
    assert "taking" not in told.err
    assert PRODUCTION[0] not in told.out
