"""New drafters for a target: sizes by default, and a start from the target's own last layers (and,
for a Markov head, its bigrams).

The context path of a block drafter is a target layer's key/value path if H equals that layer's
normed input. So with fc selecting the last feature layer and the layer norms folded into the
projections, a fresh drafter already attends as the target does; only its queries must be learned.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from drafters.bigrams import Bigrams, start_from_bigrams
from drafters.block import BlockDrafter
from drafters.checkpoint import SHARED, load
from drafters.config import DraftConfig
from drafters.eagle3 import Eagle3Drafter
from drafters.errors import UserError
from drafters.layers import MLP, DecoderLayer
from drafters.module import DraftModule
from drafters.mtp import MTPDrafter
from drafters.recurrent import RecurrentDrafter
from drafters.target import Target

SMOLLM2_VOCABULARY, SMOLLM2_MASK = 49152, 3  # a reserved token that no response holds
FRESH_STD = 0.01  # of weights that nothing of the target's can start


def default_feature_layers(num_layers: int) -> tuple[int, ...]:
    """Four layers spread evenly over the target, from the second to the last but one (the output of
    the last is not raw); fewer where the target has no four."""
    last = num_layers - 2
    return tuple(sorted({round(1 + i * (last - 1) / 3) for i in range(4)} & set(range(last + 1))))


def mask_token(vocab_size: int) -> int:
    """A token that no response should hold: the last id, which is padding (Qwen3) or reserved
    (Llama 3); SmolLM2 has a word there and a reserved token of its own."""
    return SMOLLM2_MASK if vocab_size == SMOLLM2_VOCABULARY else vocab_size - 1


def build_drafter(
    family: str, target: Target, args: argparse.Namespace, bigrams: Bigrams | None = None
) -> DraftModule:
    """A fresh trainable drafter that shares the target's embeddings (frozen).

    ``args``: feature_layers, gamma; for block families also layers, intermediate, rank, head.
    ``bigrams`` start a Markov head; without them it adds nothing yet. UserError for layers, or a
    width of their feed-forward halves, that the target has not.
    """
    common = {
        "family": family,
        "shape": target.shape,
        "vocab_size": target.vocab_size,
        "num_target_layers": target.num_layers,
        "target_layer_ids": _feature_layers(family, args.feature_layers, target),
        "gamma": args.gamma,
    }
    if family in ("eagle3", "mtp"):
        drafter = _recurrent_drafter(DraftConfig(num_layers=1, **common), target)
    else:
        drafter = _block_drafter(common, target, args, bigrams)
    return share_embeddings(drafter, target)


def continued(source: str, name: str, gamma: int, target: Target) -> DraftModule:
    """The drafter of a checkpoint, trainable in fp32.

    UserError unless it is what ``name`` (family, DSpark's head behind a hyphen) and ``gamma`` say.
    """
    drafter = load(source, target)
    config = getattr(drafter, "config", None)
    head = "" if config is None else config.markov_head_type.replace("vanilla", "")
    found = "ngram" if config is None else "-".join(filter(None, (config.family, head)))
    if not isinstance(drafter, DraftModule) or (found, drafter.gamma) != (name, gamma):
        raise UserError(
            f"--start {source} holds {found} with gamma {drafter.gamma}; asked for were"
            f" --drafter {name} --gamma {gamma}"
        )
    for part, parameter in drafter.named_parameters():
        if part not in SHARED:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return share_embeddings(drafter, target)


def _feature_layers(family: str, asked: list[int] | None, target: Target) -> tuple[int, ...]:
    """Those asked for, or the family's own; UserError where the family cannot read them."""
    last = target.num_layers - 1
    if family == "mtp":
        if asked not in (None, [last]):
            raise UserError(
                f"--feature-layers {' '.join(map(str, asked or ()))}: mtp reads the target's last"
                f" layer, {last}, alone; leave the option out or train mtp in a run of its own"
            )
        return (last,)
    layers = tuple(asked or default_feature_layers(target.num_layers))
    _check_layers(layers, target)
    return layers


def _check_layers(layers: tuple[int, ...], target: Target) -> None:
    if not layers or max(layers) >= target.num_layers - 1 or min(layers) < -1:
        raise UserError(
            f"feature layers {layers} do not fit a target of {target.num_layers} layers; "
            f"allowed: -1..{target.num_layers - 2}"
        )


def _block_drafter(
    common: dict[str, Any], target: Target, args: argparse.Namespace, bigrams: Bigrams | None
) -> BlockDrafter:
    dspark = common["family"] == "dspark"
    if args.layers > target.num_layers:
        raise UserError(
            f"{args.layers} draft layers do not fit a target of {target.num_layers} layers, whose"
            f" last ones they start from; allowed: 1..{target.num_layers}"
        )
    widest = target.shape.intermediate_size
    if args.intermediate > widest:
        raise UserError(
            f"intermediate size {args.intermediate} is wider than the target's layers, from which"
            f" draft layers start; allowed: 1..{widest}, 0 for all"
        )
    config = DraftConfig(
        num_layers=args.layers,
        mask_token_id=mask_token(target.vocab_size),
        markov_rank=args.rank if dspark else 0,
        markov_head_type=args.head,
        confidence_head=dspark,
        confidence_with_markov=dspark,
        **common,
    ).with_shape(intermediate_size=args.intermediate or widest)
    drafter = BlockDrafter(config)
    _start_from(drafter, target)
    if dspark and bigrams is not None:
        start_from_bigrams(drafter.markov_head, target, bigrams)
    return drafter


@torch.no_grad()
def _recurrent_drafter(config: DraftConfig, target: Target) -> RecurrentDrafter:
    """Starts as the target's last layer run on the fused features; the embedding fades in."""
    source, size = target.layers[-1], target.shape.hidden_size
    if config.family == "mtp":
        mtp = MTPDrafter(config)
        mtp.layer.load_state_dict(source.state_dict())
        torch.nn.init.normal_(mtp.eh_proj.weight, std=FRESH_STD)
        mtp.eh_proj.weight[:, size:] += torch.eye(size)
        mtp.norm.weight.copy_(target.norm.weight)
        return mtp
    eagle = Eagle3Drafter(config.with_shape(input_size=2 * size))
    torch.nn.init.normal_(eagle.fc.weight, std=FRESH_STD)
    eagle.fc.weight[:, -size:] += torch.eye(size)
    layer, attention = eagle.layer, source.self_attn
    widened = {
        f"self_attn.{name}.weight": _widened(getattr(attention, name).weight)
        for name in ("q_proj", "k_proj", "v_proj")
    }
    layer.load_state_dict(source.state_dict() | widened, strict=False)
    layer.input_layernorm.weight.fill_(1.0)
    layer.hidden_norm.weight.copy_(source.input_layernorm.weight)
    eagle.norm.weight.copy_(target.norm.weight)
    return eagle


def _widened(weight: Tensor) -> Tensor:
    """[out, d] -> [out, 2 d]: small fresh columns for the embedding, then the given ones."""
    return torch.cat((FRESH_STD * torch.randn_like(weight), weight), 1)


def share_embeddings(drafter: DraftModule, target: Target) -> DraftModule:
    """Point the drafter's frozen embedding and output head at the target's tensors."""
    drafter.embed_tokens.weight = target.embed_tokens.weight
    drafter.lm_head.weight = target.lm_head.weight
    return drafter


@torch.no_grad()
def _start_from(drafter: BlockDrafter, target: Target) -> None:
    size = target.shape.hidden_size
    torch.nn.init.normal_(drafter.fc.weight, std=FRESH_STD)
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
    """Copy a target layer with its input norm's gain moved into the projections; of a wider one's
    feed-forward neurons those with the largest weights."""
    kept = _largest_neurons(source.mlp, layer.mlp.gate_proj.out_features)
    layer.load_state_dict(
        source.state_dict()
        | {
            "mlp.gate_proj.weight": source.mlp.gate_proj.weight[kept],
            "mlp.up_proj.weight": source.mlp.up_proj.weight[kept],
            "mlp.down_proj.weight": source.mlp.down_proj.weight[:, kept],
        }
    )
    gain = source.input_layernorm.weight.float()
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(layer.self_attn, name)
        projection.weight.copy_(getattr(source.self_attn, name).weight.float() * gain)
    layer.input_layernorm.weight.fill_(1.0)


def _largest_neurons(mlp: MLP, count: int) -> Tensor:
    """Ascending indices of the ``count`` neurons whose weights' norms have the largest product."""
    gate, up, down = (m.weight.float() for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    size = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    return size.topk(count).indices.sort().values
