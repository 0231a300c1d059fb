"""Stretched rotary positions against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import drafters
from drafters.checkpoint import save_drafter
from drafters.errors import UserError
from drafters.rope import Rope, rope_of
from drafters.target import load_target
from tests.drafters.live import VOCAB, block_drafter, save_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}
STRETCHED = {
    "linear": LINEAR,
    "llama3": LLAMA3,
    "llama3-as-released": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    "yarn": YARN,
    "qwen3-as-documented": YARN | {"original_max_position_embeddings": 32768},
    "yarn-whole": YARN | {"truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-gain": YARN | {"attention_factor": 0.8},
    "yarn-deepseek": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn-context": {k: v for k, v in YARN.items() if not k.startswith("original")},
}
EVERY = pytest.mark.parametrize("name", STRETCHED)


@EVERY
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_frequencies_are_those_of_transformers(name: str, head_dim: int) -> None:
    given = STRETCHED[name]
    config = LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim,
        max_position_embeddings=4096, rope_parameters=dict(given),
    )  # fmt: skip
    wanted, gain = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, torch.device("cpu"))
    rope = rope_of({"rope_parameters": given, "max_position_embeddings": 4096})
    cos, sin = rope.table(torch.arange(40), head_dim)
    angles = torch.arange(40)[:, None] * torch.cat((wanted, wanted))
    torch.testing.assert_close(cos, angles.cos() * gain, rtol=0, atol=1e-5)
    torch.testing.assert_close(sin, angles.sin() * gain, rtol=0, atol=1e-5)
    plain, _ = Rope(given["rope_theta"]).table(torch.arange(40), head_dim)
    assert (cos - plain).abs().max() > 1e-4


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@EVERY
def test_a_stretched_target_computes_as_transformers_does(
    tmp_path: Path, architecture: str, name: str
) -> None:
    """Logits of 200 tokens, about three times the context that most were stretched from."""
    model = save_model(tmp_path, architecture, rope_parameters=dict(STRETCHED[name]))
    target = load_target(str(tmp_path), torch.float32)
    tokens = torch.randint(VOCAB, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(tokens).logits
        out = target(tokens, torch.arange(200).expand_as(tokens))
        torch.testing.assert_close(target.lm_head(out.hidden), wanted, rtol=0, atol=1e-4)


@EVERY
def test_a_drafter_of_a_stretched_target_is_stretched(tmp_path: Path, name: str) -> None:
    """Also after it was written and read."""
    save_model(tmp_path / "target", rope_parameters=dict(STRETCHED[name]))
    target = load_target(str(tmp_path / "target"), torch.float32)
    drafter = block_drafter(target)
    save_drafter(drafter, tmp_path / "drafter")
    again = drafters.load(str(tmp_path / "drafter"), target)
    assert again.config.shape == drafter.config.shape
    assert again.config.shape.rope == target.shape.rope != Rope(target.shape.rope.theta)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "dynamic"}, "rope_type 'dynamic' is not supported; supported: default, lin"),
        ({"factor": None}, "factor is None; it must be a positive number"),
        ({"factor": -1}, "factor is -1; it must be a positive number"),
        ({"low_freq_factor": 4.0}, "low_freq_factor is not below high_freq_factor: 4, 4"),
        ({"high_freq_factor": None}, "high_freq_factor is None; it must be a positive number"),
        ({"original_max_position_embeddings": True}, "original_max_position_embeddings is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1"),
        ({"rope_theta": "10k"}, "rope_theta is '10k'; it must be a number above 1"),
        ({"rope_theta": 1}, "rope_theta is 1; it must be a number above 1"),
        ({"factor": 10**400}, "factor is 10*; it must be a positive number"),
        (
            {"full_attention": LLAMA3},
            r"differs by layer \(full_attention\)",
        ),
    ],
)
def test_values_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_of({"rope_parameters": LLAMA3 | changes})


def test_two_places_must_agree() -> None:
    """transformers takes the older name, others the newer one."""
    once = rope_of({"rope_parameters": YARN})
    assert rope_of({"rope_parameters": YARN, "rope_scaling": YARN}) == once
    plain = {"rope_theta": YARN["rope_theta"], "rope_type": "default"}
    assert rope_of({"rope_parameters": plain, "rope_scaling": YARN}) == once
    with pytest.raises(ValueError, match="stretch differently; give one of them"):
        rope_of({"rope_parameters": LINEAR, "rope_scaling": YARN})
    with pytest.raises(ValueError, match="partial_rotary_factor is 0.25"):
        rope_of({"rope_theta": 1e4, "partial_rotary_factor": 0.25})


def test_a_target_whose_rope_lacks_a_value(tmp_path: Path) -> None:
    save_model(tmp_path)
    path = tmp_path / "config.json"
    lacking = {k: v for k, v in YARN.items() if k != "factor"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": lacking}))
    with pytest.raises(UserError, match="Missing required keys.*factor") as caught:
        load_target(str(tmp_path))
    assert "\n" not in str(caught.value)
