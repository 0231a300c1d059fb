"""New drafters for a target: sizes by default, and a start from the target's own last layers.

The context path of a block drafter is a target layer's key/value path if H equals that layer's
normed input. So with fc selecting the last feature layer and the layer norms folded into the
projections, a fresh drafter already attends as the target does; only its queries must be learned.
"""

from __future__ import annotations

import argparse

import torch

from drafters.block import BlockDrafter
from drafters.config import DraftConfig
from drafters.errors import UserError
from drafters.layers import DecoderLayer
from drafters.target import Target

MASK_TOKEN = 3  # SmolLM2: a reserved token that no response holds


def default_feature_layers(num_layers: int) -> tuple[int, ...]:
    """Three layers spread over the target; the last one is left out (its output is not raw)."""
    return (num_layers // 4, num_layers // 2, num_layers - 3)


def build_drafter(family: str, target: Target, args: argparse.Namespace) -> BlockDrafter:
    """A fresh trainable drafter that shares the target's embeddings (frozen)."""
    layers = tuple(args.feature_layers or default_feature_layers(target.num_layers))
    if max(layers) >= target.num_layers - 1 or min(layers) < -1:
        raise UserError(
            f"feature layers {layers} do not fit a target of {target.num_layers} layers; "
            f"allowed: -1..{target.num_layers - 2}"
        )
    dspark = family == "dspark"
    config = DraftConfig(
        family=family,
        shape=target.shape,
        vocab_size=target.vocab_size,
        num_target_layers=target.num_layers,
        num_layers=args.layers,
        target_layer_ids=layers,
        gamma=args.gamma,
        mask_token_id=MASK_TOKEN,
        markov_rank=args.rank if dspark else 0,
        markov_head_type=args.head,
        confidence_head=dspark,
        confidence_with_markov=dspark,
    )
    drafter = BlockDrafter(config)
    _start_from(drafter, target)
    return share_embeddings(drafter, target)


def share_embeddings(drafter: BlockDrafter, target: Target) -> BlockDrafter:
    """Point the drafter's frozen embedding and output head at the target's tensors."""
    drafter.embed_tokens.weight = target.embed_tokens.weight
    drafter.lm_head.weight = target.lm_head.weight
    return drafter


@torch.no_grad()
def _start_from(drafter: BlockDrafter, target: Target) -> None:
    size = target.shape.hidden_size
    torch.nn.init.normal_(drafter.fc.weight, std=0.01)
    drafter.fc.weight[:, -size:] += torch.eye(size)
    for i, layer in enumerate(drafter.layers):
        source = target.layers[target.num_layers - drafter.config.num_layers + i]
        _fold(layer, source)
    drafter.norm.weight.copy_(target.norm.weight)
    if drafter.config.markov_rank:
        torch.nn.init.normal_(drafter.markov_head.markov_w1.weight, std=0.5)
        torch.nn.init.zeros_(drafter.markov_head.markov_w2.weight)
    if drafter.config.confidence_head:
        torch.nn.init.zeros_(drafter.confidence_head.proj.weight)
        torch.nn.init.zeros_(drafter.confidence_head.proj.bias)


def _fold(layer: DecoderLayer, source: DecoderLayer) -> None:
    """Copy a target layer with its input norm's gain moved into the projections."""
    layer.load_state_dict(source.state_dict())
    gain = source.input_layernorm.weight.float()
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(layer.self_attn, name)
        projection.weight.copy_(getattr(source.self_attn, name).weight.float() * gain)
    layer.input_layernorm.weight.fill_(1.0)
