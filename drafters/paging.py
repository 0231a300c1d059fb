"""KV memory in blocks: who holds which, and a cache whose keys lie in them.

Admission and preemption count blocks whatever the cache is, by the simulator's rules: a request
enters when the blocks of its tokens and of one more step are free; a decoding request that finds
none for its next step takes them from the request that was admitted last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drafters import kernels
from drafters.graphs import Inputs
from drafters.layers import LayerShape, RopeTable
from drafters.request import Running
from policies.base import Ints


class BlockPool:
    """Free blocks of ``block_tokens`` tokens each; requests hold theirs in ``Running.blocks``."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks, self.block_tokens = blocks, block_tokens
        self.free = list(range(blocks))[::-1]

    def needed(self, tokens: int) -> int:
        """Blocks that hold ``tokens``."""
        return -(-tokens // self.block_tokens)

    def lacks(self, row: Running, tokens: int) -> bool:
        """Whether ``row`` holds too few blocks for so many tokens more than it has cached."""
        return len(row.blocks) * self.block_tokens < row.cached + tokens

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


@dataclass(frozen=True)
class PagedBatch:
    """T flattened tokens of S sequences whose keys lie in blocks; serves ``Target.ragged``."""

    tokens: Tensor
    """[T]"""
    positions: Tensor
    """[T] absolute position in the sequence."""
    rows: Tensor
    """[T] where in the cache, counted in tokens, each token's keys go."""
    cu_rows: Tensor
    """[S + 1] first token of each sequence; tokens after the last are padding."""
    context_tokens: Tensor
    """[S] cached tokens of each sequence, the new ones included."""
    tables: Tensor
    """[S, blocks per sequence]"""
    widest: int
    """Most tokens of one sequence."""


class PassInputs:
    """What a pass over at most ``tokens`` tokens of ``sequences`` sequences reads.

    Sequences of more than ``widest`` tokens appear as several: the keys of all tokens are stored
    before any is attended to, so that a part sees those before it. Attention is then launched for
    ``widest`` rows of each, whatever is in the batch.
    """

    def __init__(
        self, tokens: int, sequences: int, widest: int, cache: PagedCache, device: torch.device
    ) -> None:
        self._cache, self.widest = cache, widest
        self._inputs = Inputs(
            {
                "tokens": (tokens,),
                "sources": (tokens,),
                "positions": (tokens,),
                "rows": (tokens,),
                "cu_rows": (sequences + 1,),
                "context_tokens": (sequences,),
                "tables": (sequences, cache.table_width),
            },
            device,
        )
        self._inputs.host["rows"][:] = cache.spare_row
        self._inputs.send()
        at = dict(self._inputs.at)
        self._sources = at.pop("sources")
        self.batch = PagedBatch(**at, widest=widest)

    def batch_with(self, drawn: Tensor) -> PagedBatch:
        """The batch with the tokens that ``sources`` say taken from ``drawn``."""
        return replace(self.batch, tokens=self.batch.tokens + drawn[self._sources])

    def fill(
        self,
        rows: Sequence[Running],
        parts: Sequence[Sequence[int]],
        sources: Sequence[int] = (),
    ) -> None:
        """Send the new tokens ``parts`` of each row, the first at its position ``cached``.

        ``sources``, of the first tokens: where in ``batch_with``'s ``drawn`` a token lies that the
        host does not know yet and gives as 0; 0 where it knows.
        """
        host, size = self._inputs.host, self._cache.block_tokens
        starts = np.array([row.cached for row in rows])
        counts = np.array([len(part) for part in parts])
        tables = self._cache.tables(rows)
        pieces = -(-counts // self.widest)
        owner = np.repeat(np.arange(len(rows)), pieces)
        offset = (np.arange(len(owner)) - (pieces.cumsum() - pieces)[owner]) * self.widest
        count = np.minimum(counts[owner] - offset, self.widest)
        ends = count.cumsum()
        n, total = len(owner), int(ends[-1])
        start = starts[owner] + offset
        positions = np.arange(total) + np.repeat(start - (ends - count), count)
        blocks = tables[np.repeat(owner, count), positions // size]
        host["tokens"][:total] = [token for part in parts for token in part]
        host["tokens"][total:] = 0
        host["sources"][: len(sources)] = sources
        host["sources"][len(sources) :] = 0
        host["positions"][:total] = positions
        host["positions"][total:] = 0
        host["rows"][:total] = blocks * size + positions % size
        host["rows"][total:] = self._cache.spare_row
        host["cu_rows"][0] = 0
        host["cu_rows"][1 : n + 1] = ends
        host["cu_rows"][n + 1 :] = total
        host["context_tokens"][:n] = start + count
        host["context_tokens"][n:] = 0
        host["tables"][:n] = tables[owner]
        self._inputs.send()


class PagedCache:
    """Keys and values [layers, blocks + 1, block_tokens, K, e], found through block tables.

    Serves ``Target.ragged`` as ``KVCache`` does; attention is ``kernels.ragged_attention``. The
    last block takes what padding writes.
    """

    def __init__(
        self,
        layers: int,
        shape: LayerShape,
        pool: BlockPool,
        slots: int,
        capacity: int,
        like: Tensor,
    ) -> None:
        size = (layers, pool.blocks + 1, pool.block_tokens, shape.num_kv_heads, shape.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.block_tokens = pool.block_tokens
        self.spare_row = pool.blocks * pool.block_tokens
        self.table_width = pool.needed(capacity)
        self._rope = RopeTable(shape, self.table_width * self.block_tokens, like.device)
        self._tables = np.zeros((slots, self.table_width), dtype=np.int64)
        self.forget()

    def forget(self) -> None:
        """Drop what is known of the slots' blocks, before another engine uses the cache."""
        self._known: list[tuple[int, int]] = [(-1, -1)] * len(self._tables)

    def tables(self, rows: Sequence[Running]) -> Ints:
        """[n, blocks per sequence] the blocks of each row."""
        for row in rows:
            seen = (row.number, len(row.blocks))
            if self._known[row.slot] != seen:
                self._known[row.slot] = seen
                self._tables[row.slot, : len(row.blocks)] = row.blocks
        return self._tables[[row.slot for row in rows]]

    def prepare(self, batch: PagedBatch) -> Tensor:
        """See ``drafters.target.RaggedCache``: fp32 rotary tables [2, T, e]."""
        return self._rope(batch.positions)

    def attend(
        self,
        layer: int,
        batch: PagedBatch,
        heads: tuple[Tensor, Tensor, Tensor],
        prepared: Tensor,
    ) -> Tensor:
        """See ``drafters.target.RaggedCache``."""
        keys, values = self.keys[layer], self.values[layer]
        queries = kernels.rotate_store(*heads, *prepared, batch.rows, keys, values)
        out = kernels.ragged_attention(
            queries, keys, values, batch.tables, batch.cu_rows, batch.context_tokens, batch.widest
        )
        return out.flatten(1)

    def move(self, source: int, destination: int, length: int) -> None:
        """Nothing to copy: a sequence's keys stay where its blocks are."""

    def wipe(self, slot: int) -> None:
        """Nothing to do: attention never reads past a sequence's own tokens."""
