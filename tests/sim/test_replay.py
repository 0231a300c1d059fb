"""The loop closes: a policy run again over a live run's batches makes the same decisions.

The live run is played by the naive engine, which shares no code with the replay but the policies.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gpu_traces.latency import linear
from gpu_traces.synthetic import synthetic_traces
from policies import registry
from sim.replay import Comparison, replay
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


def test_a_text_longer_than_recorded_is_left_out() -> None:
    steps, requests = live_run("fixed-k")
    requests.loc[0, "output_tokens"] = TRACES.response_tokens[0] + 5
    assert compare(steps, requests, "fixed-k").left_out == 1
