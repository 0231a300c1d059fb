"""Where a target keeps keys and values: slots of fixed capacity, and what any store answers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from drafters.batch import Batch, Group
from drafters.layers import LayerShape, attend, attention_bias, rotate


class Prepared(NamedTuple):
    """A batch as every layer's attention over a ``KVCache`` needs it."""

    rope: tuple[Tensor, Tensor]
    """Tables [T, e], fp32."""
    biases: list[Tensor]
    """``attention_bias`` of each group."""


class RaggedCache(Protocol):
    """Where a ragged pass keeps keys and values: ``KVCache``, or blocks (``drafters.paging``)."""

    def prepare(self, batch: Any) -> Any:
        """What ``attend`` needs to know of a batch, the same in every layer."""

    def attend(
        self, layer: int, batch: Any, heads: tuple[Tensor, Tensor, Tensor], prepared: Any
    ) -> Tensor:
        """Rotate and store new keys and values, and attend to all that is stored -> [T, H * e].

        ``heads``: new queries [T, H, e], keys and values [T, K, e].
        """


class KVCache:
    """Keys and values of every layer in slots of fixed capacity; a slot holds one sequence.

    Rolling back costs nothing: attention looks only at positions up to the query's own, so a
    rejected token is simply overwritten.
    """

    def __init__(
        self, layers: int, shape: LayerShape, slots: int, capacity: int, like: Tensor
    ) -> None:
        self._shape = shape
        size = (layers, slots, shape.num_kv_heads, capacity, shape.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.slots, self.capacity = slots, capacity
        self.whole = False
        """Attend to all of the capacity, masked: shapes that a graph can keep."""

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [n, K, q, e] at ``positions`` [n, q] of ``slots`` [n]."""
        where = (slots.unsqueeze(1), slice(None), positions)
        self.keys[layer][where] = k.transpose(1, 2)
        self.values[layer][where] = v.transpose(1, 2)

    def prepare(self, batch: Batch) -> Prepared:
        """See ``RaggedCache``."""
        shape, dtype = self._shape, self.keys.dtype
        rope = shape.rope.table(batch.positions, shape.head_dim)
        return Prepared(rope, [attention_bias(g.mask, shape, dtype) for g in batch.groups])

    def attend(
        self, layer: int, batch: Batch, heads: tuple[Tensor, Tensor, Tensor], prepared: Prepared
    ) -> Tensor:
        """See ``RaggedCache``."""
        q, k, v = heads
        where = (batch.slots, slice(None), batch.positions)
        self.keys[layer][where] = rotate(k, prepared.rope)
        self.values[layer][where] = v
        q = rotate(q, prepared.rope)
        groups = zip(batch.groups, prepared.biases, strict=True)
        return torch.cat([self._attend_group(layer, group, q, bias) for group, bias in groups])

    def _attend_group(self, layer: int, group: Group, q: Tensor, bias: Tensor) -> Tensor:
        rows = q[group.tokens]
        n, width = group.mask.shape[:2]
        rows = rows.unflatten(0, (n, width)) if group.padded is None else rows[group.padded]
        k = self.keys[layer, group.slots, :, : group.span]
        v = self.values[layer, group.slots, :, : group.span]
        out = attend(rows.transpose(1, 2), k, v, bias).flatten(0, 1)
        return out if group.flat is None else out[group.flat]

    def reach(self, positions: Tensor, beyond: int) -> int:
        """Cached positions that queries up to ``beyond`` past ``positions`` may look at."""
        return self.capacity if self.whole else int(positions.max()) + beyond

    def broadcast(self, length: int) -> None:
        """Copy the first ``length`` positions of slot 0 to every slot."""
        for store in (self.keys, self.values):
            store[:, 1:, :, :length] = store[:, :1, :, :length]

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        for store in (self.keys, self.values):
            store[:, destination, :, :length] = store[:, source, :, :length]

    def wipe(self, slot: int) -> None:
        """Set a slot to zeros."""
        self.keys[:, slot] = self.values[:, slot] = 0
