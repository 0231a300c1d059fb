"""Checkpoints: what was written is read back bit for bit, and nothing wrong is ever loaded."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import drafters
from drafters import checkpoint
from drafters.checkpoint import save_drafter
from drafters.errors import UserError
from drafters.target import Target
from tests.drafters.families import FAMILIES, features_of, tiny_drafter, tiny_target

TARGET = tiny_target()


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole DSpark checkpoint in fp32."""
    save_drafter(tiny_drafter("dspark", TARGET), tmp_path, shares=False, dtype=None)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family: str, tmp_path: Path) -> None:
    """fp32, embeddings included; then written again from what was read: the same bytes."""
    drafter = tiny_drafter(family, TARGET)
    save_drafter(drafter, tmp_path / "a", shares=False, dtype=None)
    again = drafters.load(tmp_path / "a")
    assert again.config == drafter.config
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in drafter.state_dict().items())
    again.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tokens = torch.arange(9)
    features = features_of(TARGET, drafter, tokens[None])
    ours, theirs = (d.draft_logits(features, tokens, 8) for d in (again, drafter))
    # Products of equal numbers round by where their arrays lie in memory.
    torch.testing.assert_close(ours.logits, theirs.logits)


@pytest.mark.parametrize("family", ["rnn", "eagle3"])
def test_shared_embeddings_come_from_the_target(family: str, tmp_path: Path) -> None:
    drafter = tiny_drafter(family, TARGET)
    save_drafter(drafter, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not stored.keys() & {"embed_tokens.weight", "lm_head.weight"}
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    again = drafters.load(tmp_path, TARGET)
    assert again.lm_head.weight.data_ptr() == TARGET.lm_head.weight.data_ptr()
    assert again.norm.weight.dtype == torch.float32
    with pytest.raises(UserError, match="load it with target="):
        drafters.load(tmp_path)


LAYER = {
    *(f"self_attn.{name}_proj" for name in "qkvo"), "self_attn.q_norm", "self_attn.k_norm",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
}  # fmt: skip
COMMON = {"embed_tokens.weight", "lm_head.weight", "fc.weight", "norm.weight"}
BLOCK = COMMON | {"hidden_norm.weight"} | {f"layers.{i}.{n}.weight" for i in (0, 1) for n in LAYER}
DSPARK = BLOCK | {
    "markov_head.markov_w1.weight", "markov_head.markov_w2.weight",
    "confidence_head.proj.weight", "confidence_head.proj.bias",
}  # fmt: skip
DEEPSPEC = {
    "dspark": DSPARK,
    "gated": DSPARK | {f"markov_head.gate_proj.{n}" for n in ("weight", "bias")},
    "rnn": DSPARK | {f"markov_head.joint_proj.{n}" for n in ("weight", "bias")},
    "dflash": BLOCK,
    "eagle3": COMMON | {f"layers.0.{n}.weight" for n in (*LAYER, "hidden_norm")},
}
"""Names of the weights in DeepSpec's files, of two block layers or Eagle3's one."""


@pytest.mark.parametrize("family", DEEPSPEC)
def test_a_whole_file_needs_no_target_and_is_deepspecs(family: str, tmp_path: Path) -> None:
    save_drafter(tiny_drafter(family, TARGET), tmp_path / "lean")
    lean = drafters.load(tmp_path / "lean", TARGET)
    lean.save_pretrained(tmp_path / "whole", whole=True)
    whole = drafters.load(tmp_path / "whole")
    tokens = torch.arange(9)
    features = features_of(TARGET, lean, tokens[None])
    ours, theirs = (d.draft_logits(features, tokens, 8) for d in (whole, lean))
    torch.testing.assert_close(ours.logits, theirs.logits)
    assert load_file(tmp_path / "whole" / "model.safetensors").keys() == DEEPSPEC[family]
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("lean", "whole")]
    assert configs[1] | {"shares_target_embeddings": True} == configs[0]


def as_file(folder: Path, *types: torch.dtype) -> dict[str, torch.Tensor]:
    """Store the weights of a checkpoint in ``types`` by turns, as its config says of the first."""
    path = folder / "model.safetensors"
    weights = {
        name: tensor.to(types[i % len(types)])
        for i, (name, tensor) in enumerate(sorted(load_file(path).items()))
    }
    save_file(weights, path)
    edit(folder, dtype=str(types[0]).removeprefix("torch."))
    return weights


@pytest.mark.parametrize("types", [(torch.bfloat16,), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("target", [TARGET, None], ids=["target", "alone"])
def test_saved_in_the_types_of_the_file(
    folder: Path, types: tuple[torch.dtype, ...], target: Target | None
) -> None:
    """Also where it is computed in another: an fp32 target's, or the widest of the file's."""
    weights = as_file(folder, *types)
    drafters.load(folder, target).save_pretrained(folder / "again")
    again = load_file(folder / "again" / "model.safetensors")
    assert {n: t.dtype for n, t in again.items()} == {n: t.dtype for n, t in weights.items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    configs = [json.loads((f / "config.json").read_text()) for f in (folder, folder / "again")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_saved_config_names_the_type_that_is_stored(folder: Path, key: str) -> None:
    """DeepSpec copies the target's config, which may name another."""
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config | {key: "bfloat16"}))
    drafters.load(folder).save_pretrained(folder / "again")
    again = json.loads((folder / "again" / "config.json").read_text())
    assert again == config | {key: "float32"}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_another_type(family: str, tmp_path: Path) -> None:
    save_drafter(tiny_drafter(family, TARGET), tmp_path, shares=False, dtype=None)
    tokens = torch.arange(9)
    for stored, given in [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]:
        as_file(tmp_path, stored)
        drafter = drafters.load(tmp_path)
        features = features_of(TARGET, drafter, tokens[None]).to(given)
        ours = drafter.draft_logits(features, tokens, 8).logits
        assert torch.equal(ours, drafter.draft_logits(features.to(stored), tokens, 8).logits)


def test_a_file_of_several_types_is_computed_in_the_widest(folder: Path) -> None:
    as_file(folder, torch.bfloat16, torch.float32)
    drafter, tokens = drafters.load(folder), torch.arange(9)
    assert {p.dtype for p in drafter.parameters()} == {torch.float32}
    drafter.draft_logits(features_of(TARGET, drafter, tokens[None]), tokens, 8)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
@pytest.mark.parametrize("target", [TARGET, None], ids=["target", "alone"])
def test_types_that_cannot_be_computed(
    folder: Path, dtype: torch.dtype, target: Target | None
) -> None:
    as_file(folder, dtype)
    with pytest.raises(UserError, match=f"confidence_head.proj.bias has type {dtype}; allowed: "):
        drafters.load(folder, target)


def split(folder: Path) -> Path:
    """Store the weights in two parts; the index."""
    weights = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts):
        save_file(dict(weights[i::2]), folder / part)
    index = folder / "model.safetensors.index.json"
    places = {name: parts[i % 2] for i, (name, _) in enumerate(weights)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_weights_in_parts(folder: Path) -> None:
    before = drafters.load(folder).state_dict()
    split(folder)
    after = drafters.load(folder).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_parts_that_are_not_there(folder: Path) -> None:
    index = split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors does not exist"):
        drafters.load(folder)
    for text in ("{", "[]", "{}", '{"weight_map": 5}'):
        index.write_text(text)
        with pytest.raises(UserError, match="index.json names no weight files") as caught:
            drafters.load(folder)
        assert "\n" not in str(caught.value)


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_drafter(tiny_drafter("dflash", TARGET), tmp_path)
    finally:
        os.umask(before)
    for name in ("config.json", "model.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_a_w2_that_is_changed_once_loaded_is_seen(folder: Path) -> None:
    """It lies by columns, as one row's bias reads it fastest, and is no copy."""
    drafter, tokens = drafters.load(folder), torch.arange(9)
    features = features_of(TARGET, drafter, tokens[None])
    w2 = drafter.markov_head.markov_w2.weight
    assert w2.t().is_contiguous()
    before = drafter.draft_logits(features, tokens, 8)
    w2.data.mul_(0)
    after = drafter.draft_logits(features, tokens, 8)
    torch.testing.assert_close(after.logits, drafter.lm_head(after.hidden))
    assert not torch.allclose(after.logits, before.logits)


def test_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
        drafters.load(folder)


def test_missing_keys_are_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["fc.weight"], weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, path)
    with pytest.raises(UserError, match=r"2 keys are missing: fc\.weight, layers\.1\.mlp\.up_proj"):
        drafters.load(folder)


def test_wrong_shape_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["norm.weight"] = torch.ones(5)
    save_file(weights, path)
    with pytest.raises(UserError, match=r"norm\.weight has shape \[5\], config\.json says \[32\]"):
        drafters.load(folder)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["confidence_head.proj.weight"][0, 3] = float("nan")
    save_file(weights, path)
    with pytest.raises(UserError, match=r"confidence_head\.proj\.weight holds NaN or infinity"):
        drafters.load(folder)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_keeps_the_last_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The three ways in which Python, safetensors and torch tell it; half a file is removed."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(weights: dict[str, torch.Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"could not be written \(.*MB free there\)") as caught:
        save_drafter(tiny_drafter("dspark", TARGET, seed=2), folder, shares=False)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_keys_of_another_head_are_refused(folder: Path) -> None:
    """A gated checkpoint read as a vanilla one would give wrong logits in silence."""
    save_drafter(tiny_drafter("gated", TARGET), folder, shares=False, dtype=None)
    edit(folder, markov_head_type="vanilla")
    with pytest.raises(UserError, match=r"2 keys do not belong .*gate_proj"):
        drafters.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"markov_head_type": "lstm"}, "'lstm' is unknown; known: vanilla, gated, rnn"),
        ({"model_type": "gemma3"}, "'gemma3' is not supported; supported: llama, qwen3"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "'Qwen3ForCausalLM' is unknown; known: "),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ({"vocab_size": 41}, r"embed_tokens.weight has shape \[40, 32\]"),
        ({"num_attention_heads": "four"}, "'four'; it must be a positive integer"),
        ({"rope_scaling": {"type": "yarn"}}, "factor is None; it must be a positive number"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; it must be an object or null"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0; it must be a number above 1"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        ({"layer_types": ["sliding_attention"] * 2}, "supported: full_attention in every layer"),
        (
            {"use_sliding_window": True, "sliding_window": 128, "layer_types": None},
            "use_sliding_window is true; supported: false",
        ),
        (
            {"architectures": "Qwen3DSparkModel"},
            r"architectures is 'Qwen3DSparkModel'; it must be a list, as \[",
        ),
        ({"architectures": 5}, "architectures is 5; it must be a list"),
        ({"architectures": [5]}, "architecture '5' is unknown; known: "),
        ({"mask_token_id": 40}, r"mask_token_id is 40; it must be an integer, 0\.\.39"),
        ({"mask_token_id": None}, r"mask_token_id is None; it must be an integer, 0\.\.39"),
        ({"block_size": "7"}, "block_size is '7'; it must be a positive integer"),
        ({"block_size": 0}, "block_size is 0; it must be a positive integer"),
        ({"block_size": True}, "block_size is True; it must be a positive integer"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; it must be a positive integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None; it must be a positive integer"),
        ({"markov_rank": -1}, "markov_rank is -1; it must be an integer, 0 or more"),
        ({"markov_rank": "16"}, "markov_rank is '16'; it must be an integer, 0 or more"),
        ({"head_dim": "8"}, "head_dim is '8'; it must be a positive integer"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide 4 attention heads"),
        ({"num_target_layers": "3"}, "num_target_layers is '3'; it must be an integer, 0 or more"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; it must be a positive number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None; it must be a positive number"),
        ({"target_layer_ids": [1, "a"]}, r"\[1, 'a'\]; it must be a list of integers, -1 or more"),
        ({"target_layer_ids": [1, 3]}, r"is \[1, 3\]; num_target_layers 3 allows -1\.\.2"),
        ({"target_layer_ids": []}, r"target_layer_ids is \[\]; it must be a list of integers"),
        ({"enable_confidence_head": "false"}, "is 'false'; it must be true or false"),
        ({"confidence_head_with_markov": "no"}, "is 'no'; it must be true or false"),
        ({"shares_target_embeddings": "x"}, "is 'x'; it must be true or false"),
    ],
)
def test_bad_config(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        drafters.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "key"), [("eagle3", "ttt_length"), ("mtp", "mtp_depth")])
@pytest.mark.parametrize("depth", ["7", 0, None])
def test_bad_depth(family: str, key: str, depth: object, tmp_path: Path) -> None:
    save_drafter(tiny_drafter(family, TARGET), tmp_path, shares=False)
    edit(tmp_path, **{key: depth})
    with pytest.raises(UserError, match=f"{key} is {depth!r}; it must be a positive integer"):
        drafters.load(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "null", "[" * 100_000])
def test_a_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: ") as caught:
        drafters.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        drafters.load(folder)


def test_missing_config_key_and_bad_json(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["block_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="key 'block_size' is missing"):
        drafters.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        drafters.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_layer_ids": [0, 7], "num_target_layers": None},
            r"target layers \[7\] do not exist; the target has -1..2",
        ),
        ({"num_target_layers": 12}, "made for a target of 12 layers, this one has 3"),
    ],
)
def test_other_target(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        drafters.load(folder, TARGET)


def test_other_vocabulary_or_size(folder: Path) -> None:
    with pytest.raises(UserError, match="vocabulary 40, the target has 41"):
        drafters.load(folder, tiny_target(41))


def test_absent_drafter(tmp_path: Path) -> None:
    """Neither a path nor a bare word is a hub id, so no network is asked."""
    with pytest.raises(UserError, match="no drafter named; give a folder, one that ships"):
        drafters.load("")
    with pytest.raises(UserError, match="no drafter 'nothing': not a folder, not one that ships"):
        drafters.load("nothing")
    with pytest.raises(UserError, match="no drafter .* not a folder, not one that ships"):
        drafters.load(str(tmp_path / "nothing here"))
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        drafters.load(tmp_path)


def test_bad_requests(folder: Path) -> None:
    drafter, tokens = drafters.load(folder, TARGET), torch.arange(6)
    features = features_of(TARGET, drafter, tokens[None])
    with pytest.raises(UserError, match="anchor position 0 with 6 input ids"):
        drafter.draft_logits(features, tokens, 0)
    with pytest.raises(UserError, match="the ids must reach position 7"):
        drafter.draft_logits(features, tokens, 4, teacher_forced=True)
    with pytest.raises(UserError, match=r"this drafter reads \[at least 5, 64\]"):
        drafter.draft_logits(features[:, :4], tokens, 5)
    with pytest.raises(UserError, match=r"target_features has shape \[2, 6, 64\]; it must have 2"):
        drafter.draft_logits(features.expand(2, -1, -1), tokens, 4)
    with pytest.raises(UserError, match=r"input_ids has shape \[2, 6\]; it must have 1"):
        drafter.draft_logits(features, tokens.expand(2, -1), 4)
    with pytest.raises(UserError, match=r"reach from 36 to 40; allowed: .*, 0\.\.39"):
        drafter.draft_logits(features, tokens + 36, 4)
    for ids in (tokens.float(), tokens > 2):
        with pytest.raises(UserError, match=f"input_ids of type {ids.dtype}; allowed: integers"):
            drafter.draft_logits(features, ids, 4)
    with pytest.raises(UserError, match="input_ids is a str; it must be a tensor"):
        drafter.draft_logits(features, "text", 4)
    right = drafter.draft_logits(features, tokens, 4).logits
    for ids in (tokens.tolist(), tokens.numpy(), tokens.short()):
        assert torch.equal(drafter.draft_logits(features.numpy(), ids, np.int64(4)).logits, right)
    for anchor in (4.0, True, None):
        with pytest.raises(UserError, match=f"anchor is {anchor}; it must be an int"):
            drafter.draft_logits(features, tokens, anchor)


def test_features_that_are_no_numbers_are_refused_where_they_are_read(folder: Path) -> None:
    drafter, tokens = drafters.load(folder, TARGET), torch.arange(6)
    features = features_of(TARGET, drafter, tokens[None])
    features[0, 4, 3] = float("nan")
    assert drafter.draft_logits(features, tokens, 4).logits.isfinite().all()
    with pytest.raises(UserError, match="hold NaN or infinity before position 5"):
        drafter.draft_logits(features, tokens, 5)
