"""A drafter's configuration, read and written: DeepSpec's ``config.json``, the target's own with
overrides."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drafters.errors import UserError
from drafters.layers import LayerShape
from drafters.rope import number, rope_of

ARCHITECTURES = {"dspark": "DSpark", "dflash": "DSpark", "eagle3": "Eagle3", "mtp": "MTP"}
HEAD_TYPES = ("vanilla", "gated", "rnn")
MODEL_TYPES = ("llama", "qwen3")
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads")
DERIVED_SIZES = ("num_key_value_heads", "head_dim")  # absent or null: from the other sizes


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
    training: dict[str, Any] = field(default_factory=dict, compare=False)
    """Keys of the file that tell how a drafter made here was trained."""
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def feature_size(self) -> int:
        """Width m * d of the concatenated target features."""
        return len(self.target_layer_ids) * self.shape.hidden_size

    def with_shape(self, **changes: Any) -> DraftConfig:
        return replace(self, shape=replace(self.shape, **changes))


def layer_shape(config: dict[str, Any]) -> LayerShape:
    """Decoder-layer sizes from a Hugging Face config dictionary (Llama or Qwen3).

    ValueError for a layer that ``drafters.layers`` does not compute.
    """
    _check_sizes(config)
    _check_layer(config)
    heads = config["num_attention_heads"]
    return LayerShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rms_norm_eps=number("rms_norm_eps", config["rms_norm_eps"]),
        rope=rope_of(config),
        qk_norm=config["model_type"] == "qwen3",
        attention_bias=_flag(config, "attention_bias"),
    )


def _check_sizes(config: dict[str, Any]) -> None:
    for key in SIZES:
        _whole(config, key)
    for key in DERIVED_SIZES:
        if config.get(key) is not None:
            _whole(config, key)
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads")
    if groups and heads % groups:
        raise ValueError(f"num_key_value_heads is {groups}; it must divide {heads} attention heads")
    size = config.get("head_dim") or config["hidden_size"] // heads
    if size < 2 or size % 2:
        raise ValueError(f"head_dim is {size}; it must be even, because halves are rotated")


def _check_layer(config: dict[str, Any]) -> None:
    activation = config.get("hidden_act") or "silu"
    if activation != "silu":
        raise ValueError(f"hidden_act {activation!r} is not supported; supported: silu")
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(f"layer_types is {kinds!r}; supported: full_attention in every layer")
    if not kinds and _flag(config, "use_sliding_window"):
        raise ValueError("use_sliding_window is true; supported: false, in every layer")
    if config.get("mlp_bias"):
        raise ValueError(f"mlp_bias is {config['mlp_bias']!r}; supported: false")


def read_config(path: Path) -> DraftConfig:
    """Parse a drafter's ``config.json``; UserError names a key that is missing or cannot be used,
    its value and what is allowed."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; a drafter folder holds config.json and weights")
    try:
        return _parse(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    except KeyError as error:
        raise UserError(f"{path}: key {error.args[0]!r} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from None


def _parse(raw: dict[str, Any]) -> DraftConfig:
    if not isinstance(raw, dict):
        raise ValueError("it holds no JSON object; a drafter's keys are expected")
    architecture = _architecture(raw)
    _check_model(raw)
    common = {
        "shape": layer_shape(raw),
        "vocab_size": raw["vocab_size"],
        "target_layer_ids": _layer_ids(raw),
        "num_target_layers": _optional(raw, "num_target_layers"),
        "shares_target_embeddings": _flag(raw, "shares_target_embeddings"),
        "raw": raw,
    }
    if "Eagle3" in architecture:
        return _parse_recurrent("eagle3", _whole(raw, "ttt_length"), raw, common)
    if "MTP" in architecture:
        return _parse_recurrent("mtp", _whole(raw, "mtp_depth"), raw, common)
    if "DSpark" not in architecture:
        raise ValueError(
            f"architecture {architecture!r} is unknown; known: Qwen3DSparkModel (DFlash too),"
            " Qwen3Eagle3Model, and their Llama and MTP kin"
        )
    return _parse_block(raw, common)


def _architecture(raw: dict[str, Any]) -> str:
    """The first of the file's architectures; empty where it has none."""
    names = raw.get("architectures") or [""]
    if not isinstance(names, list):
        raise ValueError(f'architectures is {names!r}; it must be a list, as ["Qwen3DSparkModel"]')
    return str(names[0])


def _check_model(raw: dict[str, Any]) -> None:
    if raw["model_type"] not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ValueError(f"model_type {raw['model_type']!r} is not supported; supported: {known}")
    _whole(raw, "vocab_size")


def _whole(raw: dict[str, Any], key: str, least: int = 1) -> int:
    """``raw[key]``, an integer of at least ``least``."""
    value = raw[key]
    if type(value) is not int or value < least:
        allowed = "a positive integer" if least else "an integer, 0 or more"
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")
    return value


def _optional(raw: dict[str, Any], key: str) -> int:
    """``raw[key]``, an integer; 0 where it is absent or null."""
    return 0 if raw.get(key) is None else _whole(raw, key, least=0)


def _flag(raw: dict[str, Any], key: str) -> bool:
    """``raw[key]``, true or false; False where it is absent or null."""
    value = raw.get(key)
    if value not in (None, True, False):
        raise ValueError(f"{key} is {value!r}; it must be true or false")
    return bool(value)


def _layer_ids(raw: dict[str, Any]) -> tuple[int, ...]:
    """Layers of the target whose outputs are read, -1 its embedding."""
    ids = raw["target_layer_ids"]
    if not isinstance(ids, list) or not ids or any(type(i) is not int or i < -1 for i in ids):
        raise ValueError(f"target_layer_ids is {ids!r}; it must be a list of integers, -1 or more")
    layers = _optional(raw, "num_target_layers")
    if layers and max(ids) >= layers:
        raise ValueError(
            f"target_layer_ids is {ids}; num_target_layers {layers} allows -1..{layers - 1}"
        )
    return tuple(ids)


def _mask_token(raw: dict[str, Any]) -> int:
    """The token that fills a block, one of the vocabulary."""
    token, size = raw["mask_token_id"], raw["vocab_size"]
    if type(token) is not int or not 0 <= token < size:
        raise ValueError(f"mask_token_id is {token!r}; it must be an integer, 0..{size - 1}")
    return token


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
    rank = _optional(raw, "markov_rank")
    head = raw.get("markov_head_type") or "vanilla"
    if rank and head not in HEAD_TYPES:
        raise ValueError(f"markov_head_type {head!r} is unknown; known: {', '.join(HEAD_TYPES)}")
    confident = _flag(raw, "enable_confidence_head")
    with_markov = _flag(raw, "confidence_head_with_markov")
    return DraftConfig(
        family="dspark" if rank or confident else "dflash",
        num_layers=_whole(raw, "num_hidden_layers"),
        gamma=_whole(raw, "block_size"),
        mask_token_id=_mask_token(raw),
        markov_rank=rank,
        markov_head_type=head,
        confidence_head=confident,
        confidence_with_markov=bool(confident and rank and with_markov),
        **common,
    )


def config_json(config: DraftConfig, shares: bool, types: set[str]) -> dict[str, Any]:
    """The keys of the file it was read from, or DeepSpec's for a drafter made here.

    ``types`` of the weights beside it, as ``float32``: ``dtype`` (or the older ``torch_dtype``)
    names the only one.
    """
    made = dict(config.raw) or _fresh(config)
    made.pop("shares_target_embeddings", None)
    if shares:
        made["shares_target_embeddings"] = True
    if len(types) == 1:
        key = "torch_dtype" if "torch_dtype" in made else "dtype"
        made[key] = str(*types)
    return made


def _fresh(config: DraftConfig) -> dict[str, Any]:
    shape = config.shape
    model = "Qwen3" if shape.qk_norm else "Llama"
    common = {
        "architectures": [f"{model}{ARCHITECTURES[config.family]}Model"],
        "model_type": model.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.rms_norm_eps,
        "attention_bias": shape.attention_bias,
        "rope_parameters": shape.rope.config(),
        "num_hidden_layers": config.num_layers,
        "layer_types": ["full_attention"] * config.num_layers,
        "tie_word_embeddings": False,
        "num_target_layers": config.num_target_layers,
        "target_layer_ids": list(config.target_layer_ids),
    }
    block = config.family in ("dspark", "dflash")
    return common | (_block_keys(config) if block else _recurrent_keys(config)) | config.training


def _block_keys(config: DraftConfig) -> dict[str, Any]:
    made: dict[str, Any] = {
        "block_size": config.gamma,
        "mask_token_id": config.mask_token_id,
        "enable_confidence_head": config.confidence_head,
        "markov_rank": config.markov_rank,
    }
    if config.confidence_head:
        made["confidence_head_with_markov"] = config.confidence_with_markov
    if config.markov_rank:
        made["markov_head_type"] = config.markov_head_type
    return made


def _recurrent_keys(config: DraftConfig) -> dict[str, Any]:
    depth = "ttt_length" if config.family == "eagle3" else "mtp_depth"
    return {depth: config.gamma, "draft_num_hidden_layers": config.num_layers}
