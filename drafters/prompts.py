"""Prompt files: JSON lines with ``prompt`` and, where known, ``domain`` and ``dataset``; live runs
also heed ``temperature`` and ``max_tokens``."""

from __future__ import annotations

import hashlib
import sys
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
    temperature: float | None = None
    """Sampling temperature asked for; None: the run's."""
    max_tokens: int | None = None
    """Output tokens at most; None: the run's limit alone."""

    @property
    def stated(self) -> tuple[float | None, int | None]:
        """What it asks for beside its text."""
        return self.temperature, self.max_tokens

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
            first = prompts.setdefault(prompt.key, prompt)
            if first.stated != prompt.stated:
                raise UserError(
                    f"{where}: this prompt came before with another temperature or max_tokens; give"
                    " each text once in a run"
                )
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
    text, temperature, most = (row.get(name) for name in ("prompt", "temperature", "max_tokens"))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: needs a non-empty string 'prompt'")
    try:
        key = prompt_key(text)
    except UnicodeEncodeError:
        raise UserError(f"{where}: 'prompt' holds half a surrogate pair; give whole text") from None
    if temperature is not None and not (_finite(temperature) and temperature >= 0):
        raise UserError(f"{where}: temperature {temperature!r} must be a number, 0 or more")
    if most is not None and not (_finite(most) and most >= 1 and most == int(most)):
        raise UserError(f"{where}: max_tokens {most!r} must be a whole number, 1 or more")
    return Prompt(
        key=key,
        text=text,
        domain=str(row.get("domain", "other")),
        dataset=str(row.get("dataset", stem)),
        temperature=None if temperature is None else float(temperature),
        max_tokens=None if most is None else int(most),
    )


def _finite(value: Any) -> bool:
    """Whether JSON holds a number here that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
