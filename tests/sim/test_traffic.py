"""The request table's operations, downloads, and the command line."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.error

import numpy as np
import pytest

from gpu_traces.schema import Origin
from sim import fetch as fetching
from sim.fit_scenarios import main as fit_main
from sim.importers import load
from sim.request_table import RequestTable, clipped, closed_loop, scaled
from sim.scenarios import SCENARIOS, generate
from sim.traffic import main
from sim.traffic_stats import arrival_stats, describe, window_counts


def table(arrival_s, prompt=100, output=10) -> RequestTable:
    times = np.asarray(arrival_s, float)
    sizes = (np.full(times.size, prompt, np.int32), np.full(times.size, output, np.int32))
    return RequestTable("t.csv", Origin("measured", "a test"), times, *sizes)


def bursty(requests=20_000) -> RequestTable:
    return generate("azure-code", requests, np.random.SeedSequence(0))


def test_statistics_by_hand():
    """Gaps 1, 1, 4 (mean 2, variance 2); 10-s windows from the first arrival on."""
    stats = arrival_stats(np.array([5.0, 6.0, 7.0, 11.0]))
    assert stats["rate_rps"] == 0.5
    assert stats["gap_cv"] == pytest.approx(np.sqrt(2) / 2)
    assert window_counts(np.array([5.0, 6.0, 15.0, 36.0]), 10.0).tolist() == [2, 1, 0]
    every_second = arrival_stats(np.arange(1_000.0))
    assert every_second["10s_iod"] == 0
    assert every_second["minute_change_max"] == 0


def test_one_instant_has_no_rate():
    assert describe(table([3.0, 3.0]))["duration_s"] == 0


def test_time_scale_keeps_the_cv_and_thinning_a_tenth_pulls_it_down():
    """As measured on Azure 2023 code: CV 13.2 stays, and falls to about a third of it thinned."""
    plain = bursty()
    cv = arrival_stats(plain.arrival_s)["gap_cv"]
    faster, thinned = scaled(plain, 4.0, "time_scale"), scaled(plain, 0.1, "thin", seed=1)
    assert arrival_stats(faster.arrival_s)["gap_cv"] == pytest.approx(cv)
    assert 0.2 * cv < arrival_stats(thinned.arrival_s)["gap_cv"] < 0.5 * cv
    assert abs(thinned.requests - 2_000) < 4.5 * np.sqrt(20_000 * 0.1 * 0.9)
    assert faster.notes == ("time_scale 4",)
    assert thinned.notes == ("thin 0.1 (seed 1)",)


def test_superposing_shifted_copies_keeps_the_clock_and_multiplies_the_requests():
    plain = bursty(5_000)
    more = scaled(plain, 2.5, "superpose", seed=2)
    assert abs(more.requests - 12_500) < 4.5 * np.sqrt(5_000 * 0.25)
    assert more.arrival_s[-1] <= plain.arrival_s[-1] * 1.01
    assert np.all(np.diff(more.arrival_s) >= 0)
    once = np.bincount(plain.prompt_tokens, minlength=8_000)
    assert np.all(np.bincount(more.prompt_tokens, minlength=8_000) >= 2 * once)


def test_closed_loop_gives_each_user_its_turns():
    loop = closed_loop(table(np.arange(10.0)), users=4, think_s=8.0)
    assert loop.session.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert np.all(np.diff(loop.arrival_s) >= 0)
    assert loop.arrival_s[:4].max() <= 8.0
    assert closed_loop(table(np.arange(10.0)), users=3, think_s=0.0).arrival_s.max() == 0
    many = closed_loop(table(np.arange(20_000.0)), users=4, think_s=8.0)
    assert abs(many.think_s.mean() - 8.0) < 4.5 * 8.0 / np.sqrt(20_000)
    with pytest.raises(ValueError, match="users=0"):
        closed_loop(table([0.0]), users=0, think_s=1.0)
    with pytest.raises(ValueError, match="is a closed loop: set the number of users"):
        scaled(loop, 2.0, "time_scale")


def test_clipping_cuts_prompts_and_prefixes_to_the_context():
    agents = generate("agentic", 500, np.random.SeedSequence(0))
    cut = clipped(agents, 60_000)
    assert (cut.prompt_tokens + cut.output_tokens).max() <= 60_000
    assert np.all(cut.prefix_tokens <= cut.prompt_tokens)
    changed = np.count_nonzero(cut.prompt_tokens != agents.prompt_tokens)
    assert cut.notes[-1] == f"prompts clipped to a context of 60000 ({changed} requests)"
    with pytest.raises(ValueError, match="an output of 10 tokens leaves no room"):
        clipped(table([0.0]), 10)


@pytest.mark.parametrize("field", ["prompt_tokens", "output_tokens"])
def test_a_table_refuses_lengths_below_one(field):
    sizes = {"prompt_tokens": np.array([5, 5]), "output_tokens": np.array([5, 5])}
    sizes[field] = np.array([5, 0])
    with pytest.raises(ValueError, match=f"t.csv: {field} is 0 in row 1"):
        RequestTable("t.csv", Origin("measured", "x"), np.array([0.0, 1.0]), **sizes)


def offline(url):
    raise urllib.error.URLError("no route to host")


def test_fetch_writes_a_checked_file_or_nothing(tmp_path, monkeypatch):
    body = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
    good = hashlib.sha256(body).hexdigest()
    trace = fetching.PublicTrace("https://example.org/a/conv.csv", "a test", good)
    monkeypatch.setitem(fetching.TRACES, "test", trace)
    path = fetching.fetch("test", tmp_path, lambda url: io.BytesIO(body))
    assert path.read_bytes() == body
    assert fetching.fetch("test", tmp_path, offline) == path
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="SHA-256 is .* expected"):
        fetching.fetch("test", tmp_path, lambda url: io.BytesIO(b"other"))
    with pytest.raises(ValueError, match=r"cannot download https://example.org.*no route to host"):
        fetching.fetch("test", tmp_path, offline)
    assert [p.name for p in tmp_path.iterdir()] == ["conv.csv"]


def test_public_addresses_are_https_and_hashes_are_whole():
    for trace in fetching.TRACES.values():
        assert trace.url.startswith("https://")
        assert trace.sha256 is None or len(trace.sha256) == 64


def test_describe_ends_with_one_json_document(capsys):
    arguments = ["azure-conv", "--requests", "2000", "--rate", "3", "--method", "thin", "--json"]
    assert main(["describe", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["notes"] == ["thin 0.5425"]
    assert document["stats"]["requests"] == 2_000
    assert document["origin"].startswith("synthetic")


def test_describe_prints_origin_notes_and_statistics(capsys):
    assert main(["describe", "agentic", "--requests", "500", "--users", "3"]) == 0
    printed = capsys.readouterr().out
    for word in ("synthetic (agentic", "closed loop of 3 users", "think_p50_s", "prefix_share"):
        assert word in printed


def test_list_names_every_scenario_and_public_trace(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*SCENARIOS, *fetching.TRACES))


def test_convert_writes_a_file_that_loads_again(tmp_path, capsys):
    path = tmp_path / "r.parquet"
    assert main(["convert", "reasoning", "--requests", "300", "--out", str(path)]) == 0
    assert "300 requests, synthetic" in capsys.readouterr().out
    again = load(path)
    drawn = generate("reasoning", 300, np.random.SeedSequence(0))
    assert np.array_equal(again.arrival_s, drawn.arrival_s)
    names = [again.clients[c] for c in again.client]
    assert names == [drawn.clients[c] for c in drawn.client]
    assert main(["describe", str(path), "--requests", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["requests"] == 100


def test_check_prints_published_beside_generated(capsys):
    assert main(["check", "gamma"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| scenario | statistic | published | generated")
    assert lines[2].startswith("| gamma | gap_cv | 3 | 3 | 0.0")
    assert lines[2].endswith("| yes | theory |")
    assert lines[-1].startswith("theory: known exactly")


def test_fit_prints_the_parameters_of_a_trace(tmp_path, capsys):
    path = tmp_path / "p.parquet"
    assert main(["convert", "poisson", "--requests", "20000", "--out", str(path)]) == 0
    capsys.readouterr()
    assert fit_main([str(path)]) == 0
    fits = json.loads(capsys.readouterr().out)
    assert fits["gap_cv"] == pytest.approx(1.0, abs=0.05)
    assert abs(fits["excess_variance"]["10s"]) < 0.01
    assert fit_main([str(tmp_path / "none.csv")]) == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["describe", "nothing"], "'nothing' is no file and no scenario; scenarios: azure-conv"),
        (["describe", "agentic", "--rate", "2"], "closed loop: give a number of users"),
        (["describe", "poisson", "--users", "2"], "open loop: give a rate"),
        (["describe", "poisson", "--rate", "99", "--method", "thin"], "must be in (0, 1]"),
        (["convert", "poisson", "--out", "x.csv"], "--out x.csv must end in .parquet"),
        (["check", "nothing"], "unknown scenario 'nothing'"),
        (["fetch", "nothing"], "unknown public trace 'nothing'; known: azure-2023-conv"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(argv, said, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["describe"], ["describe", "poisson", "--requests", "0"]])
def test_wrong_options_are_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
