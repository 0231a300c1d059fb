"""Drafter checkpoints: a folder of ``config.json`` and ``model.safetensors`` in DeepSpec's format
(or ``model.safetensors.index.json`` and the parts that it names).

Read: DSpark (vanilla, gated, rnn heads), DFlash and Eagle3 for Qwen3 targets, and our own. Ours may
add one key: ``shares_target_embeddings`` leaves the frozen embedding and output head out of the
file (they are the target's, 57 MB in bf16) and takes them from the target at loading;
``save_pretrained(folder, whole=True)`` writes them too, as DeepSpec does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drafters.block import BlockDrafter
from drafters.config import DraftConfig, config_json, read_config
from drafters.eagle3 import Eagle3Drafter
from drafters.errors import UserError
from drafters.module import DraftModule
from drafters.mtp import MTPDrafter
from drafters.ngram import NgramDrafter
from drafters.target import HUB_ID, Target, check_finite
from gpu_traces.files import replacing

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHARED = ("embed_tokens.weight", "lm_head.weight")
SHIPPED = Path(__file__).parent / "checkpoints"
FAMILIES: dict[str, type[DraftModule]] = {
    "dspark": BlockDrafter,
    "dflash": BlockDrafter,
    "eagle3": Eagle3Drafter,
    "mtp": MTPDrafter,
}


def load(source: Path | str, target: Target | None = None) -> DraftModule | NgramDrafter:
    """A drafter from a folder, the name of one that ships, or a hub id; frozen, in eval mode.

    ``"ngram"`` is prompt lookup, which has no weights and needs ``target`` for its vocabulary.

    Without ``target`` the weights keep the file's type (of several the widest) and sit on the CPU;
    with it they take its type and device, and the two are checked against each other. UserError,
    one line, for anything that cannot be used; a checkpoint that leaves its embeddings out needs
    its target.
    """
    if source == "ngram":
        return _prompt_lookup(target)
    folder = find(str(source))
    config = read_config(folder / CONFIG)
    if target is not None:
        check_target(config, target, str(source))
    elif config.shares_target_embeddings:
        raise UserError(f"{source} takes its embeddings from the target; load it with target=...")
    with torch.device("meta"):
        drafter = FAMILIES[config.family](config)
    weights = _read_weights(folder)
    stored = {name: tensor.dtype for name, tensor in weights.items()}
    if config.shares_target_embeddings and target is not None:
        weights |= {name: target.get_parameter(name) for name in SHARED}
    _check_weights(weights, drafter.state_dict(), str(folder / WEIGHTS))
    if target is None:
        widest = reduce(torch.promote_types, stored.values())
        weights = {name: tensor.to(widest) for name, tensor in weights.items()}
    else:
        like = target.norm.weight
        weights = {name: tensor.to(like) for name, tensor in weights.items()}
    drafter.load_state_dict(weights, assign=True)
    if config.markov_rank:
        drafter.markov_head.lay_out()
    drafter.stored_types = stored
    return drafter.requires_grad_(False).eval()


def _prompt_lookup(target: Target | None) -> NgramDrafter:
    if target is None:
        raise UserError("ngram takes its vocabulary from the target; load it with target=...")
    return NgramDrafter(target.vocab_size, device=target.norm.weight.device)


def check_target(config: DraftConfig, target: Target, name: str) -> None:
    """UserError where a drafter was not made for this target: sizes, vocabulary, layers."""
    size, vocabulary = target.shape.hidden_size, target.vocab_size
    if config.shape.hidden_size != size:
        raise UserError(f"{name}: hidden size {config.shape.hidden_size}, the target has {size}")
    if config.vocab_size != vocabulary:
        raise UserError(f"{name}: vocabulary {config.vocab_size}, the target has {vocabulary}")
    if config.num_target_layers not in (0, target.num_layers):
        raise UserError(
            f"{name}: made for a target of {config.num_target_layers} layers, this one has"
            f" {target.num_layers}"
        )
    beyond = [i for i in config.target_layer_ids if not -1 <= i < target.num_layers]
    if beyond:
        raise UserError(
            f"{name}: target layers {beyond} do not exist;"
            f" the target has -1..{target.num_layers - 1}"
        )


def find(source: str) -> Path:
    """The folder of a drafter: given, shipped under that name, or fetched from the hub."""
    shipped = ", ".join(sorted(p.name for p in SHIPPED.glob("*/"))) or "none ships"
    if not source.strip():
        raise UserError(f"no drafter named; give a folder, one that ships ({shipped}) or a hub id")
    for folder in (Path(source), SHIPPED / source):
        if folder.is_dir():
            return folder
    if not HUB_ID.fullmatch(source):
        raise UserError(
            f"no drafter {source!r}: not a folder, not one that ships ({shipped}), no hub id"
            " OWNER/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = [CONFIG, INDEX, "model*.safetensors"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"no drafter {source!r}: not a folder, not one that ships ({shipped}), and the hub"
            f" gave none ({reason})"
        ) from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint that is one file or several."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file() or not index.is_file():
        return _read_file(whole)
    weights: dict[str, Tensor] = {}
    for part in _parts(index):
        weights |= _read_file(folder / part)
    return weights


def _parts(index: Path) -> list[str]:
    """Names of the files that hold the weights."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        return sorted({str(part) for part in places.values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} names no weight files ({type(error).__name__}: {error}); its weight_map must"
            " give the file of each weight"
        ) from None


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; a drafter folder holds config.json and weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None


def _check_weights(found: dict[str, Tensor], wanted: dict[str, Tensor], path: str) -> None:
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise UserError(f"{path}: {len(missing)} keys are missing: {', '.join(missing)}")
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} keys do not belong to what config.json says: "
            + ", ".join(unknown)
        )
    for name, tensor in found.items():
        if tensor.dtype not in FLOATS:
            allowed = ", ".join(str(dtype) for dtype in FLOATS)
            raise UserError(f"{path}: {name} has type {tensor.dtype}; allowed: {allowed}")
    check_finite(found, path)
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {list(found[name].shape)},"
                f" config.json says {list(tensor.shape)}"
            )


def save_drafter(
    drafter: DraftModule,
    folder: Path,
    shares: bool = True,
    dtype: torch.dtype | None = torch.bfloat16,
) -> None:
    """Write a checkpoint by renames, once both of its files are whole; ``shares`` leaves the
    embeddings out.

    ``dtype`` None gives every tensor the type of the file it came from, or its own.
    """
    with storing(folder, WEIGHTS, CONFIG) as (weights, config):
        write_drafter(drafter, weights, config, shares, dtype)


def write_drafter(
    drafter: DraftModule,
    weights_path: Path,
    config_path: Path,
    shares: bool = True,
    dtype: torch.dtype | None = torch.bfloat16,
) -> None:
    """The two files of ``save_drafter``, written where they are."""
    stored = drafter.stored_types
    weights = {
        name: tensor.detach().to(dtype or stored.get(name, tensor.dtype)).contiguous().cpu()
        for name, tensor in drafter.state_dict().items()
        if not (shares and name in SHARED)
    }
    if len({w.data_ptr() for w in weights.values()}) < len(weights):  # a tied head: store both
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    types = {str(w.dtype).removeprefix("torch.") for w in weights.values()}
    made = config_json(drafter.config, shares, types)
    config_path.write_text(json.dumps(made, indent=2) + "\n")
    save_file(weights, weights_path, metadata={"format": "pt"})
    weights_path.chmod(config_path.stat().st_mode)  # safetensors lets only the owner read


@contextmanager
def storing(folder: Path, *names: str) -> Iterator[list[Path]]:
    """Files to write to, which take the places of those ``names`` of ``folder`` once all are whole.

    UserError when that fails, with the room on the disk, because torch does not say that it is
    full; what the folder held is kept.
    """
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(replacing(folder / name)) for name in names]
    except (OSError, RuntimeError, SafetensorError) as error:
        above = next(p for p in (folder / names[0]).absolute().parents if p.exists())
        free_mb = shutil.disk_usage(above).free / 1e6
        raise UserError(
            f"{folder}: {', '.join(names)} could not be written ({str(error).splitlines()[0]};"
            f" {free_mb:,.0f} MB free there); what it held before is kept"
        ) from None
