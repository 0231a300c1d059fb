"""Trace bundles: a folder of Parquet tables and a manifest, written whole, read with suspicion."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpu_traces.calibration import calibrate
from gpu_traces.files import can_hold
from gpu_traces.fit import FitReport, fit_latency
from gpu_traces.latency import LatencyModel
from gpu_traces.manifest import (
    ENCODINGS,
    BundleError,
    Calibration,
    FileInfo,
    Manifest,
    check_manifest,
    load_manifest,
)
from gpu_traces.schema import TABLES, AcceptanceTraces
from gpu_traces.tables import (
    DEFAULT_ENCODINGS,
    Columns,
    build_table,
    check_values,
    column,
    read_table,
    vector,
)

DATA = Path(__file__).parent / "data"

__all__ = [
    "Bundle",
    "BundleError",
    "Calibration",
    "Manifest",
    "check_place",
    "default_bundle",
    "list_bundles",
    "read_bundle",
    "write_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle in memory. Tables decode on first use and are then kept."""

    folder: Path
    manifest: Manifest
    tables: dict[str, pa.Table]

    @property
    def name(self) -> str:
        return self.manifest.name

    @cached_property
    def traces(self) -> AcceptanceTraces:
        """Acceptance with calibrated confidences; BundleError for a latency-only bundle."""
        if "anchors" not in self.tables:
            raise BundleError(f"{self.folder}: latency only, it has no anchors to replay")
        return _traces(self)

    @cached_property
    def raw_confidence(self) -> npt.NDArray[np.float32]:
        """[A, gamma] head output before calibration."""
        return vector(self.tables["anchors"], "confidence", self.manifest.gamma)

    @cached_property
    def responses(self) -> pd.DataFrame:
        return self._frame("responses")

    @cached_property
    def steps(self) -> pd.DataFrame:
        return self._frame("steps")

    @cached_property
    def latency_fit(self) -> tuple[LatencyModel, FitReport]:
        """This bundle's latency model and its error on held-out shapes."""
        gamma = self.manifest.gamma
        return fit_latency(self.steps, name=self.name, origin=self.manifest.origin, gamma=gamma)

    @property
    def latency(self) -> LatencyModel:
        return self.latency_fit[0]

    @cached_property
    def live_steps(self) -> pd.DataFrame | None:
        return self._frame("live_steps") if "live_steps" in self.tables else None

    @cached_property
    def live_requests(self) -> pd.DataFrame | None:
        return self._frame("live_requests") if "live_requests" in self.tables else None

    def _frame(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise BundleError(f"{self.folder}: has no {name} table")
        frame: pd.DataFrame = self.tables[name].to_pandas()
        return frame


def write_bundle(
    folder: Path | str,
    manifest: Manifest,
    tables: Mapping[str, Columns],
    *,
    encodings: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    force: bool = False,
) -> Manifest:
    """Check and write a bundle; the folder appears whole or not at all. Returns the full manifest.

    ``tables``: table name -> columns (see ``schema.TABLES``). ``encodings``: probability-vector
    column -> one of ``manifest.ENCODINGS``. ``texts``: file name -> content of what lies beside the
    tables. An existing folder is refused unless ``force``. BundleError where the disk is full.
    """
    folder = Path(folder)
    check_place(folder, force)
    check_manifest(manifest, "manifest")
    unknown = tables.keys() - TABLES.keys()
    if unknown:
        raise BundleError(f"unknown tables {sorted(unknown)}; known: {', '.join(TABLES)}")
    coding = {**DEFAULT_ENCODINGS, **(encodings or {})}
    if not set(coding.values()) <= ENCODINGS.keys():
        raise BundleError(f"encodings {coding}; known: {', '.join(ENCODINGS)}")
    built = {
        name: build_table(name, columns, manifest.gamma, coding) for name, columns in tables.items()
    }
    check_values(manifest, built, "bundle")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = temporary.with_suffix(".old")
    try:
        written = _write(temporary, manifest, built, coding)
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    except OSError as error:
        reason = error.strerror or error
        raise BundleError(f"{folder} could not be written ({reason}); nothing is left") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return written


def check_place(folder: Path, force: bool = False) -> None:
    """BundleError where no bundle can be written, before the work whose result it will hold.

    ``force`` allows an earlier bundle to be replaced, never another folder or file.
    """
    if folder.exists() and not force:
        raise BundleError(f"{folder}: exists; choose another folder or overwrite with --force")
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise BundleError(f"{folder}: exists and is not a bundle; choose another folder")
    try:
        can_hold(folder)
    except ValueError as error:
        raise BundleError(str(error)) from None


def _write(
    folder: Path, manifest: Manifest, tables: Mapping[str, pa.Table], coding: Mapping[str, str]
) -> Manifest:
    folder.mkdir(parents=True)
    files = {}
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=9)
        files[name] = FileInfo(table.num_rows, _sha256(path))
    stored = {f"anchors.{c}": f"{e}: {ENCODINGS[e]}" for c, e in coding.items()}
    full = replace(manifest, files=files, encodings=stored if "anchors" in tables else {})
    (folder / "manifest.json").write_text(full.dump())
    return full


def read_bundle(path_or_name: Path | str, temperature: float | None = None) -> Bundle:
    """Read and check a bundle: a folder, or the name of one that ships with the package.

    ``temperature`` keeps the responses sampled at it (and their anchors). Raises BundleError,
    one line naming file, column and row, for anything that cannot be trusted.
    """
    folder = find_bundle(path_or_name)
    manifest = load_manifest(folder)
    tables = {}
    for name, info in manifest.files.items():
        path = folder / f"{name}.parquet"
        if name not in TABLES:
            raise BundleError(f"{folder}/manifest.json: unknown table {name!r}")
        if not path.is_file():
            raise BundleError(f"{path}: missing, the manifest lists it")
        if _sha256(path) != info.sha256:
            raise BundleError(f"{path}: SHA-256 differs from the manifest's; damaged or edited")
        tables[name] = read_table(path, name, manifest.gamma)
        if tables[name].num_rows != info.rows:
            raise BundleError(f"{path}: {tables[name].num_rows} rows, manifest says {info.rows}")
    check_values(manifest, tables, str(folder))
    if temperature is not None:
        _keep_temperature(tables, temperature, manifest, folder)
    return Bundle(folder, manifest, tables)


def _keep_temperature(
    tables: dict[str, pa.Table], temperature: float, manifest: Manifest, folder: Path
) -> None:
    if "responses" not in tables:
        return
    keep = np.isclose(column(tables["responses"], "temperature"), temperature)
    if not keep.any():
        known = ", ".join(f"{t:g}" for t in manifest.temperatures)
        raise BundleError(f"{folder}: no responses at temperature {temperature:g}; it has {known}")
    anchors = np.maximum(column(tables["responses"], "response_tokens") - 1, 0)
    tables["responses"] = tables["responses"].filter(pa.array(keep))
    tables["anchors"] = tables["anchors"].filter(pa.array(np.repeat(keep, anchors)))


def find_bundle(path_or_name: Path | str) -> Path:
    """The folder meant by a path or a shipped name; BundleError lists the shipped ones."""
    path = Path(path_or_name)
    if path.is_dir():
        return path
    if path.name == str(path_or_name) and (DATA / path / "manifest.json").is_file():
        return DATA / path
    raise BundleError(
        f"no bundle {str(path_or_name)!r}: neither a folder nor one that ships"
        f" ({', '.join(list_bundles()) or 'none ships'})"
    )


def list_bundles() -> list[str]:
    """Names of the bundles that ship with the package, sorted."""
    return sorted(path.parent.name for path in DATA.glob("*/manifest.json"))


def default_bundle() -> str:
    """Name of the best shipped bundle: measured and replayable, on an H200 first, CPU last."""
    manifests = {name: load_manifest(DATA / name) for name in list_bundles()}
    usable = [
        n for n, m in manifests.items() if m.kind == "measured" and m.has_traces and m.has_steps
    ]
    if not usable:
        raise BundleError("no measured bundle with anchors and steps ships with the package")
    return min(usable, key=lambda name: _preference(manifests[name]))


def _preference(manifest: Manifest) -> tuple[bool, bool, bool, int, str]:
    """Sort key, best first: H200, another GPU, CPU; then DSpark; then anchors; then name."""
    return (
        "H200" not in manifest.hardware,
        manifest.device != "cuda",
        "dspark" not in manifest.drafter.lower(),
        -manifest.files["anchors"].rows,
        manifest.name,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _traces(bundle: Bundle) -> AcceptanceTraces:
    manifest, responses, anchors = (
        bundle.manifest,
        bundle.tables["responses"],
        bundle.tables["anchors"],
    )
    length = column(responses, "response_tokens")
    first = np.concatenate(([0], np.cumsum(np.maximum(length - 1, 0))))
    code = {name: i for i, name in enumerate(manifest.domains)}
    temperature = column(responses, "temperature")
    return AcceptanceTraces(
        name=manifest.name,
        origin=manifest.origin,
        gamma=manifest.gamma,
        domains=manifest.domains,
        request_id=column(responses, "request_id"),
        domain=np.array([code[d] for d in column(responses, "domain")], dtype=np.int16),
        temperature=temperature,
        prompt_tokens=column(responses, "prompt_tokens"),
        response_tokens=length,
        first_anchor=first.astype(np.int64),
        confidence=_calibrated(
            manifest, bundle.raw_confidence, np.repeat(temperature, np.diff(first))
        ),
        accepted=column(anchors, "accepted"),
        alpha=vector(anchors, "alpha", manifest.gamma),
        max_prob=vector(anchors, "max_prob", manifest.gamma),
    )


def _calibrated(
    manifest: Manifest, raw: npt.NDArray[np.float32], temperature: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Raw confidences [A, gamma] through the calibration of each row's own temperature [A]."""
    if not manifest.calibration:
        return raw.astype(np.float16).astype(np.float32)
    calibrated = np.empty_like(raw)
    for entry in manifest.calibration:
        rows = np.isclose(temperature, entry.temperature)
        calibrated[rows] = calibrate(raw[rows], entry.scales, entry.bias)
    return calibrated
