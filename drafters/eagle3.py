"""Eagle3: an autoregressive one-layer drafter on fused target features, trained on its own states.

The state of a committed position is fc(features), without a norm. The layer reads
[input_layernorm(embedding) ; hidden_norm(state)], twice the hidden size; its residual stream is the
un-normed state, and the output before the final norm is the next state.
Source: EAGLE-3 (arXiv 2503.01840), DeepSpec.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drafters.config import DraftConfig
from drafters.layers import DecoderLayer, RMSNorm
from drafters.recurrent import RecurrentDrafter


class Eagle3Layer(DecoderLayer):
    """A decoder layer whose attention reads two normed streams."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config.shape)
        self.hidden_norm = RMSNorm(config.shape.hidden_size, config.shape.rms_norm_eps)


class Eagle3Drafter(RecurrentDrafter):
    """State-dict names equal DeepSpec's; ``config.shape.input_size`` is twice the hidden size."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(config.feature_size, config.shape.hidden_size, bias=False)
        self.layers = nn.ModuleList([Eagle3Layer(config)])

    @property
    def layer(self) -> Eagle3Layer:  # type: ignore[override]
        return self.layers[0]  # type: ignore[return-value]

    def project(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def join(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        normed = (self.layer.input_layernorm(embedded), self.layer.hidden_norm(hidden))
        return hidden, torch.cat(normed, -1)
