"""silu(gate) * up against fp64, with poisoned outputs: one tile, a part of one, several, none."""

from __future__ import annotations

import pytest
import torch

from drafters.kernels.silu_mul import reference
from drafters.kernels.silu_mul import triton as kernel
from tests.kernels.helpers import RATIO, assert_close

RUNS = {"torch": reference.silu_mul, "triton": kernel.silu_mul}


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "features"), [(1, 1024), (3, 24), (2, 2100)])
def test_against_fp64(run, dtype, tokens, features, device):
    g = torch.Generator().manual_seed(features)
    joint = (torch.randn(tokens, 2 * features, generator=g) * 4).to(dtype).to(device)
    gate, up = joint.double().chunk(2, -1)
    ratio = 2 * RATIO[dtype]  # the reference rounds silu(gate) too
    assert_close("product", gate * gate.sigmoid() * up, RUNS[run](joint), ratio)


@pytest.mark.parametrize("run", list(RUNS))
def test_large_gates_and_no_tokens(run, device):
    joint = torch.tensor([[-200.0, 200.0, 0.0, 2.0, 3.0, 4.0]], device=device)
    assert RUNS[run](joint).tolist() == [[0.0, 600.0, 0.0]]
    assert RUNS[run](joint[:0]).shape == (0, 3)
