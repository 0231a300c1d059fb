"""A block drafter's inference in the fewest launches, as a captured draft runs it.

The same computation as ``BlockDrafter.extend`` and its block pass, on a cache that the kernels read
as blocks of one slot each: keys are rotated and stored by ``rotate_store``, and attention follows
the true lengths instead of a mask over the whole capacity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drafters import kernels
from drafters.layers import LayerShape, RopeTable

if TYPE_CHECKING:
    from drafters.block import BlockDrafter


class RowCache:
    """Context keys and values [layers, slots, capacity, K, e]."""

    def __init__(
        self, layers: int, shape: LayerShape, slots: int, capacity: int, like: Tensor
    ) -> None:
        size = (layers, slots, capacity, shape.num_kv_heads, shape.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.slots, self.capacity = torch.arange(slots, device=like.device), capacity
        self.rope = RopeTable(shape, capacity, like.device)

    def rows(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Cache row of each of ``positions`` [n, q] of ``slots`` [n], flat."""
        return (slots.unsqueeze(1) * self.capacity + positions).flatten()

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        for store in (self.keys, self.values):
            store[:, destination, :length] = store[:, source, :length]


def extend(
    drafter: BlockDrafter, state: RowCache, features: Tensor, positions: Tensor, slots: Tensor
) -> None:
    """Project features [n, q, m * d] at ``positions`` [n, q] into the context cache."""
    context = drafter.context(features).flatten(0, 1)
    rope, rows = state.rope(positions.flatten()), state.rows(slots, positions)
    for i, layer in enumerate(drafter.layers):
        k, v = layer.self_attn.project_context(context)
        kernels.rotate_store(k[:, :0], k, v, *rope, rows, state.keys[i], state.values[i])


def block_hidden(
    drafter: BlockDrafter, state: RowCache, anchors: Tensor, positions: Tensor
) -> Tensor:
    """Hidden states [n, gamma, d] of the blocks at ``anchors`` [n], slots 0 .. n - 1."""
    n, gamma = len(anchors), drafter.gamma
    slots, offsets = state.slots[:n], torch.arange(gamma, device=anchors.device)
    at = positions.unsqueeze(1) + offsets
    cu_rows = torch.arange(n + 1, device=anchors.device) * gamma
    rope, rows, seen = state.rope(at.flatten()), state.rows(slots, at), positions + gamma
    x = drafter.block_inputs(anchors).flatten(0, 1)
    for i, layer in enumerate(drafter.layers):
        heads = layer.self_attn.project(layer.input_layernorm(x))
        keys, values = state.keys[i], state.values[i]
        queries = kernels.rotate_store(*heads, *rope, rows, keys, values)
        attended = kernels.ragged_attention(
            queries, keys, values, slots.unsqueeze(1), cu_rows, seen, gamma, causal=False
        )
        layer.finish_in_place(x, attended.flatten(1))
    return drafter.norm(x).unflatten(0, (n, gamma))
