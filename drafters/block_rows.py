"""A block drafter's inference in the fewest launches, as a captured draft runs it.

The same computation as ``BlockDrafter.extend`` and its block pass, on a cache that the kernels read
as blocks of one slot each: keys are rotated and stored by ``rotate_store``, and attention follows
the true lengths instead of a mask over the whole capacity. All index arithmetic is the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drafters import kernels
from drafters.base import Proposal, Sampler
from drafters.graphs import Arrays
from drafters.layers import LayerShape, RopeTable, keys_values_of_all
from drafters.request import Running
from policies.base import Ints

if TYPE_CHECKING:
    from drafters.block import BlockDrafter


class RowCache:
    """Context keys and values [layers, slots, capacity, K, e]."""

    def __init__(
        self, layers: int, shape: LayerShape, slots: int, capacity: int, like: Tensor
    ) -> None:
        size = (layers, slots, capacity, shape.num_kv_heads, shape.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.rope = RopeTable(shape, capacity, like.device)
        rows = np.arange(layers * slots) * capacity
        self.starts = rows.reshape(layers, slots)
        """[layers, slots] row of each slot's position 0 in the cache of all layers."""

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        for store in (self.keys, self.values):
            store[:, destination, :length] = store[:, source, :length]

    def wipe(self, slot: int) -> None:
        """Set a slot to zeros."""
        self.keys[:, slot] = self.values[:, slot] = 0


def extend(
    drafter: BlockDrafter, state: RowCache, features: Tensor, positions: Tensor, slots: Tensor
) -> None:
    """Project features [n, q, m * d] at ``positions`` [n, q] into the context cache."""
    starts = torch.from_numpy(state.starts).to(positions.device)
    rows = (starts[:, slots].unsqueeze(-1) + positions).flatten()
    rope = state.rope(positions.flatten().repeat(len(starts)))
    store_context(drafter, state, features.flatten(0, 1), rows, rope)


def store_context(
    drafter: BlockDrafter, state: RowCache, features: Tensor, rows: Tensor, rope: Tensor
) -> None:
    """Project features [T, m * d] into the context cache of every layer.

    ``rows`` [layers * T]: the place of each token in the cache of all layers, layer after layer;
    ``rope`` [2, layers * T, e]: its cosine and sine.
    """
    k, v = keys_values_of_all(drafter.attentions, drafter.context(features))
    keys, values = state.keys.flatten(0, 1), state.values.flatten(0, 1)
    kernels.rotate_store(k[:, :0], k, v, *rope, rows, keys, values)


class BlockFeed:
    """See ``drafters.captured.Feed``: what a captured draft of ``requests`` blocks reads."""

    def __init__(self, drafter: BlockDrafter, state: RowCache, requests: int) -> None:
        self._drafter, self._state, device = drafter, state, state.keys.device
        n, gamma = requests, drafter.gamma
        self._starts = state.starts[:, :n, None]
        self._context = (len(self._starts), n, gamma + 1)
        self._tokens = len(self._starts) * n * (gamma + 1)
        self._offsets = np.arange(gamma)
        self.shapes = {
            "blocks": (n, gamma),
            "turns": (self._tokens + n * gamma,),
            "context_rows": self._context,
            "block_rows": (n, gamma),
            "seen": (n,),
        }
        self._tables = torch.arange(n, device=device).unsqueeze(1)
        self._cu_rows = torch.arange(n + 1, device=device) * gamma

    def fill(self, host: Arrays, rows: Sequence[Running], positions: Ints, places: Ints) -> None:
        """See ``drafters.captured.Feed``."""
        turns, block = host["turns"], positions[:, None] + self._offsets
        turns[: self._tokens].reshape(self._context)[:] = places
        turns[self._tokens :] = block.ravel()
        np.add(self._starts, places, out=host["context_rows"])
        np.add(self._starts[0], block, out=host["block_rows"])
        np.add(positions, len(self._offsets), out=host["seen"])
        host["blocks"][:] = self._drafter.config.mask_token_id
        host["blocks"][:, 0] = host["anchors"]

    def draft(
        self, at: dict[str, Tensor], features: Tensor, length: int, sampler: Sampler
    ) -> Proposal:
        """See ``drafters.captured.Feed``."""
        rope = self._state.rope(at["turns"])
        context, block = rope[:, : self._tokens], rope[:, self._tokens :]
        rows = at["context_rows"].flatten()
        store_context(self._drafter, self._state, features.flatten(0, 1), rows, context)
        hidden = self._hidden(at["blocks"], at["block_rows"].flatten(), at["seen"], block)
        return self._drafter.drawn(hidden[:, :length].contiguous(), at["anchors"], sampler)

    def _hidden(self, tokens: Tensor, rows: Tensor, seen: Tensor, rope: Tensor) -> Tensor:
        """Hidden states [n, gamma, d] of the blocks ``tokens`` [n, gamma].

        ``rows`` [n * gamma]: their places in a layer's cache; ``seen`` [n]: tokens that a block
        sees, its own included; ``rope`` [2, n * gamma, e]: cosine and sine.
        """
        drafter, gamma = self._drafter, tokens.shape[1]
        x = drafter.embed_tokens(tokens.flatten())
        for layer, keys, values in zip(
            drafter.layers, self._state.keys, self._state.values, strict=True
        ):
            heads = layer.self_attn.project(layer.input_layernorm(x))
            queries = kernels.rotate_store(*heads, *rope, rows, keys, values)
            attended = kernels.ragged_attention(
                queries, keys, values, self._tables, self._cu_rows, seen, gamma, causal=False
            )
            layer.finish_in_place(x, attended.flatten(1))
        return drafter.norm(x).unflatten(0, tokens.shape)
