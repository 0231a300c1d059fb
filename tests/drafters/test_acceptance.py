"""Verification is lossless: the law of what comes out is the target's, whatever is truncated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, ncx2

from drafters.acceptance import Drafts, verify
from drafters.base import Sampler

VOCAB, GAMMA = 5, 3
BLOCKS = 200_000
FALSE_ALARM = 1e-4  # per chi-square; fixed seeds, so a failure is a change of behaviour


def laws(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and draft logits per position [GAMMA + 1, V], independent of the tokens before."""
    generator = torch.Generator().manual_seed(seed)
    target = 1.5 * torch.randn(GAMMA + 1, VOCAB, generator=generator)
    draft = target[:GAMMA] + torch.randn(GAMMA, VOCAB, generator=generator)
    return target, draft


def outcomes(
    temperature: float, lengths: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw and verify one block per entry of ``lengths``: drafts, accepted, next tokens."""
    n = len(lengths)
    target, draft = laws(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    uniforms = torch.rand(n, 2 * GAMMA + 1, generator=generator, dtype=torch.float64)
    heat = torch.full((n,), temperature)
    sampler = Sampler(heat, uniforms[:, :GAMMA])
    logits = draft.expand(n, GAMMA, VOCAB)
    tokens = torch.stack([sampler(k, logits[:, k]) for k in range(GAMMA)], 1)
    cu_rows = torch.cat((torch.zeros(1, dtype=torch.long), (1 + lengths).cumsum(0)))
    row = torch.arange(int(cu_rows[-1]))
    column = row - torch.repeat_interleave(cu_rows[:-1], 1 + lengths)
    drafts = Drafts(tokens, logits, uniforms[:, GAMMA : 2 * GAMMA], uniforms[:, -1])
    verdict = verify(target[column], cu_rows, drafts, heat)
    return tokens, verdict.accepted, verdict.next_tokens


def output_at(
    position: int, tokens: torch.Tensor, accepted: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """Tokens that the blocks which reach ``position`` put there."""
    drafted = tokens[accepted > position, position] if position < GAMMA else tokens[:0, 0]
    return torch.cat((drafted, following[accepted == position]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("length", range(GAMMA + 1))
def test_output_law_is_the_targets_at_every_length(temperature: float, length: int) -> None:
    """Chi-square of the tokens at each position against p_t, false alarm 1e-4 each.

    A block reaches a position independently of the token it then puts there, so the law at each is
    p_t itself; a truncated, fully accepted block must end in a bonus token from p_t.
    """
    lengths = torch.full((BLOCKS,), length)
    tokens, accepted, following = outcomes(temperature, lengths, seed=length)
    p_target = torch.softmax(laws(length)[0] / temperature, -1).double()
    assert int(accepted.max()) == length
    for position in range(length + 1):
        seen = output_at(position, tokens, accepted, following)
        if position == 0:
            assert len(seen) == BLOCKS
        expected = p_target[position] * len(seen)
        counts = torch.bincount(seen, minlength=VOCAB)
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert statistic < chi2.ppf(1 - FALSE_ALARM, VOCAB - 1), (position, counts / len(seen))


def test_the_samples_are_enough_to_see_a_small_bias() -> None:
    """A law off by a total variation of 0.005 is rejected by the test above: power at its size."""
    p = torch.softmax(laws(0)[0][0], -1).double()
    order = p.argsort()
    off = p.clone()
    off[order[-1]] -= 0.005
    off[order[-2]] += 0.005
    noncentrality = float((BLOCKS * (off - p) ** 2 / p).sum())
    critical = chi2.ppf(1 - FALSE_ALARM, VOCAB - 1)
    assert ncx2.sf(critical, VOCAB - 1, noncentrality) > 0.9


def test_acceptance_rate_is_one_minus_total_variation() -> None:
    """P(position 1 accepted) = 1 - TV(p_d, p_t), within 4.5 standard errors (1 in 150,000)."""
    lengths = torch.full((BLOCKS,), GAMMA)
    _, accepted, _ = outcomes(1.0, lengths, seed=9)
    target, draft = laws(9)
    gap = (torch.softmax(target[0], -1) - torch.softmax(draft[0], -1)).abs().sum() / 2
    rate = float((accepted > 0).float().mean())
    expected = 1 - float(gap)
    error = np.sqrt(expected * (1 - expected) / BLOCKS)
    assert abs(rate - expected) < 4.5 * error
    assert 0.05 < expected < 0.95


def reference(
    logits: np.ndarray, tokens: list[int], draft_logits: np.ndarray, heat: float, u: np.ndarray
) -> tuple[int, int]:
    """One request by the book: accepted drafts and next token, in float64."""

    def law(row: np.ndarray) -> np.ndarray:
        if heat == 0:
            return np.eye(VOCAB)[row.argmax()]
        mass = np.exp((row - row.max()) / heat)
        return mass / mass.sum()

    accepted, after = 0, law(logits[len(tokens)])
    for j, token in enumerate(tokens):
        p_t, p_d = law(logits[j]), law(draft_logits[j])
        if heat == 0:
            p_d = np.eye(VOCAB)[token]
        if u[j] * p_d[token] < p_t[token]:
            accepted += 1
            continue
        after = np.maximum(0, p_t - p_d)
        break
    cumulative = after.cumsum()
    following = int(np.searchsorted(cumulative, u[-1] * cumulative[-1], side="right"))
    return accepted, following


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, GAMMA), min_size=1, max_size=7), st.integers(0, 10_000))
def test_ragged_mixed_batches_agree_with_one_request_at_a_time(
    lengths: list[int], seed: int
) -> None:
    """Any lengths, greedy and sampled rows together. Catches rows of one request read for another,
    clamping at l = 0 and l = gamma, and hot rows written back to the wrong place."""
    rng = np.random.default_rng(seed)
    n, rows = len(lengths), len(lengths) + sum(lengths)
    logits = rng.normal(size=(rows, VOCAB)).astype(np.float32)
    draft_logits = rng.normal(size=(n, GAMMA, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (n, GAMMA))
    heat = rng.choice([0.0, 0.6, 1.0], n).astype(np.float32)
    uniforms = rng.random((n, GAMMA + 1))
    cu_rows = np.cumsum([0, *(1 + length for length in lengths)])
    drafts = Drafts(
        torch.tensor(tokens),
        torch.tensor(draft_logits),
        torch.tensor(uniforms[:, :GAMMA]),
        torch.tensor(uniforms[:, GAMMA]),
    )
    verdict = verify(torch.tensor(logits), torch.tensor(cu_rows), drafts, torch.tensor(heat))
    for i, length in enumerate(lengths):
        expected = reference(
            logits[cu_rows[i] : cu_rows[i + 1]],
            tokens[i, :length].tolist(),
            draft_logits[i],
            float(heat[i]),
            uniforms[i],
        )
        assert (int(verdict.accepted[i]), int(verdict.next_tokens[i])) == expected


def test_identical_laws_accept_everything() -> None:
    """p_d = p_t: u p_d < p_t always, and the next token is the bonus."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    n = 1000
    uniforms = torch.rand(n, 2, generator=torch.Generator().manual_seed(1))
    tokens = torch.multinomial(logits.softmax(-1).expand(n, -1), 1)
    drafts = Drafts(tokens, logits.expand(n, 1, VOCAB), uniforms[:, :1], uniforms[:, 1])
    rows = torch.arange(0, 2 * n + 1, 2)
    verdict = verify(logits.expand(2 * n, VOCAB), rows, drafts, torch.ones(n))
    assert verdict.accepted.tolist() == [1] * n
