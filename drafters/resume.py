"""What made the parts that a stopped run left: only the same may go on with them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drafters.checkpoint import find
from drafters.errors import UserError, naming
from drafters.prompts import rows
from drafters.provenance import weights_hash
from drafters.target import resolve


def models(target: str, drafter: str = "") -> dict[str, str]:
    """``target``, and ``drafter`` if there is one, told by their weights."""
    made = {"target": _told(target, Path(resolve(target)))}
    if drafter:
        made["drafter"] = drafter if drafter == "ngram" else _told(drafter, find(drafter))
    return made


def _told(name: str, folder: Path) -> str:
    """Name and SHA-256 of a model's weights; the name as given where ``folder`` has none."""
    digest = weights_hash(folder)
    return f"{Path(name).name} (SHA-256 {digest[:12]})" if digest else name


def digest(value: object) -> str:
    """Part of the SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:20]


def claim(path: Path, made_by: Mapping[str, Any]) -> None:
    """Note in ``path`` what makes the parts that will lie beside it.

    UserError where they were made by something else, or by an earlier version, which did not note
    it. Several processes may share a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [p for p in path.parent.iterdir() if p != path and p.suffix != ".tmp"]
    if parts or path.exists():
        check_same(noted(path), made_by, path.parent)
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with naming(path):
        temporary.write_text(json.dumps(made_by) + "\n")
        os.replace(temporary, path)


def noted(path: Path) -> dict[str, Any]:
    """What ``claim`` noted in ``path``; nothing where that is absent or empty."""
    return next((row for _, row in rows(path)), {}) if path.exists() else {}


def check_same(before: object, now: Mapping[str, Any], where: Path) -> None:
    """UserError names the first thing of ``now`` that was another when ``where`` was made."""
    if not isinstance(before, dict) or not before.keys() >= now.keys():
        raise UserError(
            f"{where} does not say what made it, as in earlier versions; write elsewhere or remove"
            " it"
        )
    for name, value in now.items():
        if before[name] != value:
            raise UserError(
                f"{where} was made with {name} {before[name]}, not {value}; give what was given"
                " then, write elsewhere or remove it"
            )


def read_part(path: Path) -> dict[str, np.ndarray] | None:
    """Columns of an ``.npz`` file; None where there is none that can be read."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return dict(stored)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile):
        return None
