"""Drafter checkpoints: a folder of ``config.json`` and ``model.safetensors`` in DeepSpec's format.

Ours add one key: ``shares_target_embeddings`` leaves the frozen embedding and output head out of
the file (they are the target's, 57 MB in bf16) and takes them from the target at loading.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from drafters.block import BlockDrafter
from drafters.config import DraftConfig

SHARED = ("embed_tokens.weight", "lm_head.weight")


def config_json(config: DraftConfig, shares: bool) -> dict[str, object]:
    """DeepSpec's keys for a DSpark or DFlash drafter."""
    shape = config.shape
    made: dict[str, object] = {
        **config.raw,
        "architectures": ["Qwen3DSparkModel" if shape.qk_norm else "LlamaDSparkModel"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "num_hidden_layers": config.num_layers,
        "layer_types": ["full_attention"] * config.num_layers,
        "tie_word_embeddings": False,
        "block_size": config.gamma,
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.target_layer_ids),
        "enable_confidence_head": config.confidence_head,
        "markov_rank": config.markov_rank,
        "shares_target_embeddings": shares,
    }
    if config.confidence_head:
        made["confidence_head_with_markov"] = config.confidence_with_markov
    if config.markov_rank:
        made["markov_head_type"] = config.markov_head_type
    return made


def save_drafter(drafter: BlockDrafter, folder: Path, shares: bool = True) -> None:
    """Write a checkpoint in bf16, each file by rename; ``shares`` leaves the embeddings out."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous().cpu()
        for name, tensor in drafter.state_dict().items()
        if not (shares and name in SHARED)
    }
    temporary = folder / "model.safetensors.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(config_json(drafter.config, shares), indent=2) + "\n")
    os.replace(temporary, folder / "config.json")
