"""``prefix_schedule`` in Triton: a draft token is verified if fewer than B tokens come before it.

``_keys`` makes one int64 per token that sorts as (survival descending, position, row): survivals
are not negative, so their fp32 bits order as integers; no two keys are equal. ``_count`` compares
every key with all others: R^2 gamma^2 integer comparisons, which for a step's few thousand tokens
cost less than a sort and need no second pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drafters.kernels.prefix_schedule.reference import cumulative_rows
from drafters.kernels.types import Schedule

BLOCK_R = 128
CHUNK = 512


def prefix_schedule(confidences: Tensor, drafted: Tensor, budget: Tensor) -> Schedule:
    """See ``drafters.kernels.prefix_schedule``."""
    requests, gamma = confidences.shape
    keys = torch.empty((requests, gamma), dtype=torch.int64, device=confidences.device)
    lengths = torch.empty((requests,), dtype=torch.int64, device=confidences.device)
    if requests:
        _keys[(triton.cdiv(requests, BLOCK_R),)](
            confidences, confidences.stride(0), drafted, keys, requests, gamma, BLOCK_R=BLOCK_R
        )
        _count[(requests,)](
            keys,
            budget,
            lengths,
            gamma,
            requests * gamma,
            GAMMA=triton.next_power_of_2(max(gamma, 1)),
            CHUNK=CHUNK,
        )
    return Schedule(lengths, cumulative_rows(lengths))


@triton.jit
def _keys(confidences, stride_r, drafted, keys, requests, gamma, BLOCK_R: tl.constexpr):
    """Sort keys of a tile of requests; -1 beyond what was drafted.

    The product runs in order, one rounding a step, so it never rises: a tree scan could.
    """
    request = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    live = request < requests
    drafts = tl.load(drafted + request, mask=live, other=0)
    survival = tl.full((BLOCK_R,), 1.0, tl.float32)
    for j in range(gamma):
        confidence = tl.load(confidences + request * stride_r + j, mask=live, other=0.0)
        survival *= confidence.to(tl.float32)
        bits = survival.to(tl.int32, bitcast=True).to(tl.int64) & 0x7FFFFFFF  # -0.0 is 0
        key = (bits << 31) | (0x7FFFFFFF - (request + j * requests))
        tl.store(keys + request * gamma + j, tl.where(j < drafts, key, -1), mask=live)


@triton.jit
def _count(keys, budget, lengths, gamma, tokens, GAMMA: tl.constexpr, CHUNK: tl.constexpr):
    """Verification length of one request: how many of its keys rank below the budget."""
    request = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, GAMMA)
    own = tl.load(keys + request * gamma + position, mask=position < gamma, other=-1)
    rank = tl.zeros((GAMMA,), tl.int32)
    for start in range(0, tokens, CHUNK):
        index = start + tl.arange(0, CHUNK)
        other = tl.load(keys + index, mask=index < tokens, other=-1)
        rank += tl.sum((other[None, :] > own[:, None]).to(tl.int32), 1)
    chosen = (own >= 0) & (rank < tl.load(budget))
    tl.store(lengths + request, tl.sum(chosen.to(tl.int64), 0))
