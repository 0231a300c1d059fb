"""Run folders: records, summary and provenance, written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpu_traces.files import can_hold
from sim.records import Records

PACKAGES = ("dspark-lab", "numpy", "numba", "pandas", "pyarrow", "simpy", "scipy")


class RunFolder:
    """Collects the tables of several policies; each table has a ``policy`` column."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add(self, label: str, records: Records) -> None:
        """Append one policy's records to every table."""
        for name, frame in records.tables().items():
            codes = np.zeros(len(frame), dtype=np.int8)
            policy = pd.Categorical.from_codes(codes, pd.Index([label]))
            table = pa.Table.from_pandas(frame.assign(policy=policy), preserve_index=False)
            table = table.cast(_plain_policy(table.schema))
            if name not in self._writers:
                path = self.folder / f"{name}.parquet"
                self._writers[name] = pq.ParquetWriter(path, table.schema, compression="zstd")
            self._writers[name].write_table(table)

    def close(self, documents: dict[str, Any]) -> None:
        """Finish the tables and write ``<name>.json`` for each document."""
        for writer in self._writers.values():
            writer.close()
        for name, document in documents.items():
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps(document, indent=1, default=str) + "\n")


def _plain_policy(schema: pa.Schema) -> pa.Schema:
    at = schema.get_field_index("policy")
    return schema.set(at, pa.field("policy", pa.dictionary(pa.int32(), pa.string())))


@contextmanager
def run_folder(target: Path) -> Iterator[RunFolder]:
    """A folder that appears at ``target`` only when the block ends without an error.

    A folder that an earlier run left there is replaced; anything else is refused (ValueError).
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield RunFolder(scratch)
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuse a target that exists and is not a run folder."""
    can_hold(target)
    if target.exists() and not (target / "provenance.json").is_file():
        if target.is_dir() and not any(target.iterdir()):
            return
        raise ValueError(f"--out {target}: exists and is not a run folder; choose another place")


def provenance(seed: int, **more: Any) -> dict[str, Any]:
    """How to make this run again: command, versions, commit, machine, seed."""
    return {
        "argv": sys.argv,
        "seed": seed,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        **more,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(*words: str) -> str:
    """Output of a git command in the source tree; empty outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
