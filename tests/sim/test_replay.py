"""The loop closes: a policy run again over a live run's batches makes the same decisions.

The live run is played by the naive engine, which shares no code with the replay but the policies.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gpu_traces.latency import linear
from gpu_traces.synthetic import synthetic_traces
from policies import registry
from policies.export import PolicyFile, write_policy
from sim.replay import Comparison, compare_live, replay
from tests.sim import naive
from tests.sim.worlds import workload_of

TRACES = synthetic_traces(responses=8, response_tokens=40)
WORLD = linear(2e-3, 2e-5, 4e-4, 1e-5)
POLICIES = (
    "none",
    "fixed-k",
    "mtp-1",
    "threshold",
    "confidence",
    "hardware-aware",
    "vllm",
    "goodput",
)


def live_run(policy: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """live_steps and live_requests of a closed loop over every response."""
    n = TRACES.responses
    work = workload_of(TRACES, np.zeros(n), TRACES.prompt_tokens, TRACES.response_tokens)
    log: list[dict] = []
    done = naive.serve(TRACES, WORLD, work, policy, max_requests=5, max_step_tokens=90, log=log)
    requests = pd.DataFrame(
        {
            "request_id": [r.index for r in done],
            "rounds": [r.rounds for r in done],
            "verified": [r.verified for r in done],
            "accepted": [r.accepted for r in done],
            "output_tokens": [r.generated for r in done],
        }
    )
    return pd.DataFrame(log), requests


def compare(steps: pd.DataFrame, requests: pd.DataFrame, policy: str) -> Comparison:
    made = registry.create(policy, TRACES.gamma)
    same = {i: i for i in range(TRACES.responses)}
    return replay(TRACES, steps, requests, same, made, WORLD.cost_table(made.cost_rule))


@pytest.mark.parametrize("policy", POLICIES)
def test_replay_equals_the_live_run(policy: str) -> None:
    found = compare(*live_run(policy), policy)
    assert (found.equal, found.different, found.left_out) == (TRACES.responses, 0, 0)
    assert found.requests["sim_rounds"].sum() > TRACES.responses


def test_another_policy_is_found_out() -> None:
    found = compare(*live_run("confidence"), "fixed-k")
    assert found.different > TRACES.responses / 2
    assert len(found.document()["differing"]) == found.different


def test_sampled_requests_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They agree with a replay in law, not one for one; with none left there is no verdict."""
    steps, requests = live_run("fixed-k")
    responses = pd.DataFrame({"request_id": np.arange(TRACES.responses)})
    bundle = SimpleNamespace(name="b", traces=TRACES, responses=responses)
    monkeypatch.setattr("sim.replay.read_bundle", lambda name: bundle)
    cost = WORLD.cost_table("linear")
    write_policy(tmp_path / "policy.json", PolicyFile("fixed-k", {}, TRACES.gamma, cost))
    steps.to_parquet(tmp_path / "live_steps.parquet")
    sampled = requests["request_id"] % 2
    requests.assign(temperature=sampled).to_parquet(tmp_path / "live_requests.parquet")
    found = compare_live(tmp_path, "b", str(tmp_path / "policy.json"))
    assert (found.equal, found.left_out) == ((sampled == 0).sum(), sampled.sum())
    requests.assign(temperature=0.7).to_parquet(tmp_path / "live_requests.parquet")
    with pytest.raises(ValueError, match="none of its prompts is in bundle b at temperature 0"):
        compare_live(tmp_path, "b", str(tmp_path / "policy.json"))
    longer = requests.assign(output_tokens=10**6)
    longer.to_parquet(tmp_path / "live_requests.parquet")
    with pytest.raises(ValueError, match="all longer than those in bundle b"):
        compare_live(tmp_path, "b", str(tmp_path / "policy.json"))


def test_a_text_longer_than_recorded_is_left_out() -> None:
    steps, requests = live_run("fixed-k")
    requests.loc[0, "output_tokens"] = TRACES.response_tokens[0] + 5
    assert compare(steps, requests, "fixed-k").left_out == 1
