"""Every family through the real acceptance code: the output law is the target's own.

Vocabulary of 6, blocks of 3. All 216 in-block prefixes are drafted once by the family's own
``propose``, and judged once by the target; 600,000 rounds are then drawn from these tables with
the live loop's ``Sampler`` and judged by ``verify`` in one ragged batch: random verification
lengths 0..3, random temperatures 0.7, 1.0, 1.5 (200,000 rounds each).

Chi-square at level 1e-5 per test (147 tests: a false alarm in 680 choices of seeds, which are
fixed). A law off by a total variation of 0.005 in the first token has a non-centrality of about
200,000 * 2 * 0.005^2 / p = 60 for tokens of p = 1/6, against a critical value of 31 (5 degrees of
freedom); ``test_sees_small_errors`` shows that it is seen.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from drafters.acceptance import Drafts, verify
from drafters.base import Sampler
from drafters.ngram import NgramDrafter
from drafters.sampling import sample
from drafters.target import Target
from tests.drafters.families import features_of, tiny_drafter, tiny_target

VOCAB, GAMMA, ROUNDS = 6, 3, 600_000
TEMPERATURES = (0.7, 1.0, 1.5)
CONTEXT = torch.tensor([1, 4, 2, 3, 1, 4, 0, 2, 1, 4])  # the last is the anchor
LEVEL = 1e-5


class Tables(NamedTuple):
    """Logits for every in-block prefix; prefix x1 x2 x3 is row 36 x1 + 6 x2 + x3."""

    draft: Tensor
    """[216, 3, V]; position k looks at the first k tokens."""
    target: Tensor
    """[216, 4, V]"""


@torch.no_grad()
def tables(family: str, target: Target) -> Tables:
    count = VOCAB**GAMMA
    codes = torch.arange(count)
    blocks = torch.stack([codes // VOCAB ** (GAMMA - 1 - k) % VOCAB for k in range(GAMMA)], 1)
    length = len(CONTEXT) - 1
    if family == "ngram":
        drafter, features = NgramDrafter(VOCAB, GAMMA, longest=2, shortest=1), None
    else:
        drafter = tiny_drafter(family, target, GAMMA)
        features = features_of(target, drafter, CONTEXT[None, :length])
    state = drafter.new_state(count, length + 1)
    slot, where = torch.zeros(1, dtype=torch.long), torch.arange(length)[None]
    drafter.extend(state, CONTEXT[None, :length], features, where, slot)
    state.broadcast(length)
    anchors, at = CONTEXT[-1].expand(count), torch.full((count,), length)
    draft = drafter.propose(state, anchors, at, GAMMA, lambda k, _: blocks[:, k]).logits
    text = torch.cat((CONTEXT.expand(count, -1), blocks), 1)
    hidden = target(text, torch.arange(text.shape[1]).expand(count, -1)).hidden
    return Tables(draft, target.lm_head(hidden[:, length:]))


class Played(NamedTuple):
    tokens: Tensor
    """[N, 3] first output tokens; those after the round are the target's own draws."""
    lengths: Tensor
    accepted: Tensor
    temperature: Tensor


def play(table: Tables, residual: bool = True) -> Played:
    """ROUNDS rounds; ``residual`` False breaks the correction on purpose."""
    generator = torch.Generator().manual_seed(0)
    uniform = lambda *size: torch.rand(*size, generator=generator)  # noqa: E731
    which = torch.randint(len(TEMPERATURES), (ROUNDS,), generator=generator)
    heat = torch.tensor(TEMPERATURES)[which]
    lengths = torch.randint(GAMMA + 1, (ROUNDS,), generator=generator)
    draw = Sampler(heat, uniform(ROUNDS, GAMMA))
    code, drafts, laws = torch.zeros(ROUNDS, dtype=torch.long), [], []
    for k in range(GAMMA):
        laws.append(table.draft[code, k])
        drafts.append(draw(k, laws[-1]))
        code = code + drafts[-1] * VOCAB ** (GAMMA - 1 - k)
    tokens = torch.stack(drafts, 1)
    cu_rows = torch.nn.functional.pad((lengths + 1).cumsum(0), (1, 0))
    exists = torch.arange(GAMMA + 1) <= lengths.unsqueeze(1)
    rows = table.target[code][exists]
    made = Drafts(tokens, torch.stack(laws, 1), uniform(ROUNDS, GAMMA), uniform(ROUNDS))
    verdict = verify(rows, cu_rows, made, heat)
    next_tokens = verdict.next_tokens
    if not residual:
        law = torch.softmax(table.target[code, verdict.accepted] / heat.unsqueeze(1), -1)
        next_tokens = sample(law, made.next_uniforms)
    out, code = tokens.clone(), torch.zeros(ROUNDS, dtype=torch.long)
    for k in range(GAMMA):
        law = torch.softmax(table.target[code, k] / heat.unsqueeze(1), -1)
        own = sample(law, uniform(ROUNDS))
        out[:, k] = torch.where(verdict.accepted == k, next_tokens, out[:, k])
        out[:, k] = torch.where(verdict.accepted < k, own, out[:, k])
        code = code + out[:, k] * VOCAB ** (GAMMA - 1 - k)
    return Played(out, lengths, verdict.accepted, heat)


def p_value(table: Tables, tokens: Tensor, heat: float, many: int) -> float:
    """Chi-square of the joint law of the first ``many`` tokens; rare cells are pooled."""
    law = torch.ones(1, dtype=torch.float64)
    for k in range(many):
        rows = torch.arange(VOCAB**k) * VOCAB ** (GAMMA - k)
        step = torch.softmax(table.target[rows, k].double() / heat, -1)
        law = (law.unsqueeze(1) * step).flatten()
    code = sum(tokens[:, k] * VOCAB ** (many - 1 - k) for k in range(many))
    seen = torch.bincount(code, minlength=VOCAB**many).double()
    expected = law * len(tokens)
    rare = expected < 5
    cells = [torch.cat((x[~rare], x[rare].sum(0, keepdim=True))) for x in (seen, expected)]
    if cells[1][-1] == 0:
        cells = [x[:-1] for x in cells]
    return float(chisquare(cells[0].numpy(), cells[1].numpy(), sum_check=False).pvalue)


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB)


@pytest.mark.parametrize("family", ["dspark", "gated", "rnn", "dflash", "eagle3", "mtp", "ngram"])
def test_output_law_is_the_targets(family: str, target: Target) -> None:
    table = tables(family, target)
    out = play(table)
    drafted = out.lengths > 0
    assert out.accepted[drafted].float().mean() > 0.1, "no drafts were accepted: nothing tested"
    assert (out.accepted[drafted] < out.lengths[drafted]).float().mean() > 0.05
    for heat in TEMPERATURES:
        here = out.temperature == heat
        for many in (1, 2, 3):
            assert p_value(table, out.tokens[here], heat, many) > LEVEL
        for length in range(GAMMA + 1):
            rows = here & (out.lengths == length)
            assert p_value(table, out.tokens[rows], heat, 1) > LEVEL


def test_sees_small_errors(target: Target) -> None:
    """Without the residual correction, and with 0.5 % of the first tokens replaced."""
    table = tables("dspark", target)
    broken = play(table, residual=False)
    here = broken.temperature == 1.0
    assert p_value(table, broken.tokens[here], 1.0, 1) < LEVEL
    out = play(table)
    tokens = out.tokens[out.temperature == 1.0].clone()
    common = tokens[:, 0].bincount().argmax()
    other = (common + 1) % VOCAB
    swap = (tokens[:, 0] == common).nonzero().squeeze(1)[: round(0.005 * len(tokens))]
    tokens[swap, 0] = other
    assert p_value(table, tokens, 1.0, 1) < LEVEL
