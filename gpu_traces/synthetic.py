"""Traces made up from given acceptance rates: for tests, and as the body of the published sources.

Each draft position k of each block has an acceptance probability q[t, k], a Beta variable around
its mean m[k], made from a Gaussian latent z through the Beta's quantile function:

    z[t, k] = sqrt(B) * (sqrt(Q) * request + sqrt(1 - Q) * text[t]) + sqrt(1 - B) * own[t, k]

B (``block_share``) is what the positions of a block share, Q (``request_share``) what a whole
response shares, and text[t] is an AR(1) process along the response. Token k of the block is accepted
with probability q[t, k] given that all before it were, independently of all else. The confidence is
q itself when it is calibrated, or sigmoid(overconfidence * logit q).

Where blocks share difficulty, the survivors of position 1 are easy blocks, and a decoder stands more
often on hard text: the acceptance seen on a walk is not m[k]. So m[k] is solved for, on a sample
with its own fixed seed, until the walk shows the conditional acceptance that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from scipy.special import betaincinv, expit, logit, ndtr

from gpu_traces.bundle import write_bundle
from gpu_traces.calibration import EDGE, calibrate
from gpu_traces.latency import LatencyModel, linear
from gpu_traces.manifest import Manifest
from gpu_traces.schema import AcceptanceTraces, Origin
from gpu_traces.walk import marginals, walked_anchors

Floats = npt.NDArray[np.float64]
Rates = tuple[tuple[float, ...], ...]

_DEFAULT = {"math": 0.88, "code": 0.82, "chat": 0.65}
_GRID = np.linspace(-6.0, 6.0, 1025)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How acceptance probabilities vary around their mean; see the module's formula."""

    concentration: float = 3.0
    """a + b of the Beta distribution; large: every block is alike."""
    block_share: float = 0.5
    """0: positions of a block are independent; 1: they share one latent."""
    request_share: float = 0.2
    """Share of the common latent that a whole response has in common."""
    persistence: float = 0.9
    """AR(1) coefficient of the rest, per token."""


ALIKE = Difficulty(concentration=1e6, block_share=0.0, request_share=0.0, persistence=0.0)
"""Every block has the mean probability: closed forms such as (1 - a^(k+1)) / (1 - a) hold."""


def synthetic_traces(
    acceptance: Mapping[str, float | Sequence[float]] | None = None,
    *,
    gamma: int = 7,
    responses: int = 60,
    response_tokens: int = 200,
    difficulty: Difficulty | None = None,
    overconfidence: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    name: str = "synthetic",
) -> AcceptanceTraces:
    """Traces whose walked conditional acceptance per domain and position is ``acceptance``.

    ``acceptance``: domain -> one rate or gamma rates. ``responses`` per domain, log-normal lengths
    with mean ``response_tokens``. Equal arguments give equal bytes.
    """
    given = _DEFAULT if acceptance is None else acceptance
    rates = tuple(_rates(domain, value, gamma) for domain, value in given.items())
    shape = difficulty or Difficulty()
    means = solve_means(rates, shape, response_tokens)
    traces = draw_traces(tuple(given), means, shape, responses, response_tokens, seed)
    return replace(
        traces,
        name=name,
        origin=Origin("synthetic", f"gpu_traces.synthetic, seed {seed}"),
        temperature=np.full(traces.responses, temperature, dtype=np.float32),
        confidence=calibrate(traces.alpha, 1.0 / overconfidence),
    )


def _rates(domain: str, value: float | Sequence[float], gamma: int) -> tuple[float, ...]:
    rates = (float(value),) * gamma if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(rates) != gamma or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"acceptance of {domain!r} needs {gamma} rates in 0..1, got {rates}")
    return rates


@lru_cache(maxsize=64)
def solve_means(
    rates: Rates, difficulty: Difficulty, response_tokens: int, rounds: int = 8
) -> Rates:
    """Beta means [domains][gamma] for which a walk shows the conditional ``rates``."""
    target = np.array(rates)
    if difficulty.concentration >= 1e6:
        return rates
    inside = (target > 0) & (target < 1)
    goal = logit(np.clip(target, 1e-4, 1 - 1e-4))
    means = goal.copy()
    names = tuple(map(str, range(len(rates))))
    for _ in range(rounds):
        trial = np.where(inside, expit(means), target)
        sample = draw_traces(names, _tuples(trial), difficulty, 300, response_tokens, seed=2607)
        seen = marginals(sample, walked_anchors(sample))["conditional"].to_numpy()
        seen = np.nan_to_num(seen.reshape(target.shape), nan=0.5)
        means += goal - logit(np.clip(seen, 1e-4, 1 - 1e-4))
    return _tuples(np.where(inside, expit(means), target))


def _tuples(table: Floats) -> Rates:
    return tuple(tuple(float(x) for x in row) for row in table)


def draw_traces(
    domains: tuple[str, ...],
    means: Rates,
    difficulty: Difficulty,
    responses: int,
    response_tokens: int,
    seed: int,
) -> AcceptanceTraces:
    """Traces with Beta means [domains][gamma]; ``alpha`` and ``confidence`` hold q."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(domains)]))
    count, gamma = responses * len(domains), len(means[0])
    length = _lengths(rng, count, response_tokens)
    first = np.concatenate(([0], np.cumsum(length - 1)))
    domain = np.repeat(np.arange(len(domains)), responses)
    latent = _latent(rng, length, gamma, difficulty)
    rows = np.repeat(domain, length - 1)
    q = np.empty(latent.shape, dtype=np.float32)
    for code, mean in enumerate(means):
        mine = rows == code
        q[mine] = _beta(latent[mine], np.array(mean), difficulty.concentration)
    leading = np.cumprod(rng.random(q.shape, dtype=np.float32) < q, axis=1, dtype=np.int8).sum(
        axis=1
    )
    left = np.repeat(first[1:], length - 1) - np.arange(first[-1])
    guess = _top_probability(q, rng)
    return AcceptanceTraces(
        name="synthetic",
        origin=Origin("synthetic", "gpu_traces.synthetic"),
        gamma=gamma,
        domains=domains,
        request_id=np.arange(count, dtype=np.int64),
        domain=domain.astype(np.int16),
        temperature=np.ones(count, dtype=np.float32),
        prompt_tokens=_lengths(rng, count, 300).astype(np.int32),
        response_tokens=length.astype(np.int32),
        first_anchor=first.astype(np.int64),
        confidence=calibrate(q),
        accepted=np.minimum(leading, left).astype(np.int8),
        alpha=q,
        max_prob=guess,
    )


def _lengths(rng: np.random.Generator, count: int, mean: int) -> npt.NDArray[np.int64]:
    """Log-normal token counts, log-sd 0.4, at least 2."""
    drawn = rng.lognormal(np.log(mean) - 0.08, 0.4, count)
    return np.maximum(np.round(drawn), 2).astype(np.int64)


def _latent(
    rng: np.random.Generator, length: npt.NDArray[np.int64], gamma: int, d: Difficulty
) -> npt.NDArray[np.float32]:
    """z [anchors, gamma], unit variance."""
    inside = np.arange(length.max() - 1)[None, :] < (length - 1)[:, None]
    noise = rng.standard_normal(inside.shape, dtype=np.float32)
    innovation = np.sqrt(1.0 - d.persistence**2)
    noise[:, 0] /= innovation
    text = lfilter([innovation], [1.0, -d.persistence], noise, axis=1)
    request = rng.standard_normal((length.size, 1))
    shared = np.sqrt(d.request_share) * request + np.sqrt(1.0 - d.request_share) * text
    common = shared[inside].astype(np.float32)[:, None]
    own = rng.standard_normal((common.size, gamma), dtype=np.float32)
    latent: npt.NDArray[np.float32] = own * np.float32(np.sqrt(1.0 - d.block_share))
    latent += common * np.float32(np.sqrt(d.block_share))
    return latent


def _beta(latent: npt.NDArray[np.float32], mean: Floats, concentration: float) -> Floats:
    """Beta quantiles of the latents, by interpolation in a table of 1,025 points per position."""
    q = np.empty(latent.shape)
    for k, m in enumerate(mean):
        if concentration >= 1e6 or m in (0.0, 1.0):
            q[:, k] = m
            continue
        table = betaincinv(m * concentration, (1 - m) * concentration, ndtr(_GRID))
        q[:, k] = np.interp(latent[:, k], _GRID, table)
    return q


def _top_probability(
    q: npt.NDArray[np.float32], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A drafter's largest probability: logit q = 0.5 logit(top) - 0.2 (vLLM's prior), with noise."""
    odds = logit(np.clip(q, EDGE, 1 - EDGE)) + 0.2
    odds += 0.5 * rng.standard_normal(q.shape, dtype=np.float32)
    top: npt.NDArray[np.float32] = expit(2.0 * odds).astype(np.float32)
    return top


def synthetic_steps(
    model: LatencyModel, *, repetitions: int = 5, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """A ``steps`` table as a profiler would measure it in the world ``model``, with its noise."""
    rows: list[tuple[Any, ...]] = []
    captured = set(model.captured_sizes)
    for tokens in map(int, model.profile_sizes()):
        requests = min(max(1, tokens // (model.gamma + 1)), model.max_requests)
        for context in (128, 1024, 4096):
            seconds = model.verify_s[tokens] + model.context_s * requests * context
            rows.append(("verify", requests, tokens, context, 0, tokens in captured, seconds))
    grid = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if r <= model.max_requests]
    for requests in sorted({*grid, model.max_requests}):
        for length in range(1, model.gamma + 1):
            for context in (128, 1024, 4096):
                read = model.draft_context_s * requests * context
                seconds = model.draft_s[length, requests] + read
                tokens = requests * length
                rows.append(("draft", requests, tokens, context, length, False, seconds))
    rows.append(("overhead", 1, 1, 128, 0, False, max(model.overhead_s, 1e-9)))
    names = ("mode", "requests", "tokens", "context_tokens", "draft_length", "graph", "seconds")
    table = {n: np.repeat(np.array(c), repetitions) for n, c in zip(names, zip(*rows), strict=True)}
    noise = np.random.default_rng(seed).standard_normal(table["mode"].size)
    table["microseconds"] = 1e6 * table.pop("seconds") * np.exp(model.spread * noise)
    table["repetition"] = np.tile(np.arange(repetitions), len(rows))
    keep = table["microseconds"] > 0
    return {name: values[keep] for name, values in table.items()}


def synthetic_bundle(
    folder: Path | str,
    traces: AcceptanceTraces | None = None,
    model: LatencyModel | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write traces and latency samples as a bundle of kind synthetic; returns its folder.

    The traces' confidences are stored as raw ones, with no calibration to apply.
    """
    traces = traces or synthetic_traces()
    model = model or linear(2e-3, 1e-5, 5e-4, 1e-6, gamma=traces.gamma)
    manifest = Manifest(
        name=Path(folder).name,
        kind="synthetic",
        hardware="none",
        device="cpu",
        driver="",
        target="synthetic",
        target_sha256="",
        drafter="synthetic",
        drafter_sha256="",
        gamma=traces.gamma,
        temperatures=tuple(sorted({float(t) for t in traces.temperature})),
        domains=traces.domains,
        command=traces.origin.detail,
        seed=0,
        commit="",
        created="1970-01-01T00:00:00Z",
    )
    tables = {**trace_tables(traces), "steps": synthetic_steps(model)}
    write_bundle(folder, manifest, tables, force=force)
    return Path(folder)


def trace_tables(traces: AcceptanceTraces) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """The ``responses`` and ``anchors`` tables of traces."""
    count = np.diff(traces.first_anchor)
    position = np.arange(traces.anchors) - np.repeat(traces.first_anchor[:-1], count)
    names = np.array(traces.domains, dtype=object)[traces.domain]
    responses = {
        "request_id": traces.request_id,
        "prompt_key": traces.request_id.astype(str),
        "domain": names,
        "dataset": np.full(traces.responses, traces.origin.kind, dtype=object),
        "temperature": traces.temperature,
        "prompt_tokens": traces.prompt_tokens,
        "response_tokens": traces.response_tokens,
    }
    anchors = {
        "request_id": np.repeat(traces.request_id, count),
        "position": position,
        "context_tokens": np.repeat(traces.prompt_tokens, count) + position,
        "confidence": traces.confidence,
        "accepted": traces.accepted,
        "alpha": traces.alpha,
        "max_prob": traces.max_prob,
    }
    return {"responses": responses, "anchors": anchors}
