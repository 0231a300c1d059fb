"""Mooncake traces (JSON lines, FAST 2025) read into a request table.

Fields: ``timestamp`` (ms from the start), ``input_length``, ``output_length`` and ``hash_ids``, the
ids of the prompt's 512-token blocks: equal ids hold equal text, so a leading run of ids seen before
is what a prefix cache without limit would hold. The real traces are stamped on a 3 s grid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_traces.schema import Origin
from sim.arrivals import check_times, generator
from sim.request_table import RequestTable

BLOCK_TOKENS = 512
GRID_S = 3.0
FIELDS = ("timestamp", "input_length", "output_length")


def load_mooncake(path: Path, seed: int = 0) -> RequestTable:
    """A Mooncake trace; where stamps lie on the coarse grid, ties are spread over it by ``seed``.

    Order is kept, so that a request still finds the prefix blocks of those before it.
    """
    rows = [_row(line, i, path.name) for i, line in enumerate(_lines(path))]
    prompts, outputs, stamps_ms = (
        np.array([row[name] for row in rows], dtype=np.float64)
        for name in ("input_length", "output_length", "timestamp")
    )
    check_times(stamps_ms / 1e3, path.name)
    hashed = any("hash_ids" in row for row in rows)
    blocks = _known_blocks([row.get("hash_ids", []) for row in rows])
    on_grid = np.count_nonzero(np.diff(stamps_ms) == 0) > len(rows) / 2
    spread_s = generator(np.random.SeedSequence(seed), 0).uniform(0, GRID_S, len(rows))
    return RequestTable(
        source=path.name,
        origin=Origin("published", "Mooncake trace, Apache-2.0; FAST 2025"),
        arrival_s=np.sort(stamps_ms / 1e3 + spread_s) if on_grid else stamps_ms / 1e3,
        prompt_tokens=prompts.astype(np.int32),
        output_tokens=outputs.astype(np.int32),
        prefix_tokens=np.minimum(blocks * BLOCK_TOKENS, prompts).astype(np.int32)
        if hashed
        else None,
        notes=(f"ties spread over {GRID_S:g} s (seed {seed})",) if on_grid else (),
    )


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.strip()]


def _row(line: str, row: int, name: str) -> dict[str, Any]:
    try:
        fields = dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: row {row} is not a JSON object ({error})") from None
    bad = [f for f in FIELDS if not isinstance(fields.get(f), int | float)]
    if bad:
        needed = ", ".join(FIELDS)
        raise ValueError(f"{name}: row {row} has no number for {', '.join(bad)}; needed: {needed}")
    return fields


def _known_blocks(chains: list[list[int]]) -> npt.NDArray[np.int64]:
    """Leading blocks of each chain that an earlier chain already held."""
    seen: set[int] = set()
    known = np.zeros(len(chains), dtype=np.int64)
    for i, chain in enumerate(chains):
        known[i] = next((k for k, block in enumerate(chain) if block not in seen), len(chain))
        seen.update(chain)
    return known
