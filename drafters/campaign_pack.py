"""Folders as tar parts of a size that travels, and back.

``results.tar.00of03`` .. ``results.tar.02of03`` are one uncompressed tar, cut; Parquet and weights
are compressed as far as they go. A missing part shows in the names.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from drafters.errors import UserError

MIB = 2**20
_NAME = re.compile(r"(.+)\.tar\.(\d+)of(\d+)")


def write_parts(
    files: Iterable[tuple[Path, str]], out: Path, stem: str, part_mib: float
) -> list[Path]:
    """Write (file, name inside) as ``out/stem.tar.NNofMM`` of at most ``part_mib`` MiB each.

    Older parts of the same stem are replaced. UserError when there is nothing to write.
    """
    chosen = sorted(files, key=lambda pair: pair[1])
    if not chosen:
        raise UserError(f"nothing to pack into {out / stem}.tar; run the campaign first")
    size = max(1, int(part_mib * MIB))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as work:
        whole = Path(work) / "whole.tar"
        with tarfile.open(whole, "w") as archive:
            for path, name in chosen:
                archive.add(path, name, recursive=False)
        count = -(-whole.stat().st_size // size)
        cut = [Path(work) / f"{stem}.tar.{i:02d}of{count:02d}" for i in range(count)]
        with whole.open("rb") as source:
            for path in cut:
                path.write_bytes(source.read(size))
        for old in out.glob(f"{stem}.tar.*of*"):
            old.unlink()
        return [path.rename(out / path.name) for path in cut]


def read_parts(parts: Iterable[Path], out: Path) -> list[Path]:
    """Join parts in any order and extract them under ``out``; returns the files.

    UserError when one is missing, doubled or of another set, and for a name that leaves ``out``.
    """
    ordered = _ordered(list(parts))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as work:
        whole = Path(work) / "whole.tar"
        with whole.open("wb") as joined:
            for path in ordered:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, joined)
        try:
            with tarfile.open(whole) as archive:
                archive.extractall(out, filter="data")
                return [out / name for name in archive.getnames()]
        except tarfile.TarError as error:
            raise UserError(f"{ordered[0]} and the parts after it hold no tar ({error})") from None


def _ordered(parts: list[Path]) -> list[Path]:
    found: dict[int, Path] = {}
    sets = set()
    for path in parts:
        match = _NAME.fullmatch(path.name)
        if not match or not path.is_file():
            raise UserError(f"{path}: not a file named like results.tar.00of03")
        sets.add((match[1], int(match[3])))
        found[int(match[2])] = path
    if len(sets) != 1:
        names = ", ".join(f"{stem} ({count})" for stem, count in sorted(sets)) or "none"
        raise UserError(f"parts must be of one set, given: {names}")
    (stem, count) = sets.pop()
    missing = sorted(set(range(count)) - found.keys())
    if missing or len(found) != len(parts):
        what = f"part {missing[0]:02d} is missing" if missing else "a part is given twice"
        raise UserError(f"{stem}: {what}; give all {count}")
    return [found[i] for i in range(count)]


def files_under(
    folder: Path, wanted: Callable[[Path], bool] = lambda path: True
) -> list[tuple[Path, str]]:
    """Every wanted file below ``folder`` with its name relative to it."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, str(path.relative_to(folder))) for path in every if wanted(path)]
