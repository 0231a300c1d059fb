"""``manifest.json`` of a trace bundle: what was recorded, where, when, with what; the hashes."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gpu_traces.schema import SCHEMA_VERSION, Origin

ENCODINGS = {
    "uint8": "round(255 p); absolute error at most 0.2 %",
    "levels32": "as uint8, but only 32 equally spaced levels; absolute error at most 1.8 %",
    "float16": "nearest half float; relative error at most 0.05 %",
    "float32": "nearest single float",
}


class BundleError(ValueError):
    """A bundle that cannot be trusted; one line naming file, column and row."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Raw confidences at one sampling temperature become sigmoid(logit(c) / scale_k + bias_k)."""

    temperature: float
    """Sampling temperature that it was fitted at."""
    method: str
    """``sts``, ``sts+bias`` or ``none``."""
    scales: tuple[float, ...]
    """[gamma] T_k > 0."""
    bias: tuple[float, ...]
    """[gamma] b_k; zeros for plain STS."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Rows and SHA-256 of one table file."""

    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle is. ``files`` and ``encodings`` are filled in by ``write_bundle``."""

    name: str
    kind: str
    """``measured`` or ``synthetic``; published numbers never come as a bundle."""
    hardware: str
    """The machine as it is to be printed, e.g. ``NVIDIA H200`` or ``CPU, 2 cores of a Xeon``."""
    device: str
    """``cuda`` or ``cpu``."""
    driver: str
    target: str
    """Model id of the target."""
    target_sha256: str
    drafter: str
    """Model id or family of the drafter; empty in a bundle without drafts."""
    drafter_sha256: str
    drafter_family: str = ""
    """``dspark``, ``eagle3``, ..; empty where it was not noted."""
    drafter_layers: int = 0
    """Draft layers; 0 where they were not noted."""
    gamma: int
    temperatures: tuple[float, ...]
    domains: tuple[str, ...]
    calibration: tuple[Calibration, ...] = ()
    """One per temperature, or none at all (confidences are then used as they are)."""
    versions: dict[str, str] = field(default_factory=dict)
    command: str
    seed: int
    commit: str
    created: str
    """ISO 8601."""
    notes: str = ""
    live: dict[str, Any] = field(default_factory=dict)
    """Of a live run, what it ran under: ``policy``, ``max_requests``, ``max_step_tokens``,
    ``kv_tokens`` (0: no limit), ``max_new`` and ``open_loop``."""
    schema_version: int = SCHEMA_VERSION
    encodings: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileInfo] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        if self.kind == "measured":
            return Origin("measured", self.hardware)
        return Origin("synthetic", self.command or self.name)

    @property
    def has_traces(self) -> bool:
        """False for a latency-only bundle (random weights: time is real, acceptance is not)."""
        return "anchors" in self.files

    @property
    def has_steps(self) -> bool:
        return "steps" in self.files

    def calibration_at(self, temperature: float) -> Calibration | None:
        """The calibration fitted at a sampling temperature; None for a bundle without any."""
        for entry in self.calibration:
            if abs(entry.temperature - temperature) < 1e-6:
                return entry
        return None

    def dump(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``; raises BundleError."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleError(f"{path}: missing; a bundle is a folder with manifest.json and Parquet")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path}: not JSON ({error})") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(f"{path}: schema_version {version!r}; this reader knows {SCHEMA_VERSION}")
    try:
        manifest = _from_json(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from None
    check_manifest(manifest, str(path))
    return manifest


def _from_json(raw: dict[str, Any]) -> Manifest:
    known = {f.name: f for f in fields(Manifest)}
    for name in raw.keys() - known.keys():
        raise ValueError(f"unknown field {name!r}")
    for name, entry in known.items():
        if name not in raw and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"missing field {name!r}")
    values = dict(raw)
    values["temperatures"] = tuple(float(t) for t in raw["temperatures"])
    values["domains"] = tuple(raw["domains"])
    values["calibration"] = tuple(
        Calibration(c["temperature"], c["method"], tuple(c["scales"]), tuple(c["bias"]))
        for c in raw.get("calibration", ())
    )
    values["files"] = {name: FileInfo(**info) for name, info in raw.get("files", {}).items()}
    return Manifest(**values)


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raise BundleError where the manifest contradicts itself; ``where`` names it."""
    if manifest.kind not in ("measured", "synthetic"):
        raise BundleError(f"{where}: kind {manifest.kind!r} must be measured or synthetic")
    if not isinstance(manifest.gamma, int) or not 0 <= manifest.gamma <= 127:
        raise BundleError(f"{where}: gamma {manifest.gamma!r} must be an integer 0..127")
    layers = manifest.drafter_layers
    if type(layers) is not int or layers < 0:
        raise BundleError(f"{where}: drafter_layers {layers!r} must be an integer, 0 or more")
    for entry in manifest.calibration:
        at = f"{where}: calibration at temperature {entry.temperature}"
        if len(entry.scales) != manifest.gamma or len(entry.bias) != manifest.gamma:
            raise BundleError(f"{at}: needs {manifest.gamma} scales and biases (gamma)")
        if not all(scale > 0 for scale in entry.scales):
            raise BundleError(f"{at}: scales must be positive, got {list(entry.scales)}")
    missing = [t for t in manifest.temperatures if manifest.calibration_at(t) is None]
    if manifest.calibration and missing:
        raise BundleError(f"{where}: no calibration for temperature {missing[0]}")
