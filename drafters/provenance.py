"""The manifest of what a command measured: models, machine, versions, command, commit."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drafters.target import resolve
from gpu_traces.manifest import Manifest


def measured(
    out: Path, target: str, drafter: str, device: str, hardware: str = "", **rest: Any
) -> Manifest:
    """A manifest of kind ``measured``; ``rest`` are its further fields, at least ``gamma``,
    ``command`` and ``seed``. ``hardware`` empty: detected."""
    from drafters import trace  # it records bundles with what this package measures

    return Manifest(
        name=out.name,
        kind="measured",
        hardware=hardware or trace.hardware_name(device),
        device=device.split(":")[0],
        driver=trace.driver_version(device),
        target=target,
        target_sha256=trace.weights_hash(Path(resolve(target))),
        drafter=drafter,
        drafter_sha256=trace.weights_hash(Path(drafter)) if drafter else "",
        versions={p: version(p) for p in ("torch", "transformers", "numpy")},
        commit=trace.git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **{"temperatures": (), "domains": (), **rest},
    )
