"""The batched live loop at temperature > 0: every token it emits follows the target's law.

Vocabulary of 6, blocks of 3, 1,024 requests of 201 tokens in the same batches, at temperatures 0.7,
1.0 and 1.5; half of them verify whole blocks, half lengths 0..3 that change from step to step. A
teacher-forced pass gives the law p of each token given those before it, so counts less expected
counts are sums of martingale differences: their quadratic form in the inverse of the summed
covariance diag(p) - p p' is chi-square with 5 degrees of freedom. Tokens are counted by identity
and by rank in their law.

Level 1e-5 (critical value 31), 14 tests: a false alarm in 7,000 choices of seeds, which are fixed.
If 0.5 % of the N = 204,800 tokens went from the likeliest to the third (p about 0.5 and 0.1), the
non-centrality would be N * 0.005^2 * (1 / 0.5 + 1 / 0.1) = 61; each case asserts that it is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from drafters.engine import Engine, EngineConfig
from drafters.ngram import NgramDrafter
from drafters.request import Request, Running
from drafters.target import Target
from policies.base import Policy, VerifyPlan, VerifyState
from tests.drafters.families import tiny_drafter, tiny_target
from tests.drafters.live import cost_table

VOCAB, GAMMA, REQUESTS, PROMPT, NEW = 6, 3, 1024, 4, 201
TEMPERATURES = (0.7, 1.0, 1.5)
LEVEL = 1e-5
SHIFT = 0.005


class Mixed(Policy):
    """Whole blocks in even slots, lengths 0..gamma in turn in odd ones; never looks at a draft."""

    name = "mixed"

    @dataclass(frozen=True)
    class Config:
        pass

    def plan(self, state: VerifyState) -> VerifyPlan:
        turn = (state.slots // 2 + state.step) % (GAMMA + 1)
        lengths = np.where(state.slots % 2, turn, GAMMA)
        return VerifyPlan(np.minimum(lengths, state.drafted))


def served(family: str, target: Target) -> list[Running]:
    """All requests, answered."""
    ngram = family == "ngram"
    drafter = NgramDrafter(VOCAB, GAMMA) if ngram else tiny_drafter(family, target, GAMMA)
    config = EngineConfig(max_requests=REQUESTS, max_context=PROMPT + NEW, max_step_tokens=8192)
    engine = Engine(target, drafter, Mixed(), cost_table(GAMMA), config, frozenset())
    prompts = np.random.default_rng(0).integers(0, VOCAB, (REQUESTS, PROMPT))
    for i, prompt in enumerate(prompts.tolist()):
        heat = TEMPERATURES[i % len(TEMPERATURES)]
        engine.submit(
            Request(
                request_id=i, name=str(i), prompt=tuple(prompt), max_new=NEW, temperature=heat
            )
        )  # fmt: skip
    while engine.busy:
        engine.step()
    return sorted(engine.ended, key=lambda row: row.request.request_id)


@torch.no_grad()
def laws(target: Target, rows: list[Running]) -> tuple[Tensor, Tensor]:
    """[N] tokens that rounds emitted and [N, V] the target's law of each (not the first of a
    request: prefill draws it)."""
    text = torch.tensor([row.tokens for row in rows])
    hidden = target(text, torch.arange(text.shape[1]).expand_as(text)).hidden
    heat = torch.tensor([row.request.temperature for row in rows])
    logits = target.lm_head(hidden[:, PROMPT:-1]) / heat[:, None, None]
    return text[:, PROMPT + 1 :].flatten(), torch.softmax(logits.double(), -1).flatten(0, 1)


def p_value(counts: Tensor, law: Tensor) -> float:
    """Of counts [V] under the summed laws [N, V]; the last count follows from the others."""
    excess = (counts - law.sum(0))[:-1]
    covariance = (torch.diag(law.sum(0)) - law.T @ law)[:-1, :-1]
    return float(chi2.sf(float(excess @ torch.linalg.solve(covariance, excess)), VOCAB - 1))


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dspark", "gated", "rnn", "dflash", "eagle3", "mtp", "ngram"])
def test_every_emitted_token_follows_the_targets_law(family: str, target: Target) -> None:
    rows = served(family, target)
    rounds, accepted = (sum(getattr(r, name) for r in rows) for name in ("rounds", "accepted"))
    assert sum(row.verified for row in rows) > rounds, "no drafts were verified: nothing tested"
    assert 0.05 * rounds < accepted < sum(row.verified for row in rows)
    tokens, law = laws(target, rows)
    assert len(tokens) == REQUESTS * (NEW - 1)
    assert p_value(torch.bincount(tokens, minlength=VOCAB).double(), law) > LEVEL
    ranked, order = law.sort(-1, descending=True)
    ranks = (order == tokens[:, None]).long().argmax(-1)
    counts = torch.bincount(ranks, minlength=VOCAB).double()
    assert p_value(counts, ranked) > LEVEL
    moved = SHIFT * len(tokens) * torch.tensor([-1.0, 0, 1, 0, 0, 0], dtype=torch.float64)
    assert min(p_value(counts + moved, ranked), p_value(counts - moved, ranked)) < LEVEL
