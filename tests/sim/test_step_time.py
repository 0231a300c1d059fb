"""What a step is charged for, by hand: the formula of ``gpu_traces.latency``, part by part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpu_traces.latency import linear
from policies import registry
from policies.base import Policy, VerifyPlan, VerifyState
from tests.sim.worlds import run, traces_of, workload_of

REJECTED = traces_of([[0] * 40], gamma=2)
WORLD = linear(1.0, 0.1, 0.5, gamma=2)


class Blink(Policy):
    """Verifies all it has; drafts 2 tokens for steps 0, 3, 6, ... and none for the others."""

    name = "blink"

    def plan(self, state: VerifyState) -> VerifyPlan:
        draft = np.full(state.drafted.size, 0 if (state.step + 1) % 3 else 2)
        return VerifyPlan(state.drafted.copy(), draft, adaptive=bool(state.drafted.any()))


@pytest.fixture
def step_times(monkeypatch: pytest.MonkeyPatch):
    """Seconds of the steps of one request (10 prompt tokens, 8 of output) under ``Blink``."""
    monkeypatch.setattr(registry, "create", lambda *words, **parameters: Blink())

    def of(**parts: float) -> list[float]:
        world = replace(WORLD, **parts)
        work = workload_of(REJECTED, [0.0], 10, 8)
        steps = run(REJECTED, world, work, "blink", prefill="none").steps
        assert steps["drafted_tokens"].tolist() == [2, 0, 0, 2, 0, 0, 2]
        assert steps["context_tokens"].tolist() == [10, 11, 12, 13, 14, 15, 16]
        return (steps["end_s"] - steps["start_s"]).tolist()

    return of


BASE = [1.8, 1.1, 1.1, 1.8, 1.1, 1.1, 1.8]
"""1 + 0.1 a token: three tokens and 0.5 for drafting, or the anchor alone."""


def test_drafting_and_tokens(step_times) -> None:
    assert step_times() == pytest.approx(BASE)


@pytest.mark.parametrize(
    ("part", "extra"),
    [
        ({"overhead_s": 0.3}, [0.3] * 7),
        ({"context_s": 0.01}, [0.10, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16]),
        ({"draft_context_s": 0.01}, [0.10, 0, 0, 0.13, 0, 0, 0.16]),
        ({"adaptive_s": 0.2}, [0.2, 0, 0, 0.2, 0, 0, 0.2]),
        ({"adaptive_token_s": 0.02}, [0.06, 0, 0, 0.06, 0, 0, 0.06]),
        ({"refill_s": 0.05}, [0, 0, 0, 0.10, 0, 0, 0.10]),
    ],
)
def test_each_part_is_charged_where_it_belongs(step_times, part, extra) -> None:
    """Refill: the two tokens that came while the request did not draft, when it drafts again."""
    assert step_times(**part) == pytest.approx(np.add(BASE, extra))


def test_a_mixed_step_reads_the_context_of_both() -> None:
    """A chunk of 20 after 30 cached ones beside a row with 10: 40 read, 20 + 1 + 2 tokens."""
    work = workload_of(REJECTED, [0.0, 1.0], [10, 70], [30, 3])
    world = replace(WORLD, context_s=0.001)
    steps = run(
        REJECTED, world, work, "fixed-k", parameters={"k": 2}, max_requests=2, max_step_tokens=23
    ).steps
    mixed = steps[(steps["prefill_tokens"] > 0) & (steps["decode_requests"] == 1)]
    assert mixed["prefill_tokens"].tolist() == [20, 20, 20, 10]
    own = steps["context_tokens"].loc[mixed.index] - np.array([0, 20, 40, 60])
    assert own.tolist() == [10, 11, 12, 13]
    seconds = (mixed["end_s"] - mixed["start_s"]).to_numpy()
    tokens = mixed["prefill_tokens"] + 3
    assert seconds == pytest.approx(1.5 + 0.1 * tokens + 0.001 * mixed["context_tokens"])
