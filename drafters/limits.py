"""Limits of the live engine, what is made for them, and which requests they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from drafters.base import Drafter
from drafters.errors import UserError
from drafters.kernels.types import COLDEST
from drafters.paging import BlockPool
from drafters.request import Request
from drafters.runner import Runner
from drafters.target import Target
from policies.base import Policy

NO_MEMORY = ("allocate memory", "out of memory", "overflow")
"""Words of torch's errors for a tensor that is too large."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of the engine; those of the simulator's ``EngineConfig`` by the same names."""

    max_requests: int = 8
    """Requests that run at once."""
    max_step_tokens: int = 2048
    """Target tokens of one step: anchors, drafts and prompt chunks."""
    max_context: int = 2048
    """Most tokens of one request, prompt and output."""
    kv_tokens: int = 0
    """Tokens that the target's cache holds, all requests together; 0: all that may run at once."""
    block_tokens: int = 16
    """KV cache block size."""
    paged: bool = False
    """Keep keys in blocks, read by ``kernels.ragged_attention``; False: in a slot per request."""
    graphs: bool = False
    """Run passes and drafts as captured CUDA graphs, with keys in blocks; off CUDA as the same
    calls, padded alike."""
    seed: int = 0
    """Seed of every draw."""


def check_live(policy: Policy, sampled: bool = False) -> None:
    """UserError for a policy that no live loop can serve; ``sampled``: or that would bias text."""
    if policy.analysis_only:
        raise UserError(f"policy {policy.name!r} needs the true acceptance; simulate it instead")
    if sampled and policy.anticipating:
        raise UserError(
            f"policy {policy.name!r} sizes on current confidences, which biases sampled text; give"
            " temperature 0 to all prompts, another policy, or drafters.decode --allow-anticipating"
        )


def check(config: EngineConfig, gamma: int, target: Target) -> None:
    """Refuse, as the simulator does, a step budget that full blocks of all requests exceed; and
    requests longer than what the target was made for."""
    if config.max_context > target.max_positions:
        raise UserError(
            f"max context {config.max_context} is more than the target's {target.max_positions}"
            " positions; lower --max-context"
        )
    least = config.max_requests * (1 + gamma)
    if config.max_step_tokens < least:
        raise UserError(
            f"max step tokens {config.max_step_tokens} must be at least max requests x (1 + gamma)"
            f" = {config.max_requests} x {1 + gamma} = {least}; raise --max-step-tokens or lower"
            " --concurrency"
        )


def block_pool(config: EngineConfig, gamma: int) -> BlockPool:
    """Blocks for ``kv_tokens``, or for all that may run at once."""
    tokens = config.max_requests * (_capacity(config, gamma) + config.block_tokens)
    with in_memory(too_large(config)):
        return BlockPool((config.kv_tokens or tokens) // config.block_tokens, config.block_tokens)


@contextmanager
def in_memory(wanted: str) -> Iterator[None]:
    """A UserError says that what is ``wanted``, and how to want less, where memory cannot hold what
    is made inside."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(t in str(error) for t in NO_MEMORY):
            raise
        raise UserError(wanted) from None


def too_large(config: EngineConfig) -> str:
    """What ``in_memory`` says of an engine's own limits."""
    return (
        f"{config.max_requests} requests of up to {config.max_context} tokens do not fit into"
        " memory; lower --concurrency, --max-context or --kv-tokens"
    )


def _capacity(config: EngineConfig, gamma: int) -> int:
    """Positions of one request, with room for a block past its end."""
    return config.max_context + gamma + 1


def make_runner(
    target: Target, drafter: Drafter | None, gamma: int, config: EngineConfig
) -> Runner:
    """What runs an engine's device work, for these limits."""
    pool = block_pool(config, gamma) if config.paged or config.graphs else None
    with in_memory(too_large(config)):
        return Runner(
            target, drafter, gamma, config.max_requests, _capacity(config, gamma), pool,
            config.graphs,
        )  # fmt: skip


def effective(request: Request) -> Request:
    """The request as it is served: a temperature below ``COLDEST`` acts as 0."""
    return replace(request, temperature=0.0) if 0 < request.temperature < COLDEST else request


def refusal(
    request: Request, vocab_size: int, config: EngineConfig, pool: BlockPool, gamma: int
) -> str:
    """Why a request can never run within these limits; empty if it can."""
    size = f"{len(request.prompt)} prompt + {request.max_new} new tokens"
    tokens = len(request.prompt) + request.max_new
    bad = [t for t in request.prompt if not 0 <= t < vocab_size]
    if bad:
        return f"token id {bad[0]} is outside the vocabulary 0..{vocab_size - 1}"
    if not request.prompt or request.max_new < 1:
        return "needs a prompt of at least 1 token and max_new of at least 1"
    if not 0 <= request.temperature < math.inf:
        return f"temperature {request.temperature:g} must be a finite number, 0 or more"
    if request.arrival_s is not None and not math.isfinite(request.arrival_s):
        return f"arrival_s {request.arrival_s:g} must be a finite number of seconds"
    if tokens > config.max_context:
        return f"{size} are more than max_context {config.max_context}"
    if pool.needed(tokens + 1 + gamma) > pool.blocks:
        held = pool.blocks * pool.block_tokens
        return f"{size} and a block of {1 + gamma} exceed kv_tokens, which hold {held}"
    return ""
