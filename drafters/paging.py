"""KV memory in blocks: who holds which, and a cache whose keys lie in them.

Admission and preemption count blocks whatever the cache is, by the simulator's rules: a request
enters when the blocks of its tokens and of one more step are free; a decoding request that finds
none for its next step takes them from the request that was admitted last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafters import kernels
from drafters.batch import Batch
from drafters.layers import LayerShape
from drafters.request import Running


class BlockPool:
    """Free blocks of ``block_tokens`` tokens each; requests hold theirs in ``Running.blocks``."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks, self.block_tokens = blocks, block_tokens
        self.free = list(range(blocks))[::-1]

    def needed(self, tokens: int) -> int:
        """Blocks that hold ``tokens``."""
        return -(-tokens // self.block_tokens)

    def grow(self, row: Running, tokens: int) -> bool:
        """Give ``row`` blocks for ``tokens`` in all; False, and none given, if too few are free."""
        missing = self.needed(tokens) - len(row.blocks)
        if missing > len(self.free):
            return False
        row.blocks += [self.free.pop() for _ in range(missing)]
        return True

    def release(self, row: Running) -> None:
        """Take back all that ``row`` holds."""
        self.free += reversed(row.blocks)
        row.blocks = []


class PagedCache:
    """Keys and values [layers, blocks, block_tokens, K, e], found through block tables.

    Serves ``Target.ragged`` as ``KVCache`` does; attention is ``kernels.ragged_attention``.
    """

    def __init__(
        self, layers: int, shape: LayerShape, blocks: int, block_tokens: int, like: Tensor
    ) -> None:
        size = (layers, blocks, block_tokens, shape.num_kv_heads, shape.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.block_tokens = block_tokens
        self.tables = torch.zeros((0, 1), dtype=torch.long, device=like.device)

    def show(self, rows: list[Running]) -> None:
        """Take the block tables of the rows of the next batch, in its order."""
        width = max((len(row.blocks) for row in rows), default=1)
        padded = [row.blocks + [0] * (width - len(row.blocks)) for row in rows]
        self.tables = torch.tensor(padded, dtype=torch.long, device=self.tables.device)

    def store(self, layer: int, batch: Batch, k: Tensor, v: Tensor) -> None:
        """Store k and v [K, T, e] of a ragged batch."""
        block = self.tables[batch.slots, batch.positions // self.block_tokens]
        offset = batch.positions % self.block_tokens
        self.keys[layer, block, offset] = k.transpose(0, 1)
        self.values[layer, block, offset] = v.transpose(0, 1)

    def attend(self, layer: int, batch: Batch, q: Tensor) -> Tensor:
        """Attention of a ragged batch over what is stored: q [H, T, e] -> [T, H * e]."""
        out = kernels.ragged_attention(
            q.transpose(0, 1).contiguous(), self.keys[layer], self.values[layer], self.tables,
            batch.cu_rows, batch.context_tokens, batch.widest,
        )  # fmt: skip
        return out.flatten(1)

    def move(self, source: int, destination: int, length: int) -> None:
        """Nothing to copy: a sequence's keys stay where its blocks are."""
