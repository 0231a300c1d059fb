"""Attention of flattened, variable-length verification tokens over a paged KV cache.

Request r owns query rows cu[r]..cu[r+1]-1, its newest tokens, already written to the cache: row i
of its q rows stands at position context[r] - q + i and sees positions 0..its own. Cache position p
of r lies in block ``block_tables[r, p // block_size]`` at offset ``p % block_size``.
"""
