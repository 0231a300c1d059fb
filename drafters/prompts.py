"""Prompt files: JSON lines with ``prompt`` and, where known, ``domain`` and ``dataset``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drafters.errors import UserError
from gpu_traces.ingest import read_jsonl

SPLITS = ("train", "eval", "all")


@dataclass(frozen=True)
class Prompt:
    """One user turn; ``key`` is a hash of its text, so duplicates across files are one prompt."""

    key: str
    text: str
    domain: str
    dataset: str

    @property
    def split(self) -> str:
        """Training or evaluation half, decided by the text alone: the halves never overlap."""
        return split_of(self.text)


def prompt_key(text: str) -> str:
    """Hash of a prompt's words."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def split_of(text: str) -> str:
    """The half that a prompt of this text belongs to."""
    return "train" if int(prompt_key(text), 16) % 2 else "eval"


def load_prompts(paths: Iterable[str | Path], split: str = "all") -> list[Prompt]:
    """Read prompt files (a folder means its ``*.jsonl``), drop duplicates, keep one half.

    Raises UserError naming file and line for anything malformed, and for an empty result.
    """
    paths = list(paths)
    prompts: dict[str, Prompt] = {}
    for path in _files(paths):
        for where, row in rows(path):
            prompt = _parse(row, where, path.stem)
            prompts.setdefault(prompt.key, prompt)
    kept = [p for p in prompts.values() if split in ("all", p.split)]
    if not kept:
        names = ", ".join(map(str, paths))
        raise UserError(f"no prompts in {names} (split {split}); give JSON lines with a 'prompt'")
    return kept


def _files(paths: list[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"prompt file {path} does not exist")
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return files


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", object) of each non-empty line; UserError names what is malformed."""
    try:
        for number, row in read_jsonl(path):
            where = f"{path}, line {number}"
            if not isinstance(row, dict):
                raise UserError(f"{where}: {row!r:.40} is not a JSON object")
            yield where, row
    except ValueError as error:
        raise UserError(str(error)) from None


def _parse(row: dict[str, Any], where: str, stem: str) -> Prompt:
    text = row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: needs a non-empty string 'prompt'")
    return Prompt(
        prompt_key(text), text, str(row.get("domain", "other")), str(row.get("dataset", stem))
    )
