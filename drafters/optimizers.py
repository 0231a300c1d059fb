"""AdamW for all weights, or Muon for the matrices of layers and AdamW for the rest.

Muon (K. Jordan, 2024; Liu et al., arXiv 2502.16982) moves a matrix along its orthogonalised
momentum. Its rate is AdamW's, matched by the root mean square of an update as the latter do, times
``MUON_RATE``.
"""

from __future__ import annotations

import torch
from torch.optim import AdamW, Optimizer

from drafters.errors import UserError
from drafters.module import DraftModule

OPTIMIZERS = ("adamw", "muon")
MUON_RATE = 8.0
"""Times the learning rate: 6 and 10 were as good, 3 and 1 worse (docs/LOG.md)."""
TABLES = ("embed_tokens", "lm_head", "markov_head", "confidence_head")
"""Matrices whose rows belong to tokens or outputs, which AdamW keeps."""


def make_optimizers(drafter: DraftModule, kind: str, rate: float) -> list[Optimizer]:
    """What steps the trainable weights at a learning ``rate``; each group's ``scale`` multiplies
    the rate that a step sets. UserError where torch has no Muon."""
    learned = {n: p for n, p in drafter.named_parameters() if p.requires_grad}
    if kind == "adamw":
        return [AdamW([{"params": list(learned.values()), "scale": 1.0}], rate, weight_decay=0.0)]
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"--optimizer muon needs torch 2.9 or later; this is {torch.__version__}")
    inner = {n for n, p in learned.items() if p.ndim == 2 and not n.startswith(TABLES)}
    matrices = [p for n, p in learned.items() if n in inner]
    rest = [p for n, p in learned.items() if n not in inner]
    return [
        torch.optim.Muon(
            [{"params": matrices, "scale": MUON_RATE}], rate, weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        AdamW([{"params": rest, "scale": 1.0}], rate, weight_decay=0.0),
    ]  # fmt: skip
