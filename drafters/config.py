"""A drafter's configuration: DeepSpec's ``config.json``, the target's own with overrides."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drafters.errors import UserError
from drafters.layers import LayerShape

HEAD_TYPES = ("vanilla", "gated", "rnn")
MODEL_TYPES = ("llama", "qwen3")
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


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
    num_target_layers: int = 0
    """Layers of the target it was made for; 0: not known."""
    shares_target_embeddings: bool = False
    """True when the file leaves embedding and output head to the target."""
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
    try:
        return _parse(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    except KeyError as error:
        raise UserError(f"{path}: key {error.args[0]!r} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from None


def _parse(raw: dict[str, Any]) -> DraftConfig:
    architecture = (raw.get("architectures") or [""])[0]
    _check_model(raw)
    common = {
        "shape": layer_shape(raw),
        "vocab_size": raw["vocab_size"],
        "target_layer_ids": tuple(raw["target_layer_ids"]),
        "num_target_layers": raw.get("num_target_layers") or 0,
        "shares_target_embeddings": bool(raw.get("shares_target_embeddings", False)),
        "raw": raw,
    }
    if "Eagle3" in architecture:
        return _parse_recurrent("eagle3", raw["ttt_length"], raw, common)
    if "MTP" in architecture:
        return _parse_recurrent("mtp", raw["mtp_depth"], raw, common)
    if "DSpark" not in architecture:
        raise ValueError(
            f"architecture {architecture!r} is unknown; known: Qwen3DSparkModel (DFlash too),"
            " Qwen3Eagle3Model, and their Llama and MTP kin"
        )
    return _parse_block(raw, common)


def _check_model(raw: dict[str, Any]) -> None:
    if raw["model_type"] not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ValueError(f"model_type {raw['model_type']!r} is not supported; supported: {known}")
    for key in SIZES:
        if not isinstance(raw[key], int) or raw[key] < 1:
            raise ValueError(f"{key} is {raw[key]!r}; it must be a positive integer")
    rope = (raw.get("rope_parameters") or {}).get("rope_type", "default")
    if rope != "default":
        raise ValueError(f"rope_type {rope!r} is not supported; supported: default")


def _parse_recurrent(
    family: str, gamma: int, raw: dict[str, Any], common: dict[str, Any]
) -> DraftConfig:
    layers = raw.get("draft_num_hidden_layers", 1)
    if layers != 1:
        raise ValueError(f"draft_num_hidden_layers is {layers}; {family} drafters have 1 layer")
    config = DraftConfig(family=family, num_layers=1, gamma=gamma, **common)
    return (
        config.with_shape(input_size=2 * config.shape.hidden_size) if family == "eagle3" else config
    )


def _parse_block(raw: dict[str, Any], common: dict[str, Any]) -> DraftConfig:
    rank = raw.get("markov_rank") or 0
    head = raw.get("markov_head_type") or "vanilla"
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
