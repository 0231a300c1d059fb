"""A drafter's configuration: DeepSpec's ``config.json`` (the target's own config with overrides)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drafters.errors import UserError
from drafters.layers import LayerShape

HEAD_TYPES = ("vanilla", "gated", "rnn")


@dataclass(frozen=True)
class DraftConfig:
    """What a drafter is built from; ``raw`` keeps every key of the file it came from."""

    family: str
    shape: LayerShape
    vocab_size: int
    num_layers: int
    target_layer_ids: tuple[int, ...]
    gamma: int
    mask_token_id: int = 0
    markov_rank: int = 0
    markov_head_type: str = "vanilla"
    confidence_head: bool = False
    confidence_with_markov: bool = False
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def feature_size(self) -> int:
        """Width m * d of the concatenated target features."""
        return len(self.target_layer_ids) * self.shape.hidden_size

    def with_shape(self, **changes: Any) -> DraftConfig:
        return replace(self, shape=replace(self.shape, **changes))


def layer_shape(config: dict[str, Any]) -> LayerShape:
    """Decoder-layer sizes from a Hugging Face config dictionary (Llama or Qwen3)."""
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    return LayerShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rms_norm_eps=config["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        qk_norm=config["model_type"] == "qwen3",
        attention_bias=bool(config.get("attention_bias", False)),
    )


def read_config(path: Path) -> DraftConfig:
    """Parse a drafter's ``config.json``; UserError names a missing key or unknown head type."""
    if not path.exists():
        raise UserError(f"{path} does not exist; a drafter folder holds config.json and weights")
    raw = json.loads(path.read_text())
    try:
        return _parse(raw)
    except KeyError as error:
        raise UserError(f"{path}: key {error.args[0]!r} is missing") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _parse(raw: dict[str, Any]) -> DraftConfig:
    architecture = (raw.get("architectures") or [""])[0]
    common = {
        "shape": layer_shape(raw),
        "vocab_size": raw["vocab_size"],
        "target_layer_ids": tuple(raw.get("target_layer_ids") or ()),
        "raw": raw,
    }
    if "Eagle3" in architecture:
        return DraftConfig(
            family="eagle3",
            num_layers=raw.get("draft_num_hidden_layers", 1),
            gamma=raw.get("ttt_length", 7),
            **common,
        )
    if "MTP" in architecture:
        layers, gamma = raw.get("draft_num_hidden_layers", 1), raw.get("mtp_depth", 1)
        return DraftConfig(family="mtp", num_layers=layers, gamma=gamma, **common)
    if "DSpark" not in architecture:
        raise ValueError(f"architecture {architecture!r} is not a DSpark, DFlash, Eagle3 or MTP")
    return _parse_block(raw, common)


def _parse_block(raw: dict[str, Any], common: dict[str, Any]) -> DraftConfig:
    rank = raw.get("markov_rank") or 0
    head = raw.get("markov_head_type", "vanilla")
    if rank and head not in HEAD_TYPES:
        raise ValueError(f"markov_head_type {head!r} is unknown; known: {', '.join(HEAD_TYPES)}")
    confident = bool(raw.get("enable_confidence_head", False))
    return DraftConfig(
        family="dspark" if rank or confident else "dflash",
        num_layers=raw["num_hidden_layers"],
        gamma=raw["block_size"],
        mask_token_id=raw["mask_token_id"],
        markov_rank=rank,
        markov_head_type=head,
        confidence_head=confident,
        confidence_with_markov=bool(confident and rank and raw.get("confidence_head_with_markov")),
        **common,
    )
