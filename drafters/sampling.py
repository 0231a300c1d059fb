"""Drawing tokens from distributions, with uniforms that belong to a request, not to a batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # tokens whose probabilities are summed before anything is accumulated
LONGEST_BLOCK = 512  # tokens among which ``greedy`` looks for the largest


def request_uniforms(seed: int, name: str, count: int) -> np.ndarray:
    """``count`` uniforms in [0, 1) fixed by (seed, name) alone, whatever runs beside it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    return np.random.Generator(np.random.Philox(key)).random(count)


def greedy(logits: Tensor) -> Tensor:
    """``logits.argmax(-1)``: the first of equal largest ones in rows [..., V].

    On a CPU in two levels, as ``draw`` below: torch finds the largest value much faster than its
    place (in bf16, on 256 rows of 49k, 9 times).
    """
    width = math.gcd(logits.shape[-1], LONGEST_BLOCK)
    if logits.device.type != "cpu" or width < BLOCK:
        return logits.argmax(-1)
    blocks = logits.unflatten(-1, (-1, width))
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    chosen = torch.take_along_dim(blocks, block.unsqueeze(-1), -2).squeeze(-2)
    return (block * width).squeeze(-1) + chosen.argmax(-1)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in fp32; temperature 0 gives a one-hot at the argmax."""
    if temperature == 0.0:
        return torch.nn.functional.one_hot(greedy(logits), logits.shape[-1]).float()
    return torch.softmax(logits.float() / temperature, dim=-1)


def sample(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw [n]: first token whose cumulative probability (rows [n, V]) exceeds u.

    Rows need not sum to 1; a token of probability 0 is never drawn from a row that has any other.
    Of a row with NaN some token.
    """
    blocks = in_blocks(probs)
    drawn = draw(block_sums(blocks), lambda block: chosen_block(blocks, block), uniforms)
    return drawn.clamp_max(probs.shape[-1] - 1)


def in_blocks(probs: Tensor) -> Tensor:
    """[n, V] as [n, blocks, BLOCK], filled up with zeros."""
    missing = -probs.shape[-1] % BLOCK
    return (F.pad(probs, (0, missing)) if missing else probs).unflatten(-1, (-1, BLOCK))


def block_sums(blocks: Tensor) -> Tensor:
    """[n, blocks] mass of each block, float64."""
    return blocks.sum(-1, dtype=torch.float64)


def chosen_block(blocks: Tensor, block: Tensor) -> Tensor:
    """[n, BLOCK] one block of each row."""
    return blocks[torch.arange(len(block), device=block.device), block]


def draw(sums: Tensor, within: Callable[[Tensor], Tensor], uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw in two levels: a block by its mass, then a token in it.

    ``sums`` [n, blocks] float64; ``within(block)`` gives the probabilities [n, BLOCK] in a block of
    each row; ``uniforms`` [n]. So nothing but a sum ever runs over the whole vocabulary.
    """
    cumulative = sums.cumsum(-1)
    at = uniforms.to(sums).unsqueeze(-1) * cumulative[:, -1:]
    block = _first_above(cumulative, at)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)
    inside = within(block.squeeze(-1)).cumsum(-1, dtype=torch.float64)
    token = _first_above(inside, (at - before).clamp_min(0.0))
    return (block * BLOCK + token).squeeze(-1)  # past the vocabulary only where sums are NaN


def _first_above(cumulative: Tensor, at: Tensor) -> Tensor:
    """[n, 1] first index whose cumulative mass exceeds ``at`` [n, 1], which rounding may have put
    at or above the whole mass: then the last index that has any mass."""
    below_all = torch.nextafter(cumulative[:, -1:], torch.zeros_like(at))
    found = torch.searchsorted(cumulative, torch.minimum(at, below_all), right=True)
    return found.clamp_max(cumulative.shape[-1] - 1)
