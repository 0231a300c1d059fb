"""The special work of engine and training in Triton, each with a plain torch reference.

CUDA tensors go to the Triton kernels, all others to the reference. On CUDA no function reads a
value on the host, so each can be captured in a CUDA graph: replay it with new contents in the same
tensors. Requests without rows and rows past the last request are padding; they cost little and
their outputs are defined below. Results of both implementations agree up to the rounding of fp32.

Notation as in ``policies.base``: R requests, gamma draft positions, V vocabulary, N = sum(l + 1)
flattened rows, H query heads, K key heads, e head size. Tensors are contiguous; logits, hidden
states, uniforms, confidences, queries and caches may be slices whose last axis is dense.
"""

from __future__ import annotations

from importlib import import_module

from torch import Tensor

from drafters.kernels.dispatch import implementation, require
from drafters.kernels.noise import uniforms
from drafters.kernels.types import (
    DraftLaw,
    Drafts,
    Schedule,
    SequentialHead,
    Verdict,
    complete_law,
)

__all__ = [
    "DraftLaw",
    "Drafts",
    "Schedule",
    "SequentialHead",
    "Verdict",
    "complete_law",
    "draft_loss",
    "markov_sample",
    "prefix_schedule",
    "ragged_attention",
    "rotate_store",
    "silu_mul",
    "uniforms",
    "verify",
]

OPERATIONS = (
    "markov_sample",
    "verify",
    "ragged_attention",
    "rotate_store",
    "silu_mul",
    "prefix_schedule",
    "draft_loss",
)
# Each package is loaded before the function of its name is defined: a first import after that
# would put the package in the function's place.
for _operation in OPERATIONS:
    import_module(f"{__name__}.{_operation}")


def markov_sample(
    logits: Tensor,
    anchors: Tensor,
    hidden: Tensor,
    head: SequentialHead,
    temperatures: Tensor,
    uniforms: Tensor,
) -> Drafts:
    """Draw gamma draft tokens per request through DSpark's sequential head, with confidences.

    ``logits`` [R, gamma, V] base logits U, bf16 or fp32; -inf forbids a token, one per row must be
    finite. ``anchors`` [R] integer tokens. ``hidden`` [R, gamma, d] what the confidence head reads.
    ``temperatures`` [R] fp32, 0 for greedy (``drafters.kernels.types``). ``uniforms`` [R, gamma] in
    [0, 1), float64 or float32, one per draw. The returned law keeps references to ``logits`` and
    ``head.w2``: verify before they change.
    """
    (requests, gamma, vocab), rank = logits.shape, head.w1.shape[1]
    size = hidden.shape[-1]
    require("logits", logits, tuple(logits.shape), strided=True)
    require("anchors", anchors, (requests,))
    require("hidden", hidden, (requests, gamma, size), strided=True)
    require("w1", head.w1, (vocab, rank))
    require("w2", head.w2, (vocab, rank))
    seen = size if head.confidence_weight.numel() == size else size + rank
    require("confidence_weight", head.confidence_weight, (seen,))
    require("temperatures", temperatures, (requests,))
    require("uniforms", uniforms, (requests, gamma), strided=True)
    run = implementation("markov_sample", logits)
    return run(logits, anchors, hidden, head, temperatures, uniforms)


def verify(
    target_logits: Tensor,
    cu_rows: Tensor,
    draft_tokens: Tensor,
    law: DraftLaw | None,
    temperatures: Tensor,
    accept_uniforms: Tensor,
    next_uniforms: Tensor,
) -> Verdict:
    """Rejection sampling of ragged draft prefixes: accepted lengths and next tokens.

    ``target_logits`` [N, V] bf16 or fp32, N >= 1. ``cu_rows`` [R + 1] int32 or int64: r owns rows
    cu[r]..cu[r+1]-1, the anchor's and those of its l[r] <= gamma drafts; no rows at all marks
    a padding request (accepted 0, next -1). ``draft_tokens`` [R, gamma] int64, not read past l[r].
    ``law``: what they were drawn from; None for drafts that were not drawn at random (n-gram, all
    greedy). ``temperatures`` [R] fp32, the ones that the drafts were drawn at; 0 accepts what
    equals the argmax. ``accept_uniforms`` [R, gamma] and ``next_uniforms`` [R] in [0, 1), float64
    or float32, independent of those that drew the drafts.
    """
    (requests, gamma), vocab = draft_tokens.shape, target_logits.shape[1]
    require("target_logits", target_logits, tuple(target_logits.shape), strided=True)
    require("draft_tokens", draft_tokens, (requests, gamma))
    require("cu_rows", cu_rows, (requests + 1,))
    require("temperatures", temperatures, (requests,))
    require("accept_uniforms", accept_uniforms, (requests, gamma), strided=True)
    require("next_uniforms", next_uniforms, (requests,))
    if law is not None:
        require("law.logits", law.logits, (requests, gamma, vocab), strided=True)
        require("law.log_normalizer", law.log_normalizer, (requests, gamma))
        require("law.log_probs", law.log_probs, (requests, gamma))
        if law.latents is not None and law.w2 is not None:
            rank = law.w2.shape[1]
            require("law.latents", law.latents, (requests, gamma, rank))
            require("law.w2", law.w2, (vocab, rank))
    run = implementation("verify", target_logits)
    return run(
        target_logits, cu_rows, draft_tokens, law, temperatures, accept_uniforms, next_uniforms
    )


def ragged_attention(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_rows: Tensor,
    context_tokens: Tensor,
    max_rows: int,
    causal: bool = True,
) -> Tensor:
    """Attention of each request's newest tokens over its paged cache -> [N, H, e]; ``causal``, or
    every token sees all of its request's.

    ``queries`` [N, H, e] bf16 or fp32, rotated. ``key_cache``, ``value_cache`` [blocks, block_size,
    K, e], same type, already holding the new tokens. ``block_tables`` [R, blocks per request]
    integer. ``cu_rows`` [R + 1] integer, as in ``verify``. ``context_tokens`` [R] integer: cached
    tokens, the new ones included. ``max_rows``: the most rows that any request may have; more are
    not computed. Scores are scaled by e ** -0.5. Rows that no request owns come out 0.
    """
    requests = block_tables.shape[0]
    (_, heads, size), kv_heads = queries.shape, key_cache.shape[2]
    require("queries", queries, tuple(queries.shape), strided=True)
    require("key_cache", key_cache, (*key_cache.shape[:3], size), strided=True)
    require("value_cache", value_cache, tuple(key_cache.shape), strided=True)
    require("block_tables", block_tables, tuple(block_tables.shape), strided=True)
    require("cu_rows", cu_rows, (requests + 1,))
    require("context_tokens", context_tokens, (requests,))
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    run = implementation("ragged_attention", queries)
    return run(
        queries, key_cache, value_cache, block_tables, cu_rows, context_tokens, max_rows, causal
    )


def rotate_store(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """Rotate new queries and keys, and store keys and values -> rotated queries [T, H, e].

    ``queries`` [T, H, e], ``keys`` and ``values`` [T, K, e] bf16 or fp32. ``cos``, ``sin`` [T, e]
    fp32, their halves equal. ``rows`` [T] integer: cache row of each token, block * block_size +
    offset; those of padding may coincide. ``key_cache``, ``value_cache`` [blocks, block_size, K, e]
    same type, written in place.
    """
    tokens, size = queries.shape[0], queries.shape[2]
    require("queries", queries, tuple(queries.shape), strided=True)
    require("keys", keys, (tokens, *key_cache.shape[2:]), strided=True)
    require("values", values, tuple(keys.shape), strided=True)
    require("cos", cos, (tokens, size))
    require("sin", sin, (tokens, size))
    require("rows", rows, (tokens,))
    require("key_cache", key_cache, tuple(key_cache.shape))
    require("value_cache", value_cache, tuple(key_cache.shape))
    run = implementation("rotate_store", queries)
    return run(queries, keys, values, cos, sin, rows, key_cache, value_cache)


def silu_mul(joint: Tensor) -> Tensor:
    """silu(gate) * up -> [T, f] of ``joint`` [T, 2 f] = [gate, up], bf16 or fp32."""
    require("joint", joint, tuple(joint.shape))
    return implementation("silu_mul", joint)(joint)


def prefix_schedule(confidences: Tensor, drafted: Tensor, budget: Tensor) -> Schedule:
    """Spend ``budget`` draft tokens on the prefixes with the highest survival.

    ``confidences`` [R, gamma] in [0, 1], any float type. ``drafted`` [R] integer: tokens that
    exist, 0..gamma. ``budget`` [1] integer on the same device, so that a captured graph takes a
    new one each step.
    """
    require("confidences", confidences, tuple(confidences.shape), strided=True)
    require("drafted", drafted, (confidences.shape[0],))
    require("budget", budget, (1,))
    return implementation("prefix_schedule", confidences)(confidences, drafted, budget)


def draft_loss(
    logits: Tensor,
    target_logits: Tensor,
    target_rows: Tensor,
    labels: Tensor,
    weights: Tensor,
    a_ce: float,
    a_l1: float,
    soft: bool,
) -> tuple[Tensor, Tensor]:
    """Cross entropy and L1 [n] fp32 of each draft row; ``logits`` become the loss's gradient.

    ``logits`` [n, V] and ``target_logits`` [P, V], bf16 or fp32. ``target_rows`` [n] integer: whose
    law a draft row is held against. ``labels`` [n] int64 tokens of the text, not read where
    ``soft`` (CE to the target's law instead). ``weights`` [n] fp32 multiply the gradient of
    a_ce CE + a_l1 L1, but not what is returned.
    """
    rows, vocab = logits.shape
    require("logits", logits, (rows, vocab), strided=True)
    require("target_logits", target_logits, (target_logits.shape[0], vocab), strided=True)
    for name, tensor in (("target_rows", target_rows), ("labels", labels), ("weights", weights)):
        require(name, tensor, (rows,))
    run = implementation("draft_loss", logits)
    return run(logits, target_logits, target_rows, labels, weights, a_ce, a_l1, soft)
