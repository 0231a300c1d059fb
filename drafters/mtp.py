"""MTP: one extra prediction module, applied again for every further token.

The input of the layer is eh_proj [enorm(embedding) ; hnorm(state)]; the state of a committed
position is the target's last layer output, then the module's own output before the final norm.
Source: DeepSeek-V3 (arXiv 2412.19437) section 2.2, one module shared by all depths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drafters.config import DraftConfig
from drafters.layers import DecoderLayer, RMSNorm
from drafters.recurrent import RecurrentDrafter


class MTPDrafter(RecurrentDrafter):
    """``target_layer_ids`` holds one layer, the last; ``gamma`` is the depth it was trained for."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        size, eps = config.shape.hidden_size, config.shape.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(size, eps), RMSNorm(size, eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(config.shape)])

    @property
    def layer(self) -> DecoderLayer:  # type: ignore[override]
        return self.layers[0]  # type: ignore[return-value]

    def project(self, features: Tensor) -> Tensor:
        return features

    def join(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        joined = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), -1))
        return joined, self.layer.input_layernorm(joined)
