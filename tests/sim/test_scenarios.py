"""Scenarios against the published figures of the traces they stand for, and their own promises.

The figures are in ``sim/data/published_traffic.csv``; how far generated traffic may be from each
follows from rules by kind (``sim.traffic_rules``), not from figure to figure.
"""

from __future__ import annotations

import numpy as np
import pytest

from sim.request_table import RequestTable
from sim.scenarios import SCENARIOS, generate, scenario
from sim.traffic_check import compare
from sim.workload import SLO_CLASSES

OPEN = [name for name in SCENARIOS if name != "agentic"]
COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens", "session", "think_s")
CODES = ("client", "domain", "slo_class")


def seed(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def same(a: RequestTable, b: RequestTable, columns=COLUMNS + CODES) -> bool:
    pairs = [(getattr(a, c), getattr(b, c)) for c in columns]
    return all(x is y is None or np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", SCENARIOS)
def test_generated_statistics_match_the_published_ones(name):
    rows = compare(name)
    off = rows[~rows["within"]]
    assert len(rows) >= 1
    assert off.empty, off[["statistic", "published", "generated", "tolerance"]].to_string()


@pytest.mark.parametrize("name", SCENARIOS)
def test_same_seed_same_bytes_and_more_requests_only_append(name):
    table = generate(name, 3_000, seed())
    assert same(table, generate(name, 3_000, seed()))
    assert same(table.take(slice(700)), generate(name, 700, seed()))
    assert not same(table, generate(name, 3_000, seed(1)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_request_is_possible_and_says_where_it_comes_from(name):
    table = generate(name, 5_000, seed())
    assert table.requests == 5_000
    assert table.prompt_tokens.min() >= 1
    assert table.output_tokens.min() >= 1
    assert table.origin.kind == "synthetic"
    assert name in table.origin.detail
    assert set(np.unique(table.domain)) <= set(range(len(table.domains)))
    assert set(np.unique(table.slo_class)) <= set(range(len(SLO_CLASSES)))
    if table.prefix_tokens is not None:
        assert np.all((table.prefix_tokens >= 0) & (table.prefix_tokens <= table.prompt_tokens))


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize(("method", "factor"), [("time_scale", 3.0), ("thin", 0.5)])
def test_another_rate_leaves_the_requests_of_one_stream_alone(name, method, factor):
    """Lengths, domains and classes have seeds of their own; of several, the next may differ."""
    rate = scenario(name).rate_rps
    plain, moved = (
        generate(name, 2_000, seed()),
        generate(name, 2_000, seed(), factor * rate, method),
    )
    assert moved.notes == (f"{method} {factor:g}",)
    assert not np.array_equal(plain.arrival_s, moved.arrival_s)
    if len(plain.clients) == 1 or method == "time_scale":
        assert same(plain, moved, COLUMNS[1:] + CODES)


@pytest.mark.parametrize("method", ["time_scale", "thin", "superpose"])
def test_the_rate_asked_for_is_reached(method):
    target = 2.0 if method == "thin" else 12.0
    table = generate("poisson", 50_000, seed(), target, method)
    assert abs(table.rate_rps / target - 1) < 4.5 / np.sqrt(table.requests)


def test_a_week_can_begin_at_any_hour():
    """Monday 19:00 UTC has several times the code traffic of Monday 08:00 (digitised curve)."""
    code = {}
    for hour in (8, 19):
        table = generate("azure-week", 20_000, seed(), start_s=hour * 3600.0)
        own = table.arrival_s[table.client == table.clients.index("code")]
        code[hour] = np.count_nonzero(own < 200.0)
    assert code[19] > 3 * code[8]


def test_reasoning_clients_keep_their_own_lengths_and_main_domain():
    table = generate("reasoning", 200_000, seed())
    heavy, others = (
        table.output_tokens[table.client == table.clients.index(name)].mean()
        for name in ("client-8", "others")
    )
    assert heavy > 5 * others
    first = np.bincount(table.domain[table.client == 0], minlength=len(table.domains))
    assert first[table.domains.index("math")] / first.sum() == pytest.approx(0.7, abs=0.02)


def test_agentic_prompts_repeat_the_previous_one_of_their_user():
    table = generate("agentic", 20_000, seed(), users=5)
    assert np.unique(table.session).size == 5
    for user in range(5):
        rows = np.flatnonzero(table.session == user)
        before, prefix = table.prompt_tokens[rows[:-1]], table.prefix_tokens[rows[1:]]
        whole_blocks = prefix == before // 64 * 64
        assert whole_blocks.mean() > 0.9
        assert np.all(np.diff(table.arrival_s[rows]) >= table.think_s[rows[1:]] - 1e-3)


def test_agentic_users_do_not_disturb_each_other():
    """A user's first conversation is the same whether few or many users follow."""
    few, many = (
        generate("agentic", 2_000, seed(), users=4),
        generate("agentic", 4_000, seed(), users=8),
    )
    assert same(
        few.take(np.flatnonzero(few.session == 0)[:3]),
        many.take(np.flatnonzero(many.session == 0)[:3]),
        ("prompt_tokens", "prefix_tokens"),
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "azure"}, "unknown scenario 'azure'; known: azure-conv, azure-code"),
        ({"name": "poisson", "requests": 0}, "requests=0; at least 1"),
        ({"name": "poisson", "users": 3}, "open loop: give a rate"),
        ({"name": "agentic", "rate_rps": 3.0}, "closed loop: give a number of users"),
        ({"name": "agentic", "users": 0}, "users=0; a closed loop needs at least 1"),
        ({"name": "poisson", "rate_rps": -1.0}, "time_scale factor is -0.18"),
        ({"name": "poisson", "rate_rps": 9.0, "method": "thin"}, r"thin factor .* in \(0, 1\]"),
    ],
)
def test_impossible_requests_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        generate(**({"requests": 10, "seed": seed()} | arguments))
