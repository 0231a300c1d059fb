"""Inverse-CDF draws in two levels: the right law, and never a token of probability zero."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from drafters.sampling import BLOCK, LONGEST_BLOCK, greedy, sample

DRAWS = 200_000
LAST = float(np.nextafter(1.0, 0.0))


def law(vocabulary: int, zeros: float = 0.0) -> Tensor:
    """A skewed law over a vocabulary in which a share of the tokens is impossible."""
    generator = torch.Generator().manual_seed(vocabulary)
    probs = torch.softmax(2 * torch.randn(vocabulary, generator=generator), -1)
    return probs * (torch.rand(vocabulary, generator=generator) >= zeros)


@pytest.mark.parametrize("vocabulary", [5, BLOCK, BLOCK + 1, 1000])
def test_draws_follow_the_law(vocabulary: int) -> None:
    """Chi-square over the tokens expected 10 times and the rest; false alarm 1e-5 per size."""
    probs = law(vocabulary, zeros=0.2)
    uniforms = torch.rand(DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = sample(probs.expand(DRAWS, -1), uniforms)
    expected = (DRAWS * probs / probs.sum()).double().numpy()
    found = np.bincount(drawn.numpy(), minlength=vocabulary)
    assert found[expected == 0].sum() == 0
    often = expected >= 10
    a = np.append(found[often], found[~often].sum())
    b = np.append(expected[often], expected[~often].sum())
    used = b > 0
    assert (((a - b) ** 2)[used] / b[used]).sum() < chi2.ppf(1 - 1e-5, used.sum() - 1)


def test_a_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_uniform() -> None:
    """Against one float64 sum over the whole vocabulary; only a uniform within 1e-12 of a boundary
    may fall to the other side, and none of 2,000 is expected there (probability 2e-6)."""
    rows = 2000
    generator = torch.Generator().manual_seed(2)
    probs = torch.softmax(3 * torch.randn(rows, 700, generator=generator), -1)
    uniforms = torch.rand(rows, dtype=torch.float64, generator=generator)
    cumulative = probs.double().cumsum(-1)
    wanted = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    assert (sample(probs, uniforms) == wanted.squeeze(1)).all()


@pytest.mark.parametrize("vocabulary", [3, BLOCK, 3 * BLOCK + 7])
@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST])
def test_the_only_possible_token_is_drawn_whatever_the_uniform(
    vocabulary: int, uniform: float
) -> None:
    one_hot = torch.eye(vocabulary) * 0.3
    drawn = sample(one_hot, torch.full((vocabulary,), uniform, dtype=torch.float64))
    assert drawn.tolist() == list(range(vocabulary))


def test_the_ends_of_the_uniforms_draw_possible_tokens() -> None:
    """Also where float32 uniforms round to 1, and where tiny masses follow a large one."""
    probs = law(1000, zeros=0.5).repeat(500, 1)
    probs[:, 900:] = 0
    for row in range(500):
        probs[row, 897 - row :] = 0
        probs[row, 896 - row] = 1e-30
    for uniform in (0.0, LAST, 1.0):
        drawn = sample(probs, torch.full((500,), uniform, dtype=torch.float64))
        assert (probs.gather(1, drawn.unsqueeze(1)) > 0).all()


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK, 3 * LONGEST_BLOCK, 1187 * BLOCK])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_greedy_token_is_the_first_of_the_largest(vocabulary: int, dtype: torch.dtype) -> None:
    """Against numpy; whole numbers, so that nearly every row has ties, also between blocks."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randint(-3, 4, (2, 5, vocabulary), generator=generator).to(dtype)
    logits[0, 0] = -float("inf")
    logits[0, 1, :-1] = -float("inf")
    assert (greedy(logits).numpy() == logits.float().numpy().argmax(-1)).all()
    assert (greedy(logits[:, 2]).numpy() == logits[:, 2].float().numpy().argmax(-1)).all()
