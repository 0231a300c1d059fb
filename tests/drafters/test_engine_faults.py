"""What goes wrong in one request stays in it: logits that are no numbers; and closed loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from drafters.engine import NOT_FINITE, Engine, EngineConfig
from drafters.judging import best_tokens
from drafters.request import Request
from drafters.sampling import sample
from drafters.target import Target
from policies.registry import create
from tests.drafters.families import tiny_drafter, tiny_target
from tests.drafters.live import cost_table

VOCAB, POISONED = 97, 7
GAMMA = 4
CLEAN = [tuple(range(20, 40)), (9, 8, 1), (4, 4, 5, 6), (11, 12), (3, 1, 2, 8, 9)]
HURT = [(1, POISONED, *range(40, 50)), (POISONED,), (5, 6, 2, *range(50, 60), POISONED)]


def poisoned(device: str) -> Target:
    """A target with one token whose embedding is NaN; sampled text may hold it too."""
    target = tiny_target(VOCAB).to(device)
    with torch.no_grad():
        target.embed_tokens.weight[POISONED] = float("nan")
    return target


def texts(
    target: Target, asked: list[tuple[int, ...]], temperature: float, **limits: object
) -> dict[str, tuple[list[int], str]]:
    """(output, reason) by the prompt's own name, whatever was asked beside it."""
    config = EngineConfig(**{"max_requests": 2, "max_context": 64, **limits})  # type: ignore[arg-type]
    drafter = tiny_drafter("dspark", target, GAMMA).to(target.norm.weight.device)
    policy = create("fixed-k", GAMMA, k=GAMMA)
    engine = Engine(target, drafter, policy, cost_table(GAMMA), config)
    for i, prompt in enumerate(asked):
        engine.submit(
            Request(
                request_id=i, name=str(prompt), prompt=prompt, max_new=12, temperature=temperature
            )
        )
    while engine.busy:
        engine.step()
    assert sum(row.verified for row in engine.ended) > 0
    return {row.request.name: (row.output, row.reason) for row in engine.ended}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("limits", [{}, {"paged": True}, {"graphs": True}])
def test_logits_that_are_no_numbers_fail_their_request_alone(
    temperature: float, limits: dict[str, bool], device: str
) -> None:
    """Slots and blocks of failed requests are used again, by clean ones that must not notice."""
    target = poisoned(device)
    mixed = [CLEAN[0], *itertools.chain(*zip(HURT, CLEAN[1:], strict=False)), CLEAN[-1]]
    found, alone = texts(target, mixed, temperature, **limits), texts(target, CLEAN, temperature)
    for prompt in CLEAN:
        assert found[str(prompt)] == alone[str(prompt)]
    assert sum(found[str(prompt)][1] == "" for prompt in CLEAN) >= 3
    for prompt in HURT:
        assert found[str(prompt)] == ([], NOT_FINITE)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_request_that_turns_bad_keeps_what_it_had(temperature: float, device: str) -> None:
    """The output head breaks down after some steps: both end with a reason and their text."""
    target = tiny_target(VOCAB).to(device)
    config = EngineConfig(max_requests=2, max_context=64)
    engine = Engine(target, None, create("none", GAMMA), cost_table(GAMMA), config)
    for i, prompt in enumerate(CLEAN[:2]):
        engine.submit(
            Request(request_id=i, name=str(i), prompt=prompt, max_new=12, temperature=temperature)
        )
    for _ in range(4):
        engine.step()
    target.norm.weight[0] = float("inf")
    while engine.busy:
        engine.step()
    assert [row.reason for row in engine.ended] == [NOT_FINITE] * 2
    assert [row.generated for row in engine.ended] == [4, 4]


def test_best_tokens_tell_rows_without_numbers(device: str) -> None:
    logits = torch.zeros(5, 4, device=device)
    logits[0, 2], logits[1, 3], logits[2, 1] = 1.0, float("nan"), float("inf")
    logits[3, 0], logits[4] = -float("inf"), -float("inf")
    assert best_tokens(logits).tolist() == [2, -1, -1, 1, -1]


def test_a_draw_from_no_law_is_some_token() -> None:
    probs = torch.full((2, VOCAB), float("nan"))
    drawn = sample(probs, torch.tensor([0.2, 0.99]))
    assert ((drawn >= 0) & (drawn < VOCAB)).all()


def test_a_closed_loop_s_requests_arrive_when_there_is_room() -> None:
    """By a clock that counts looks: nobody queues, and times count from the own arrival."""
    target, ticks = tiny_target(VOCAB), itertools.count()
    policy = create("fixed-k", GAMMA, k=2)
    config = EngineConfig(max_requests=2, max_context=64)
    engine = Engine(
        target, tiny_drafter("dspark", target, GAMMA), policy, cost_table(GAMMA), config,
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    for i, prompt in enumerate(CLEAN):
        engine.submit(
            Request(request_id=i, name=str(i), prompt=prompt, max_new=4 + i, arrival_s=None)
        )
    queued = []
    engine.start()
    while engine.busy:
        engine.step()
        queued.append(len(engine.line.waiting))
        assert len(engine.line.rows) <= 2
    rows = sorted(engine.ended, key=lambda row: row.request.request_id)
    arrived = [row.arrived_s for row in rows]
    assert max(queued) == 0
    assert arrived[0] == arrived[1] < arrived[2] <= arrived[3]
    ends = sorted(row.finish_s for row in rows)
    assert all(a > e for a, e in zip(arrived[2:], ends, strict=False))
    waits = {row.first_token_s - row.arrived_s for row in rows}
    assert len(waits) == 1  # one step each, whatever went before
