"""Rotation and storing against fp64, with poisoned outputs; rows of the cache not named stay.

Heads of no power of two, strided slices of a joint projection, int32 and int64 rows, heads beyond
32-bit offsets.
"""

from __future__ import annotations

import pytest
import torch

from drafters.kernels.rotate_store import reference
from drafters.kernels.rotate_store import triton as kernel
from tests.kernels.helpers import RATIO, assert_close, far_along

RUNS = {"torch": reference.rotate_store, "triton": kernel.rotate_store}


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "size"),
    [(1, 1, 1, 8), (5, 4, 2, 64), (7, 6, 3, 24), (3, 0, 2, 8)],
)
def test_rotates_and_stores(run, dtype, tokens, heads, kv_heads, size, device):
    g = torch.Generator().manual_seed(tokens)
    joined = torch.randn(tokens, heads + 2 * kv_heads, size, generator=g).to(dtype).to(device)
    q, k, v = joined.split((heads, kv_heads, kv_heads), 1)
    angles = (torch.rand(tokens, size // 2, generator=g) * 6).repeat(1, 2).to(device)
    rows = torch.randperm(32, generator=g)[:tokens].to(device)
    caches = [torch.full((4, 8, kv_heads, size), 7.0, dtype=dtype, device=device) for _ in "kv"]
    out = RUNS[run](q, k, v, angles.cos(), angles.sin(), rows, *caches)

    def rotated(x):
        left, right = x.double().chunk(2, -1)
        c, s = (t[:, None, : size // 2] for t in (angles.double().cos(), angles.double().sin()))
        return torch.cat((left * c - right * s, right * c + left * s), -1)

    stored = [cache.flatten(0, 1) for cache in caches]
    assert out.shape == q.shape
    if heads:
        assert_close("queries", rotated(q), out, RATIO[dtype])
    assert_close("keys", rotated(k), stored[0][rows], RATIO[dtype])
    assert torch.equal(stored[1][rows], v)
    others = torch.ones(32, dtype=torch.bool, device=device)
    others[rows] = False
    assert all((cache[others] == 7.0).all() for cache in stored)


@pytest.mark.parametrize("run", list(RUNS))
def test_no_tokens(run, device):
    empty = torch.zeros(0, 2, 8, device=device)
    cache = torch.ones(1, 4, 2, 8, device=device)
    angles, rows = torch.zeros(0, 8, device=device), torch.zeros(0, dtype=torch.long, device=device)
    assert RUNS[run](empty, empty, empty, angles, angles, rows, cache, cache).shape == (0, 2, 8)
    assert (cache == 1).all()


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["queries", "keys", "values"])
def test_heads_beyond_32_bits(argument, device):
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, 3, 16, generator=g).bfloat16().to(device) for _ in "qkv"]
    angles = torch.rand(5, 16, generator=g).to(device)
    rows = torch.arange(5, device=device)

    def run() -> tuple[torch.Tensor, ...]:
        caches = [torch.zeros(1, 8, 3, 16, dtype=torch.bfloat16, device=device) for _ in "kv"]
        return kernel.rotate_store(*given, angles.cos(), angles.sin(), rows, *caches), *caches

    near = torch.cat([part.flatten() for part in run()])
    given[argument] = far_along(given[argument], 1)
    assert torch.equal(near, torch.cat([part.flatten() for part in run()]))
