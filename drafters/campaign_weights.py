"""A target's files in parts, for a machine without network, and the target from them.

The parts hold the pinned GGUF file and the small files of a fetched folder (configuration,
tokenizer). Joined, they give the folder that ``drafters.fetch`` makes, byte for byte.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from drafters import fetch
from drafters.campaign_gguf import llama_weights
from drafters.campaign_pack import read_parts, write_parts
from drafters.errors import UserError

WEIGHTS = "model.safetensors"


def split_target(name: str, out: Path, part_mib: float) -> list[Path]:
    """Write the parts of a fetchable target; downloads what is not here yet."""
    folder = fetch.fetch(name)
    small = [(path, path.name) for path in folder.iterdir() if path.name != WEIGHTS]
    with tempfile.TemporaryDirectory() as work:
        gguf = fetch.download_gguf(fetch.MODELS[name], Path(work))
        return write_parts([*small, (gguf, gguf.name)], out, name, part_mib)


def join_target(name: str, parts: list[Path]) -> Path:
    """The folder of target ``name`` in the cache, made from its parts unless it is there.

    UserError for an unknown name, a missing part or a file that is not the pinned one.
    """
    if name not in fetch.MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(sorted(fetch.MODELS))}")
    folder = fetch.cache_dir() / name
    if (folder / WEIGHTS).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        fresh = Path(work) / "model"
        gguf = _pinned(name, read_parts(parts, fresh))
        print(f"dequantising {gguf.name} (once) ...", file=sys.stderr)
        weights = {key: torch.from_numpy(value) for key, value in llama_weights(gguf).items()}
        save_file(weights, fresh / WEIGHTS, metadata={"format": "pt"})
        gguf.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


def _pinned(name: str, files: list[Path]) -> Path:
    """The GGUF file among ``files``, checked against what is pinned."""
    wanted = fetch.MODELS[name]
    gguf = next((path for path in files if path.name == Path(wanted.member).name), None)
    if gguf is None:
        raise UserError(f"the parts hold no {Path(wanted.member).name}")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wanted.gguf_sha256:
        raise UserError(f"{gguf.name} has SHA-256 {digest}, expected {wanted.gguf_sha256}")
    return gguf
