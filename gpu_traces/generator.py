"""The generator behind synthetic and published traces.

Each draft position k of each block has an acceptance probability q[t, k], a Beta variable around
its mean m[k], made from a Gaussian latent z through the Beta's quantile function:

    z[t, k] = sqrt(B) * (sqrt(Q) * request + sqrt(1 - Q) * text[t]) + sqrt(1 - B) * own[t, k]

B (``block_share``) is what the positions of a block share, Q (``request_share``) what a whole
response shares (stratified, so that a few hundred stand for a domain), and text[t] is an AR(1)
process along the response. Token k of the block is accepted with probability q[t, k] given that all
before it were, independently of all else.

Where blocks share difficulty, the survivors of position 1 are easy blocks, and a decoder stands
more often on hard text: the acceptance seen on a walk is not m[k]. So m[k] is solved for, on a
sample with its own fixed seed, until a walk shows the conditional acceptance that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from scipy.special import betaincinv, expit, logit, ndtr, ndtri

from gpu_traces.calibration import EDGE, calibrate
from gpu_traces.schema import AcceptanceTraces, Origin
from gpu_traces.walk import walk

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Rates = tuple[tuple[float, ...], ...]

_KNOTS = np.linspace(-6.0, 6.0, 257)
_CELLS = 8192
"""Latents are kept as one of this many equal cells of -6..6, so that a quantile is a look-up."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How acceptance probabilities vary around their mean; see the module's formula.

    The first two defaults are fitted to the DSpark paper's Fig. 6 (docs/published.md); nothing
    published fixes the last two.
    """

    concentration: float = 3.2
    """a + b of the Beta distribution; large: every block is alike."""
    block_share: float = 0.7
    """0: positions of a block are independent; 1: they share one latent."""
    request_share: float = 0.2
    """Share of the common latent that a whole response has in common."""
    persistence: float = 0.7
    """AR(1) coefficient of the rest, per token."""


UNIFORM = 1e6
"""From this concentration on, q is its mean exactly."""

ALIKE = Difficulty(concentration=UNIFORM, block_share=0.0, request_share=0.0, persistence=0.0)
"""Every block has the mean probability: closed forms such as (1 - a^(k+1)) / (1 - a) hold."""


@lru_cache(maxsize=64)
def solve_means(rates: Rates, difficulty: Difficulty, rounds: int = 6) -> Rates:
    """Beta means [domains][gamma] for which a walk shows the conditional ``rates``."""
    if difficulty.concentration >= UNIFORM:
        return rates
    return tuple(_solve_domain(np.array(domain), difficulty, rounds) for domain in rates)


def _solve_domain(rates: Floats, difficulty: Difficulty, rounds: int) -> tuple[float, ...]:
    noise = _draw_noise(np.random.default_rng(2607), 2000, 120, rates.size, difficulty)
    inside = (rates > 0) & (rates < 1)
    goal = logit(np.clip(rates, 1e-4, 1 - 1e-4))
    odds = goal.copy()
    for _ in range(rounds):
        q = _beta(noise.cell, np.where(inside, expit(odds), rates), difficulty.concentration)
        rows = walk(noise.first, _leading(noise, q), rates.size)
        odds += goal - logit(np.clip(_expected_conditional(q[rows]), 1e-4, 1 - 1e-4))
    return tuple(float(x) for x in np.where(inside, expit(odds), rates))


def _expected_conditional(q: Singles) -> Floats:
    """P(position k accepted | all before accepted) over blocks [n, gamma], without drawing them."""
    survival = np.cumprod(q, axis=1)
    reached = np.concatenate((np.ones((len(q), 1)), survival[:, :-1]), axis=1)
    rate: Floats = survival.sum(axis=0) / np.maximum(reached.sum(axis=0), 1e-12)
    return rate


class _Noise(NamedTuple):
    """Everything random about n responses with A anchors; acceptance is a function of it and q."""

    length: Ints
    """[n] response tokens."""
    first: Ints
    """[n + 1] first anchor row."""
    cell: npt.NDArray[np.uint16]
    """[A, gamma] cell of the latent z."""
    uniform: Singles
    """[A, gamma]"""


def _draw_noise(
    rng: np.random.Generator, responses: int, tokens: int, gamma: int, difficulty: Difficulty
) -> _Noise:
    length = _lengths(rng, responses, tokens)
    cell = _latent(rng, length, gamma, difficulty)
    first = np.concatenate(([0], np.cumsum(length - 1)))
    return _Noise(length, first, cell, rng.random(cell.shape, dtype=np.float32))


def _leading(noise: _Noise, q: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """[A] accepted draft tokens of each block, cut at the end of its response."""
    leading = np.cumprod(noise.uniform < q, axis=1, dtype=np.int8).sum(axis=1, dtype=np.int8)
    left = np.repeat(noise.first[1:], np.diff(noise.first)) - np.arange(noise.first[-1])
    accepted: npt.NDArray[np.int8] = np.minimum(leading, left).astype(np.int8)
    return accepted


def draw_traces(
    domains: tuple[str, ...],
    means: Rates,
    difficulty: Difficulty,
    responses: int,
    response_tokens: int,
    seed: int,
) -> AcceptanceTraces:
    """Traces with Beta means [domains][gamma]; ``alpha`` and ``confidence`` hold q.

    Each domain has its own random stream: adding one leaves the others as they were.
    """
    gamma, count = len(means[0]), responses * len(domains)
    streams = np.random.SeedSequence(seed).spawn(len(domains))
    parts = []
    for stream, mean in zip(streams, means, strict=True):
        rng = np.random.default_rng(stream)
        noise = _draw_noise(rng, responses, response_tokens, gamma, difficulty)
        q = _beta(noise.cell, np.array(mean), difficulty.concentration)
        prompt = _lengths(rng, responses, 300)
        parts.append((noise.length, q, _leading(noise, q), _top_probability(q, rng), prompt))
    length, q, accepted, top, prompt = (np.concatenate(part) for part in zip(*parts, strict=True))
    return AcceptanceTraces(
        name="synthetic",
        origin=Origin("synthetic", f"gpu_traces.synthetic, seed {seed}"),
        gamma=gamma,
        domains=domains,
        request_id=np.arange(count, dtype=np.int64),
        domain=np.repeat(np.arange(len(domains), dtype=np.int16), responses),
        temperature=np.ones(count, dtype=np.float32),
        prompt_tokens=prompt.astype(np.int32),
        response_tokens=length.astype(np.int32),
        first_anchor=np.concatenate(([0], np.cumsum(length - 1))),
        confidence=calibrate(q),
        accepted=accepted,
        alpha=q,
        max_prob=top,
    )


def _lengths(rng: np.random.Generator, count: int, mean: int) -> Ints:
    """Log-normal token counts, log-sd 0.4, at least 2."""
    drawn = rng.lognormal(np.log(mean) - 0.08, 0.4, count)
    return np.maximum(np.round(drawn), 2).astype(np.int64)


def _latent(
    rng: np.random.Generator, length: Ints, gamma: int, d: Difficulty
) -> npt.NDArray[np.uint16]:
    """Cells [anchors, gamma] of z, which has unit variance."""
    inside = np.arange(length.max() - 1)[None, :] < (length - 1)[:, None]
    noise = rng.standard_normal(inside.shape, dtype=np.float32)
    innovation = np.sqrt(1.0 - d.persistence**2)
    noise[:, 0] /= innovation
    text = lfilter([innovation], [1.0, -d.persistence], noise, axis=1)
    request = ndtri((rng.permutation(length.size) + 0.5) / length.size)[:, None]
    shared = np.sqrt(d.request_share) * request + np.sqrt(1.0 - d.request_share) * text
    common = shared[inside].astype(np.float32)[:, None]
    z = rng.standard_normal((common.size, gamma), dtype=np.float32)
    z *= np.float32(np.sqrt(1.0 - d.block_share))
    z += common * np.float32(np.sqrt(d.block_share))
    cells: npt.NDArray[np.uint16]
    cells = np.clip((z + 6.0) * (_CELLS / 12.0), 0, _CELLS - 1).astype(np.uint16)
    return cells


def _beta(cell: npt.NDArray[np.uint16], mean: Floats, concentration: float) -> Singles:
    """q [A, gamma]: Beta quantiles of the latents."""
    q = np.empty(cell.shape, dtype=np.float32)
    middle = (np.arange(_CELLS) + 0.5) * (12.0 / _CELLS) - 6.0
    for k, m in enumerate(mean):
        if concentration >= UNIFORM or m in (0.0, 1.0):
            q[:, k] = m
            continue
        knots = betaincinv(m * concentration, (1 - m) * concentration, ndtr(_KNOTS))
        q[:, k] = np.interp(middle, _KNOTS, knots).astype(np.float32)[cell[:, k]]
    return q


def _top_probability(
    q: npt.NDArray[np.float32], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Largest draft probability: logit q = 0.5 logit(top) - 0.2 (vLLM's prior), with noise."""
    odds = logit(np.clip(q, EDGE, 1 - EDGE)) + 0.2
    odds += 0.5 * rng.standard_normal(q.shape, dtype=np.float32)
    top: npt.NDArray[np.float32] = expit(2.0 * odds).astype(np.float32)
    return top
