"""Response files of ``drafters.generate``: JSON lines, read with suspicion."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from drafters.errors import UserError
from drafters.prompts import rows

Row = dict[str, Any]
"""A response as ``drafters.generate`` writes it."""

WORDS = ("name", "domain", "dataset")
TOKENS = ("prompt_tokens", "response_tokens")


def read_responses(
    path: Path, vocab_size: int | None = None, temperatures: Collection[float] = ()
) -> list[Row]:
    """Responses of over one token, in the file's order.

    ``temperatures`` keeps those sampled at one of them. UserError names file and line of whatever
    cannot be a response (of a target with ``vocab_size`` tokens), and an empty result.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with python -m drafters.generate")
    kept = []
    for where, row in rows(path):
        check(row, where, vocab_size)
        asked = not temperatures or row["temperature"] in temperatures
        if asked and len(row["response_tokens"]) > 1:
            kept.append(row)
    if not kept:
        at = " or ".join(f"T = {heat:g}" for heat in temperatures) or "any temperature"
        raise UserError(f"{path} holds no response of over one token at {at}")
    return kept


def check(row: Row, where: str, vocab_size: int | None) -> None:
    """UserError for a field that is missing, of another kind, or a token that is none."""
    for name in WORDS:
        if not isinstance(row.get(name), str):
            raise UserError(f"{where}: needs a string {name!r}, as drafters.generate writes it")
    if not isinstance(row.get("temperature"), (int, float)) or not row["temperature"] >= 0:
        raise UserError(f"{where}: temperature {row.get('temperature')!r} must be 0 or above")
    for name in TOKENS:
        tokens = row.get(name)
        if not isinstance(tokens, list) or not set(map(type, tokens)) <= {int}:
            raise UserError(f"{where}: needs a list of token ids {name!r}")
        if tokens and vocab_size and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            wrong = min(tokens) if min(tokens) < 0 else max(tokens)
            raise UserError(f"{where}: token {wrong} of {name}; the target has 0..{vocab_size - 1}")
    if not row["prompt_tokens"]:
        raise UserError(f"{where}: prompt_tokens is empty")
