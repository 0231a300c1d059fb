"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place when the block ends well.

    When the block fails, ``path`` stays as it was and nothing else is left.
    """
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_frame(path: Path, **options: Any) -> pd.DataFrame:
    """A Parquet file; a relative name with a colon, as ``live-fixed-k:k=7``, is no URI."""
    return pd.read_parquet(path.absolute(), **options)


def can_hold(path: Path) -> None:
    """ValueError where ``path`` cannot be made, before the work whose result it will hold."""
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"{path}: {above} is no folder that can be written to")
