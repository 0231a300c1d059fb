"""The check of addresses finds what the interpreter lets pass."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.kernels.bounds import OutOfBounds


@triton.jit
def _copy(source, target, count, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(target + lane, tl.load(source + lane, mask=lane < count, other=0.0))


@pytest.mark.parametrize(
    ("given", "room", "count", "said"),
    [
        (8, 8, 5, ""),
        (5, 8, 5, ""),
        (4, 8, 5, "create_masked_load"),
        (8, 6, 5, "create_masked_store"),
    ],
)
def test_addresses_outside_the_tensors_are_found(
    given: int, room: int, count: int, said: str, device: torch.device
) -> None:
    if device.type == "cuda":
        pytest.skip("on a GPU nothing is checked")
    source, target = torch.ones(given), torch.zeros(room)
    if said:
        with pytest.raises((OutOfBounds, InterpreterError), match=f"_copy: {said} at"):
            _copy[(1,)](source, target, count, BLOCK=8)
    else:
        _copy[(1,)](source, target, count, BLOCK=8)
        assert target.tolist() == [1.0] * count + [0.0] * (room - count)
