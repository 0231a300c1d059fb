"""The campaign's self-check: what was recorded can be trusted and says where it was recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from drafters.generate import whole_lines
from gpu_traces.bundle import BundleError, read_bundle
from gpu_traces.manifest import Manifest


def check(out: Path) -> tuple[list[str], list[str]]:
    """(lines that say what is there, problems) of a campaign's folder.

    Every bundle and live run is read with all of the reader's checks; a bundle measured on a CPU
    must not name a GPU; no prompt may be in both halves; drafters must have learned something.
    """
    lines, problems = [], []
    for folder in bundle_folders(out):
        try:
            manifest = read_bundle(folder).manifest
        except BundleError as error:
            problems.append(str(error))
            continue
        rows = ", ".join(f"{info.rows} {name}" for name, info in manifest.files.items())
        lines.append(f"{folder.relative_to(out)}: {manifest.origin}; {rows}")
        problems += [f"{folder}: {problem}" for problem in _misnamed(manifest)]
    problems += _overlap(out / "responses")
    if not lines:
        problems.append(f"{out} holds no bundles")
    return lines, problems


def bundle_folders(out: Path) -> list[Path]:
    """Every bundle and live run below a campaign's folder, or below a folder of bundles."""
    return sorted(path.parent for path in out.rglob("manifest.json"))


def _misnamed(manifest: Manifest) -> Iterator[str]:
    if manifest.kind != "measured":
        yield f"kind {manifest.kind!r}, a campaign measures"
    if manifest.device == "cpu" and not manifest.hardware.startswith("CPU"):
        yield f"measured on a CPU but names {manifest.hardware!r}"
    if not manifest.hardware:
        yield "names no hardware"


def _overlap(responses: Path) -> list[str]:
    """Prompts that were answered for both halves."""
    keys = [
        {
            json.loads(line)["name"].split("/")[0]
            for line in whole_lines(responses / f"{half}.jsonl")
        }
        for half in ("train", "eval")
    ]
    both = keys[0] & keys[1]
    return [f"{responses}: {len(both)} prompts are in both halves"] if both else []
