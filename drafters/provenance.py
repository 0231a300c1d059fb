"""The manifest of what a command measured: models, machine, versions, command, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from drafters.checkpoint import CONFIG, find
from drafters.config import read_config
from drafters.shapes import DRAFTER_SHAPE
from drafters.target import resolve
from gpu_traces.manifest import Manifest


def measured(
    out: Path, target: str, drafter: str, device: str, hardware: str = "", **rest: Any
) -> Manifest:
    """A manifest of kind ``measured``; ``rest`` are its further fields, at least ``gamma``,
    ``command`` and ``seed``. ``hardware`` empty: detected."""
    has_weights = drafter not in ("", "ngram") and not DRAFTER_SHAPE.fullmatch(drafter)
    told = _drafter(find(drafter)) if has_weights else {"drafter_sha256": ""}
    return Manifest(
        name=out.name,
        kind="measured",
        hardware=hardware or hardware_name(device),
        device=device.split(":")[0],
        driver=driver_version(device),
        target=target,
        target_sha256=weights_hash(Path(resolve(target))),
        drafter=Path(drafter).name,
        **told,
        versions={p: version(p) for p in ("torch", "transformers", "numpy")},
        commit=git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **{"temperatures": (), "domains": (), **rest},
    )


def _drafter(folder: Path) -> dict[str, Any]:
    """What a manifest says of a drafter with weights."""
    config = read_config(folder / CONFIG)
    return {
        "drafter_sha256": weights_hash(folder),
        "drafter_family": config.family,
        "drafter_layers": config.num_layers,
    }


def weights_hash(folder: Path) -> str:
    """SHA-256 of a model folder's weights; empty where it holds none (a hub id)."""
    path = folder / "model.safetensors"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hardware_name(device: str) -> str:
    """The machine as it is printed beside every number measured on it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''} of {cpu}"


def driver_version(device: str) -> str:
    """The NVIDIA driver; empty off CUDA and where it does not tell."""
    if not device.startswith("cuda"):
        return ""
    return _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def git_commit() -> str:
    """The commit of this code; outside a checkout ``$DSPARK_LAB_COMMIT``, or nothing."""
    return _said_by("git", "rev-parse", "HEAD") or os.environ.get("DSPARK_LAB_COMMIT", "")


def _said_by(*command: str) -> str:
    """First line of a command's output; empty where it fails or is not installed."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()
