"""What ``load_target`` refuses: models that ours would not compute as transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drafters.errors import UserError
from drafters.target import load_target
from tests.drafters.live import save_model

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, "qwen3")
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change weights of the third layer's MLP; None takes one away."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, tensor in changes.items():
        key = f"model.layers.2.mlp.{name}.weight"
        del weights[key]
        weights |= {} if tensor is None else {key: tensor}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": DYNAMIC}, "rope_type 'dynamic' is not supported; supported: default"),
        ({"rope_parameters": None, "rope_scaling": DYNAMIC}, "rope_type 'dynamic' is not"),
        (SLIDING | {"layer_types": None}, "'sliding_attention'.*supported: full_attention"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a positive integer"),
        ({"hidden_size": "32"}, "'hidden_size' expected int, got str"),
    ],
)
def test_layers_that_ours_are_not(
    folder: Path, changes: dict[str, object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_target(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_mlp_biases(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    edit(tmp_path, mlp_bias=True)
    with pytest.raises(UserError, match="mlp_bias is True; supported: false"):
        load_target(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"up_proj": None, "gate_proj": None},
            r"2 keys are missing: model\.layers\.2\.mlp\.gate_proj\.weight, .*up_proj\.weight",
        ),
        ({"up_proj": torch.ones(5, 5)}, r"shape \[5, 5\], config\.json says \[64, 32\]"),
        (
            {"up_proj": torch.full((64, 32), torch.nan)},
            r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinity",
        ),
    ],
)
def test_weights_that_are_not_there(
    folder: Path,
    changes: dict[str, torch.Tensor | None],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """transformers makes up what a file lacks, at random, and tells it on stderr."""
    replace_weights(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_target(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_tied_head_is_not_missing(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop("lm_head.weight", None)
    save_file(weights, path, metadata={"format": "pt"})
    edit(folder, tie_word_embeddings=True)
    target = load_target(str(folder))
    assert target.lm_head.weight is target.embed_tokens.weight
