"""A live run served again in the simulator takes the same time, where the world is the same.

The live run is played by the naive engine, which shares no code with the simulator but policies.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gpu_traces.bundle import DATA
from gpu_traces.latency import linear
from gpu_traces.synthetic import synthetic_traces
from policies.export import PolicyFile, write_policy
from sim import live_speed
from sim.live_speed import LiveRun, compare, serve, workload
from tests.sim import naive
from tests.sim.worlds import workload_of

TRACES = synthetic_traces(responses=8, response_tokens=40)
BUNDLE = SimpleNamespace(
    traces=TRACES, responses=pd.DataFrame({"request_id": np.arange(TRACES.responses)})
)
WORLD = linear(2e-3, 2e-5, 4e-4, 1e-5)
GAPS_S = 0.03 * np.arange(TRACES.responses)


def live_run(policy: str, arrival_s: np.ndarray) -> LiveRun:
    work = workload_of(TRACES, arrival_s, TRACES.prompt_tokens, TRACES.response_tokens)
    done = naive.serve(TRACES, WORLD, work, policy, max_requests=5, max_step_tokens=90)
    requests = pd.DataFrame(
        {
            "request_id": [r.index for r in done],
            "rounds": [r.rounds for r in done],
            "accepted": [r.accepted for r in done],
            "prompt_tokens": TRACES.prompt_tokens,
            "output_tokens": [r.generated for r in done],
            "arrival_s": arrival_s,
            "ttft_s": [r.first_token_s - a for r, a in zip(done, arrival_s, strict=True)],
            "e2e_s": [r.finish_s - a for r, a in zip(done, arrival_s, strict=True)],
            "domain": 0,
            "temperature": TRACES.temperature,
        }
    )
    return LiveRun(
        name="live",
        policy=policy,
        max_requests=5,
        max_step_tokens=90,
        kv_tokens=0,
        max_new=int(TRACES.response_tokens.max()),
        open_loop=bool(arrival_s.any()),
        domains=TRACES.domains,
        requests=requests,
        wall_s=max(r.finish_s for r in done),
    )


@pytest.mark.parametrize("arrival_s", [np.zeros(TRACES.responses), GAPS_S], ids=["closed", "open"])
@pytest.mark.parametrize("policy", ["none", "fixed-k", "confidence", "vllm", "goodput"])
def test_the_same_world_gives_the_same_speed(policy: str, arrival_s: np.ndarray) -> None:
    run = live_run(policy, arrival_s)
    found = compare(run, serve(run, BUNDLE, WORLD, spread=False))
    assert found["error"] == pytest.approx(0, abs=1e-9)
    assert found["sim_tokens_per_round"] == pytest.approx(found["live_tokens_per_round"])
    assert found["sim_tpot_ms"] == pytest.approx(found["live_tpot_ms"])


def test_a_slower_world_is_seen() -> None:
    run = live_run("fixed-k", np.zeros(TRACES.responses))
    found = compare(run, serve(run, BUNDLE, WORLD.scaled(2, 2), spread=False))
    assert found["error"] == pytest.approx(-0.5, abs=0.02)


def test_a_run_that_was_cut_off_is_held_against_the_same_seconds() -> None:
    whole = live_run("fixed-k", np.zeros(TRACES.responses))
    steps = serve(whole, BUNDLE, WORLD, spread=False).steps
    end_s = float(steps["end_s"].iloc[len(steps) // 2]) + 1e-9
    by_then = int(steps["output_tokens"][: len(steps) // 2 + 1].sum())
    late = whole.requests["e2e_s"] > end_s
    assert late.any()
    assert not late.all()
    requests = whole.requests.copy()
    requests.loc[late, ["e2e_s", "output_tokens"]] = [np.nan, 1]
    cut = replace(whole, requests=requests, wall_s=end_s)
    assert cut.cut
    again = workload(cut, BUNDLE)
    np.testing.assert_array_equal(again.output_tokens, TRACES.response_tokens)
    found = compare(cut, serve(cut, BUNDLE, WORLD, spread=False))
    assert found["sim_tok_s"] * end_s == pytest.approx(by_then)


def test_a_request_that_was_cut_off_is_no_longer_than_it_asked_for() -> None:
    run = live_run("fixed-k", np.zeros(TRACES.responses))
    requests = run.requests.assign(e2e_s=np.nan, output_tokens=1, max_new=3)
    made = workload(replace(run, requests=requests), BUNDLE)
    np.testing.assert_array_equal(made.output_tokens, np.minimum(3, TRACES.response_tokens))


def test_a_temperature_that_was_not_recorded_is_told_in_one_line() -> None:
    run = live_run("fixed-k", np.zeros(TRACES.responses))
    requests = run.requests.assign(temperature=0.3)
    requests.loc[0, "request_id"] = 999
    with pytest.raises(ValueError, match=r"temperature 0\.3, but bundle .* holds responses of"):
        workload(replace(run, requests=requests), BUNDLE)


def test_a_policy_file_names_the_policy_of_a_run(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = live_run("fixed-k", np.zeros(TRACES.responses))
    cost = WORLD.cost_table("linear")
    path = tmp_path / "policy.json"
    write_policy(path, PolicyFile("fixed-k", {}, TRACES.gamma, cost))
    named, filed = (serve(replace(run, policy=p), BUNDLE, WORLD) for p in (run.policy, str(path)))
    pd.testing.assert_frame_equal(named.requests, filed.requests)


def test_a_prompt_that_was_not_recorded_takes_one_of_its_domain() -> None:
    run = live_run("fixed-k", np.zeros(TRACES.responses))
    other = int(np.flatnonzero(TRACES.domain != TRACES.domain[0])[0])
    code = int(TRACES.domain[other])
    requests = run.requests.assign(domain=code)
    requests.loc[0, "request_id"] = 999
    made = workload(replace(run, requests=requests), BUNDLE)
    assert int(made.domain[0]) == code
    assert made.response[1:].tolist() == list(range(1, TRACES.responses))


def test_folders_without_a_live_run_are_told_in_one_line(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert live_speed.main([str(tmp_path), "--bundle", "smollm2-dspark-cpu"]) == 2
    assert "no live runs there" in capsys.readouterr().err
    assert live_speed.main(["smollm2-dspark-cpu", "--bundle", "smollm2-dspark-cpu"]) == 2
    assert "no live run" in capsys.readouterr().err


def test_the_simulator_tells_the_speed_of_the_live_runs_that_ship(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """35 live runs on a CPU whose step times vary by a tenth: half of them within a tenth."""
    out = tmp_path / "speed.csv"
    words = [str(DATA / "live-epyc"), "--bundle", "smollm2-dspark-epyc", "--csv", str(out)]
    assert live_speed.main(words) == 0
    table = pd.read_csv(out)
    assert len(table) == 35
    assert table["error"].abs().median() < 0.1
    rounds = table["sim_tokens_per_round"] / table["live_tokens_per_round"] - 1
    assert rounds.abs().median() < 0.05
