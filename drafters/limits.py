"""Limits of the live engine, what is made for them, and which requests they refuse."""

from __future__ import annotations

from dataclasses import dataclass

from drafters.base import Drafter
from drafters.paging import BlockPool
from drafters.request import Request
from drafters.runner import Runner
from drafters.target import Target


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


def block_pool(config: EngineConfig, gamma: int) -> BlockPool:
    """Blocks for ``kv_tokens``, or for all that may run at once."""
    tokens = config.max_requests * (_capacity(config, gamma) + config.block_tokens)
    return BlockPool((config.kv_tokens or tokens) // config.block_tokens, config.block_tokens)


def _capacity(config: EngineConfig, gamma: int) -> int:
    """Positions of one request, with room for a block past its end."""
    return config.max_context + gamma + 1


def make_runner(
    target: Target, drafter: Drafter | None, gamma: int, config: EngineConfig
) -> Runner:
    """What runs an engine's device work, for these limits."""
    paged = config.paged or config.graphs
    return Runner(
        target, drafter, gamma, config.max_requests, _capacity(config, gamma),
        block_pool(config, gamma) if paged else None, config.graphs,
    )  # fmt: skip


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
    if tokens > config.max_context:
        return f"{size} are more than max_context {config.max_context}"
    if pool.needed(tokens + 1 + gamma) > pool.blocks:
        return f"{size} exceed kv_tokens"
    return ""
