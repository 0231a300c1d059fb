"""Binding requests to recorded responses: by domain, before any policy, from streams of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpu_traces.schema import AcceptanceTraces, Origin
from sim.binding import bind, recorded_domain, stand_ins
from sim.request_table import RequestTable
from sim.scenarios import generate
from sim.workload import SLO_CLASSES

GAMMA = 3


def seed(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def traces(response_tokens=(50, 60, 70, 80, 1), domain=(0, 0, 1, 1, 1)) -> AcceptanceTraces:
    """Responses of two domains; the last has one token and so no anchor."""
    lengths = np.array(response_tokens, np.int32)
    anchors = np.append(0, np.cumsum(lengths - 1)).astype(np.int64)
    block = np.zeros((int(anchors[-1]), GAMMA), np.float32)
    return AcceptanceTraces(
        name="toy",
        origin=Origin("synthetic", "by hand"),
        gamma=GAMMA,
        domains=("chat", "code"),
        request_id=np.arange(lengths.size),
        domain=np.array(domain, np.int16),
        temperature=np.zeros(lengths.size, np.float32),
        prompt_tokens=np.full(lengths.size, 10, np.int32),
        response_tokens=lengths,
        first_anchor=anchors,
        confidence=block,
        accepted=np.zeros(int(anchors[-1]), np.int8),
        alpha=block,
        max_prob=block,
    )


def test_every_request_replays_its_own_domain_from_a_place_it_can_start():
    table, recorded = generate("azure-conv", 20_000, seed()), traces()
    workload = bind(table, recorded, seed(1))
    names = np.array([stand_ins(table, recorded)[d] for d in table.domains])[table.domain]
    replayed = np.array(recorded.domains)[recorded.domain[workload.response]]
    known = names != "any"
    assert np.array_equal(replayed[known], names[known])
    anchors = np.diff(recorded.first_anchor)[workload.response]
    assert anchors.min() >= 1
    assert np.all((workload.start >= 0) & (workload.start < anchors))
    longer = workload.output_tokens > recorded.response_tokens[workload.response]
    assert np.all(workload.start[~longer] == 0)
    share = workload.start[longer] / anchors[longer]
    assert abs(share.mean() - 0.5 + 0.5 / 65) < 0.02
    assert np.array_equal(workload.prompt_tokens, table.prompt_tokens)
    assert np.array_equal(workload.output_tokens, table.output_tokens)


def test_responses_of_a_domain_are_drawn_evenly():
    """Each of two responses: n / 2 within 4.5 standard deviations sqrt(n) / 2."""
    table = generate("azure-code", 40_000, seed())
    counts = np.bincount(bind(table, traces(), seed(2)).response, minlength=5)
    assert counts[[0, 1, 4]].sum() == 0
    assert abs(counts[2] - 20_000) < 4.5 * np.sqrt(40_000) / 2


def test_binding_of_a_request_ignores_arrivals_and_other_requests():
    table, recorded = generate("azure-conv", 5_000, seed()), traces()
    whole = bind(table, recorded, seed(3))
    first = bind(table.take(slice(800)), recorded, seed(3))
    assert np.array_equal(whole.response[:800], first.response)
    assert np.array_equal(whole.start[:800], first.start)
    faster = bind(replace(table, arrival_s=table.arrival_s / 7), recorded, seed(3))
    assert np.array_equal(whole.response, faster.response)


def test_a_changed_domain_mix_leaves_lengths_and_arrivals_and_the_others_bindings():
    table, recorded = generate("azure-conv", 5_000, seed()), traces()
    flipped = table.domain.copy()
    changed = np.arange(table.requests) % 3 == 0
    flipped[changed] = table.domains.index("code")
    before = bind(table, recorded, seed(4))
    after = bind(replace(table, domain=flipped), recorded, seed(4))
    assert np.array_equal(before.arrival_s, after.arrival_s)
    assert np.array_equal(before.response[~changed], after.response[~changed])


def test_closed_loop_sessions_reach_the_workload_in_order():
    table = generate("agentic", 3_000, seed(), users=4)
    workload = bind(table, traces(), seed())
    assert set(workload.session) == {0, 1, 2, 3}
    assert np.array_equal(workload.think_s, table.think_s.astype(float))
    assert np.all(workload.prefix_tokens < workload.prompt_tokens)
    assert np.all(workload.slo_class == SLO_CLASSES.index("agent"))


def test_a_bare_trace_draws_from_all_responses_and_is_open_loop():
    n = 4_000
    lengths = np.full(n, 20, np.int32)
    table = RequestTable("bare", Origin("measured", "x"), np.arange(n) * 1.0, lengths, lengths)
    workload = bind(table, traces(), seed())
    assert set(workload.response) == {0, 1, 2, 3}
    assert np.all(workload.session == -1)
    assert np.all(workload.prefix_tokens == 0)
    assert np.all(np.isinf(workload.patience_s))


def test_a_session_of_an_open_loop_trace_keeps_its_recorded_times():
    table = generate("agentic", 100, seed(), users=4)
    workload = bind(replace(table, think_s=None), traces(), seed())
    assert np.all(workload.session == -1)


@pytest.mark.parametrize(
    ("wanted", "recorded", "found"),
    [
        ("math", ("math", "code"), "math"),
        ("math", ("math_reasoning", "code"), "math_reasoning"),
        ("qa", ("code", "chat"), "chat"),
        ("instruction", ("code", "rag"), "rag"),
        ("math", ("code", "chat"), "any"),
    ],
)
def test_a_missing_domain_falls_back_to_a_relative_or_to_all(wanted, recorded, found):
    assert recorded_domain(wanted, recorded) == found


def test_a_bundle_with_nothing_to_replay_is_refused():
    table = generate("azure-code", 10, seed())
    with pytest.raises(ValueError, match="bundle toy has no response of two tokens or more"):
        bind(table, traces((1, 1), (0, 1)), seed())
