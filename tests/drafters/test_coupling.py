"""Coupled drafts: (accepted length, tokens) follow the law of standard rejection sampling."""

import numpy as np
import torch
from scipy.stats import chi2

from drafters.coupling import Coupled

V, SAMPLES = 4, 200_000


def laws(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First-order target and drafter over V tokens: p[prev] is a distribution."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.softmax(torch.randn(V, V, generator=generator), -1) for _ in range(2))


def direct(p_t: torch.Tensor, p_d: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    """Counts over (accepted length, drafted x_1, drafted x_2) of textbook rejection sampling."""
    counts = np.zeros((3, V, V))
    t, d = p_t.numpy(), p_d.numpy()
    x1 = rng.choice(V, SAMPLES, p=d[0] / d[0].sum())
    u = rng.random((2, SAMPLES))
    x2 = np.array([(d[a].cumsum() < v).sum() for a, v in zip(x1, rng.random(SAMPLES), strict=True)])
    x2 = np.minimum(x2, V - 1)
    first = u[0] < t[0, x1] / d[0, x1]
    second = first & (u[1] < t[x1, x2] / d[x1, x2])
    np.add.at(counts, (first.astype(int) + second, x1, x2), 1)
    return counts


def coupled(p_t: torch.Tensor, p_d: torch.Tensor, seed: int) -> np.ndarray:
    """The same counts from a text drawn from the target and drafts coupled to it."""
    generator = torch.Generator().manual_seed(seed)
    y1 = torch.multinomial(p_t[0].expand(SAMPLES, -1), 1, generator=generator).squeeze(1)
    y2 = torch.multinomial(p_t[y1], 1, generator=generator).squeeze(1)
    target = (p_t[0].expand(SAMPLES, -1), p_t[y1])
    uniforms = torch.rand(2, SAMPLES, 2, dtype=torch.float64, generator=generator)
    draw = Coupled(torch.stack((y1, y2), 1), target, 1.0, uniforms)
    x1 = draw(0, p_d[0].expand(SAMPLES, -1).log())
    x2 = draw(1, p_d[x1].log())
    counts = np.zeros((3, V, V))
    np.add.at(counts, (draw.accepted.numpy(), x1.numpy(), x2.numpy()), 1)
    return counts


def test_joint_law_equals_rejection_sampling() -> None:
    """Two-sample chi-square over all cells; false alarm 1e-5 per seed, seeds fixed."""
    for seed in (1, 2, 3):
        p_t, p_d = laws(seed)
        a = direct(p_t, p_d, np.random.default_rng(seed)).ravel()
        b = coupled(p_t, p_d, seed).ravel()
        used = a + b >= 10
        statistic = ((a - b)[used] ** 2 / (a + b)[used]).sum()
        assert statistic < chi2.ppf(1 - 1e-5, used.sum() - 1)
        assert b.reshape(3, -1)[1:].sum() > SAMPLES / 10  # drafts were accepted


def test_alpha_is_one_minus_total_variation_and_nothing_is_accepted_past_the_end() -> None:
    p_t, p_d = laws(4)
    truth = torch.tensor([[1, -1], [2, 3]])
    target = (p_t[0].expand(2, -1), p_t[[1, 2]])
    draw = Coupled(truth, target, 1.0, torch.zeros(2, 2, 2, dtype=torch.float64))
    draw(0, p_d[0].expand(2, -1).log())
    draw(1, p_d[[1, 2]].log())
    tv = 0.5 * (p_t[0] - p_d[0]).abs().sum()
    torch.testing.assert_close(draw.alpha[:, 0], (1 - tv).expand(2))
    assert draw.accepted.tolist() == [1, 2]  # uniforms 0 accept all there is
    assert draw.alpha[0, 1] == 0.0
