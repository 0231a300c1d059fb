"""Paged ragged attention against dense causal attention in fp64.

Regimes and what each catches: one token and whole prefill chunks, requests without rows, contexts
that end inside a block, head sizes that are no power of two, no grouping and wide groups, shuffled
block tables with poison in every place that no request owns, a context cut into splits of which
some are empty, queries and caches beyond 32-bit offsets.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from drafters.kernels.ragged_attention import reference
from drafters.kernels.ragged_attention import triton as kernel
from tests.kernels.helpers import RATIO, assert_close, far_along, move

RUNS = {"torch": reference.ragged_attention, "triton": kernel.ragged_attention}
DTYPES = [torch.float32, torch.bfloat16]


class Case(NamedTuple):
    """Arguments of ``ragged_attention``, in its order."""

    queries: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    cu_rows: Tensor
    context_tokens: Tensor
    max_rows: int


def case(
    rows: list[int],
    contexts: list[int],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    block_size: int = 16,
    padding: int = 2,
) -> Case:
    """``heads`` = (query heads, key heads, size); what no request owns holds NaN."""
    (query_heads, kv_heads, size), g = heads, torch.Generator().manual_seed(sum(contexts))
    needed = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(needed) + 3, generator=g)
    tables = torch.full((len(rows), max([*needed, 1])), int(order[-1]))
    cache = torch.full((2, order.numel(), block_size, kv_heads, size), float("nan"))
    for r, count in enumerate(needed):
        mine = order[sum(needed[:r]) :][:count]
        tables[r, :count] = mine
        cache[:, mine] = torch.randn((2, count, *cache.shape[2:]), generator=g)
        if contexts[r] % block_size:
            cache[:, mine[-1], contexts[r] % block_size :] = float("nan")
    queries = torch.randn((sum(rows) + padding, query_heads, size), generator=g)
    arguments = Case(
        queries.to(dtype),
        *cache.to(dtype),
        tables.int(),
        torch.tensor([0, *rows]).cumsum(0).int(),
        torch.tensor(contexts).int(),
        max([*rows, 1]),
    )
    return Case(*(move(part, device) for part in arguments))


def theory(given: Case, causal: bool = True) -> Tensor:
    """Dense attention of each request, query by query, in fp64."""
    out = torch.zeros(given.queries.shape, dtype=torch.float64)
    group = given.queries.shape[1] // given.key_cache.shape[2]
    bounds = given.cu_rows.tolist()
    for r, context in enumerate(given.context_tokens.tolist()):
        first, end = bounds[r : r + 2]
        table = given.block_tables[r].long()
        keys, values = (
            cache[table].flatten(0, 1).double().repeat_interleave(group, 1).cpu()
            for cache in (given.key_cache, given.value_cache)
        )
        for i in range(first, end):
            seen = context - (end - first) + (i - first) + 1 if causal else context
            query = given.queries[i].double().cpu()
            scores = torch.einsum("he,che->hc", query, keys[:seen]) * query.shape[-1] ** -0.5
            out[i] = torch.einsum("hc,che->he", scores.softmax(-1), values[:seen])
    return out


SHAPES = {
    "one token": ([1], [1], (2, 2, 16)),
    "verification": ([3, 1, 8, 2], [40, 17, 8, 63], (9, 3, 64)),
    "empty rows": ([0, 5, 0, 1], [0, 16, 33, 1], (4, 1, 20)),
    "prefill chunk": ([37, 1, 70], [37, 90, 150], (4, 2, 24)),
}


@pytest.mark.parametrize(
    ("run", "shape", "dtype"), list(product(RUNS, SHAPES, DTYPES)), ids=lambda x: str(x)
)
def test_attention(run, shape, dtype, device):
    given = case(*SHAPES[shape], dtype, device)
    got = RUNS[run](*given).cpu()
    assert got.dtype == dtype
    assert_close("attention", theory(given), got, RATIO[dtype])
    assert (got[given.cu_rows[-1] :] == 0).all()


@pytest.mark.parametrize(("run", "dtype"), list(product(RUNS, DTYPES)), ids=str)
def test_full_attention(run, dtype, device):
    """Blocks that see themselves whole, as a block drafter's do."""
    given = case([3, 0, 8, 1], [40, 9, 75, 1], (6, 3, 24), dtype, device)
    got = RUNS[run](*given, causal=False).cpu()
    assert_close("attention", theory(given, causal=False), got, RATIO[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_splits_of_long_contexts(dtype, device):
    """Room for 2,048 tokens gives four splits; the short request leaves three of them empty."""
    given = case([2, 3, 0], [300, 5, 0], (4, 2, 16), dtype, device)
    tables = given.block_tables.new_zeros((3, 2048 // 16))
    tables[:, : given.block_tables.shape[1]] = given.block_tables
    wide = given._replace(block_tables=tables)
    assert kernel._splits(programs=6, capacity_tokens=2048) == 4
    got = kernel.ragged_attention(*wide).cpu()
    assert_close("attention", theory(given), got, RATIO[dtype])


@pytest.mark.parametrize("run", list(RUNS))
def test_queries_and_caches_may_be_slices(run, device):
    """Queries cut from a fused projection, keys and values interleaved in one cache."""
    dense = case([3, 1], [20, 9], (4, 2, 16), torch.float32, device, padding=0)
    fused = torch.full((4, 4, 48), float("nan"), device=device)
    fused[..., 16:32] = dense.queries
    both = torch.cat((dense.key_cache, dense.value_cache), -1)
    sliced = dense._replace(
        queries=fused[..., 16:32], key_cache=both[..., :16], value_cache=both[..., 16:]
    )
    assert torch.equal(RUNS[run](*sliced), RUNS[run](*dense))


@pytest.mark.parametrize("run", list(RUNS))
def test_no_requests(run, device):
    given = case([], [], (2, 1, 16), torch.float32, device)
    assert (RUNS[run](*given) == 0).all()


@pytest.mark.parametrize("part", ["key_cache", "value_cache"])
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["blocks", "offsets", "heads"])
def test_caches_beyond_32_bits(part, axis, device):
    assert_far_equals_near(part, axis, device)


def test_query_heads_beyond_32_bits(device):
    assert_far_equals_near("queries", 1, device)


def assert_far_equals_near(part: str, axis: int, device: torch.device) -> None:
    """One argument spread beyond 32-bit offsets along ``axis`` gives the same attention."""
    near = case([3, 2], [20, 9], (6, 3, 16), torch.bfloat16, device)
    got = kernel.ragged_attention(*near._replace(**{part: far_along(getattr(near, part), axis)}))
    assert torch.equal(got, kernel.ragged_attention(*near))
