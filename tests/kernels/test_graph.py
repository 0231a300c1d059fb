"""Each operation can be captured in a CUDA graph and replayed on new contents of its inputs.

Catches any read on the host (capture fails) and any launch parameter that depends on a value (the
replay differs from a fresh call).
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from drafters.kernels import OPERATIONS
from drafters.kernels.measure import captured

SMALL = {
    "markov_sample": {"requests": 5, "vocab": 1000, "dtype": torch.bfloat16},
    "verify": {"requests": 5, "length": 3, "vocab": 1000, "temperature": 1.0},
    "ragged_attention": {"heads": (4, 2, 64), "requests": 3, "rows": 4, "context": 64},
    "prefix_schedule": {"requests": 9, "gamma": 7},
    "draft_loss": {"rows": 5, "vocab": 1000},
    "rotate_store": {"heads": (4, 2, 64), "tokens": 9},
    "silu_mul": {"features": 64, "tokens": 9},
}


def flat(value: object) -> list[torch.Tensor]:
    """Tensors inside nested tuples, in order."""
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in flat(part)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.gpu
@pytest.mark.parametrize("operation", OPERATIONS)
def test_replay_equals_a_fresh_call(operation, device):
    bench = import_module(f"drafters.kernels.{operation}.bench")
    run = getattr(import_module(f"drafters.kernels.{operation}.triton"), operation)
    first, second = (bench.inputs(device, **SMALL[operation]) for _ in range(2))
    outputs = []
    replay = captured(lambda: outputs.append(run(*first)))
    for old, new in zip(flat(first), flat(second), strict=True):
        old.copy_(new)
    replay()
    for got, expected in zip(flat(outputs[-1]), flat(run(*second)), strict=True):
        assert torch.equal(got, expected)
