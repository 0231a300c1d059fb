"""Tiny models of every family, shared by the tests of this folder."""

from __future__ import annotations

import torch

from drafters.block import BlockDrafter
from drafters.config import DraftConfig
from drafters.eagle3 import Eagle3Drafter
from drafters.layers import LayerShape
from drafters.module import DraftModule
from drafters.mtp import MTPDrafter
from drafters.presets import share_embeddings
from drafters.rope import Rope
from drafters.target import Target

SHAPE = LayerShape(
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=Rope(10000.0),
    qk_norm=True,
)
LAYERS = 3
FAMILIES = ("dspark", "gated", "rnn", "dflash", "eagle3", "mtp")


def tiny_target(vocab_size: int = 40, seed: int = 0) -> Target:
    """A random Qwen3-like target of three layers; its logits are far from uniform."""
    torch.manual_seed(seed)
    target = Target(SHAPE, LAYERS, vocab_size)
    for parameter in target.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 1.0)
    return target.requires_grad_(False).eval()


def tiny_config(
    family: str, vocab_size: int = 40, gamma: int = 4, **changes: object
) -> DraftConfig:
    """Configuration of one of ``FAMILIES`` (a head type means DSpark with that head)."""
    common = {"shape": SHAPE, "vocab_size": vocab_size, "gamma": gamma, "num_target_layers": LAYERS}
    if family == "eagle3":
        made = DraftConfig(family="eagle3", num_layers=1, target_layer_ids=(0, 1), **common)
        return made.with_shape(input_size=2 * SHAPE.hidden_size)
    if family == "mtp":
        return DraftConfig(family="mtp", num_layers=1, target_layer_ids=(LAYERS - 1,), **common)
    spark = family != "dflash"
    return DraftConfig(
        family="dspark" if spark else "dflash",
        num_layers=2,
        target_layer_ids=(-1, 1),
        mask_token_id=vocab_size - 1,
        markov_rank=6 if spark else 0,
        markov_head_type="vanilla" if family in ("dspark", "dflash") else family,
        confidence_head=spark,
        confidence_with_markov=spark,
        **{**common, **changes},
    )


def tiny_drafter(family: str, target: Target, gamma: int = 4, seed: int = 1) -> DraftModule:
    """A random drafter for a tiny target, sharing its embeddings."""
    torch.manual_seed(seed)
    config = tiny_config(family, target.vocab_size, gamma)
    kinds = {"eagle3": Eagle3Drafter, "mtp": MTPDrafter}
    drafter = kinds.get(family, BlockDrafter)(config)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.dim() > 1 else 1.0)
    return share_embeddings(drafter, target).requires_grad_(False).eval()


@torch.no_grad()
def features_of(target: Target, drafter: DraftModule, tokens: torch.Tensor) -> torch.Tensor:
    """Target features [n, t, m * d] of whole sequences [n, t]."""
    positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    features = target(tokens, positions, feature_layers=drafter.feature_layers).features
    assert features is not None
    return features
