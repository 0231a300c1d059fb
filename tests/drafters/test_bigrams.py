"""A Markov head's start is the best low-rank picture of the target's own bigram logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drafters.bigrams import SHARE, Bigrams, ask_bigrams, factors, start_from_bigrams
from drafters.corpus import Sequence
from drafters.heads import MarkovHead
from tests.drafters.families import tiny_target

VOCAB = 40
TARGET = tiny_target(VOCAB)
WIDTH = TARGET.shape.hidden_size


def bigrams() -> Bigrams:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(30, (60,), generator=generator) for _ in range(4)]
    return ask_bigrams(TARGET, [Sequence(torch.cat((torch.tensor([5]), r)), 1) for r in rows])


def shifts(given: Bigrams) -> Tensor:
    """[K, V] bigram logits less what is common to all previous and to all next tokens."""
    logits = given.hidden @ TARGET.lm_head.weight.T
    weight = given.frequency[given.tokens]
    logits = logits - (weight / weight.sum()) @ logits
    return logits - (logits @ given.frequency)[:, None]


def test_tokens_are_the_responses_own_and_states_are_the_targets() -> None:
    given = bigrams()
    assert sorted(given.tokens.tolist()) == list(range(30))
    assert float(given.frequency.sum()) == pytest.approx(1)
    assert bool((given.frequency > 0).all())
    pair = torch.tensor([[5, int(given.tokens[3])]])
    alone = TARGET(pair, torch.tensor([[0, 1]])).hidden[0, 1]
    torch.testing.assert_close(given.hidden[3], alone)


def test_at_full_rank_the_head_is_half_the_shift() -> None:
    given = bigrams()
    head = MarkovHead(VOCAB, WIDTH + 8, WIDTH, "vanilla")
    torch.nn.init.zeros_(head.markov_w2.weight)
    start_from_bigrams(head, TARGET, given)
    made = head.markov_w1.weight @ head.markov_w2.weight.T
    torch.testing.assert_close(made[given.tokens], SHARE * shifts(given), atol=1e-4, rtol=1e-3)
    unseen = torch.ones(VOCAB, dtype=torch.bool)
    unseen[given.tokens] = False
    assert not made[unseen].any()


def test_low_rank_is_the_best_one_in_the_weighted_norm() -> None:
    """Eckart and Young: the error is the root of the squares of the singular values left out."""
    given, rank = bigrams(), 3
    weight = given.frequency[given.tokens]
    scale = ((weight / weight.sum()).sqrt()[:, None], given.frequency.sqrt())
    whole = scale[0] * shifts(given) * scale[1]
    w1, w2 = factors(given, TARGET.lm_head.weight, rank)
    error = whole - scale[0] * (w1 @ w2.T) * scale[1]
    left_out = torch.linalg.svdvals(whole)[rank:].square().sum().sqrt()
    assert float(error.norm()) == pytest.approx(float(left_out), rel=1e-3)
    assert float(error.norm()) < 0.9 * float(whole.norm())


def test_an_rnn_head_starts_with_the_same_leaning() -> None:
    """tanh of the same rows: each previous token shifts each next one in the vanilla direction."""
    given = bigrams()
    vanilla, rnn = (MarkovHead(VOCAB, 4, WIDTH, kind) for kind in ("vanilla", "rnn"))
    for head in (vanilla, rnn):
        start_from_bigrams(head, TARGET, given)
    previous = given.tokens
    z, _, _ = rnn.latent(torch.randn(len(previous), WIDTH), previous, None)
    torch.testing.assert_close(z, torch.tanh(vanilla.markov_w1.weight[previous]))
