"""Synthetic machines: how a target pass may grow with its tokens, apart from any measurement.

``dense``   one line: weights are read once, every token adds its share.
``moe``     a mixture of experts: T tokens touch 1 - (1 - k/E)^T of E experts, k each, and every
            expert touched must be read: the first tokens are dear, later ones cheap.
``coarse``  the dense machine with graphs captured at few sizes: a staircase of high steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpu_traces.latency import LatencyModel, linear
from gpu_traces.schema import Origin

MAX_REQUESTS, MAX_TOKENS = 512, 16384
BASE_S, TOKEN_S = 12e-3, 15e-6
DRAFT_S, DRAFT_REQUEST_S = 1e-3, 1e-5
EXPERTS, ACTIVE = 256, 8
ATTENTION_S = 3e-3
"""What a pass of the mixture reads whichever experts are touched."""
COARSE = (1, 64, 128, 256, 512, 1024, 2048)


def machine(shape: str, gamma: int) -> LatencyModel:
    """One of the machines above; ValueError for an unknown name."""
    dense = linear(
        BASE_S, TOKEN_S, DRAFT_S, DRAFT_REQUEST_S,
        gamma=gamma, max_requests=MAX_REQUESTS, max_tokens=MAX_TOKENS,
    )  # fmt: skip
    tokens = np.arange(MAX_TOKENS + 1)
    captured: tuple[int, ...] = ()
    if shape == "dense":
        verify_s = dense.verify_s
    elif shape == "moe":
        touched = 1.0 - (1.0 - ACTIVE / EXPERTS) ** tokens
        verify_s = ATTENTION_S + (BASE_S - ATTENTION_S) * touched + TOKEN_S * tokens
    elif shape == "coarse":
        captured = COARSE
        padded = np.array(COARSE)[np.minimum(np.searchsorted(COARSE, tokens), len(COARSE) - 1)]
        verify_s = BASE_S + TOKEN_S * np.maximum(padded, tokens)
    else:
        raise ValueError(f"unknown machine {shape!r}; known: dense, moe, coarse")
    return replace(
        dense,
        name=f"synthetic:{shape}",
        origin=Origin("synthetic", f"closed-form {shape} machine"),
        verify_s=verify_s,
        captured_sizes=captured,
    )
