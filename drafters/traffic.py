"""Which requests the live loop gets, and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from drafters.errors import UserError
from drafters.prompts import Prompt
from drafters.request import Request
from gpu_traces.files import read_frame
from policies.base import Floats

TIMES = ("arrival_s", "Timestamp", "TIMESTAMP")
OUTPUTS = ("output_tokens", "Response tokens", "GeneratedTokens")
ANSWERED = ("Request tokens", "Response tokens")
"""Columns of BurstGPT that are 0 for a request that failed."""


class Arrival(NamedTuple):
    """One line of an arrival file."""

    at_s: float
    """Seconds from the first arrival."""
    output_tokens: int | None = None
    """Length of the answer, where the file says so: no more are decoded."""


def read_arrivals(path: Path) -> list[Arrival]:
    """Arrivals of a CSV or Parquet file: its column ``arrival_s``, or the time stamps of BurstGPT
    (``Timestamp``, seconds; failed requests left out, as the simulator does) or Azure
    (``TIMESTAMP``, dates), and lengths of answers where there is a column for them. UserError for
    anything else.

    What the files say of prompts and sessions is not followed: the prompts are real text.
    """
    if path.is_dir() or path.suffix in (".jsonl", ".json"):
        raise UserError(
            f"{path}: give CSV or Parquet; of a Mooncake or ServeGen trace it is made by"
            f" `python -m sim.traffic convert {path} --out arrivals.parquet`"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; give CSV or Parquet with a column arrival_s")
    try:
        frame = read_frame(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not readable as CSV or Parquet ({reason})") from None
    name = next((name for name in TIMES if name in frame), "")
    if not name:
        raise UserError(f"{path}: has no column arrival_s; it has {', '.join(frame.columns)}")
    times = _seconds(frame[name])
    steps = np.diff(times, prepend=times[:1])
    bad = np.flatnonzero(~(np.isfinite(times) & (steps >= 0)))
    if not times.size or bad.size:
        where = f"row {bad[0]}: {frame[name].iloc[bad[0]]}" if bad.size else "no rows"
        raise UserError(f"{path}: {where}; {name} must be finite seconds, sorted")
    answered = (frame.filter(ANSWERED) != 0).all(axis=1).to_numpy()
    if not answered.any():
        raise UserError(f"{path}: every request failed; {' or '.join(ANSWERED)} is 0 in each row")
    seconds = times[answered] - times[answered][0]
    lengths = _lengths(path, frame[answered])
    return [Arrival(float(t), n) for t, n in zip(seconds, lengths, strict=True)]


def _lengths(path: Path, frame: pd.DataFrame) -> list[int | None]:
    """Output tokens of each row; UserError for one that is no whole number above 0."""
    name = next((name for name in OUTPUTS if name in frame), "")
    if not name:
        return [None] * len(frame)
    numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~((numbers >= 1) & (numbers == np.floor(numbers))))
    if bad.size:
        found = frame[name].iloc[bad[0]]
        raise UserError(f"{path}: row {bad[0]}: {name} {found} must be a whole number, 1 or more")
    return [int(n) for n in numbers]


def _seconds(column: pd.Series) -> Floats:
    """Seconds of a column of numbers or dates; NaN where it holds neither."""
    if column.name != "TIMESTAMP":
        return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    dates = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
    return ((dates - dates.min()) / pd.Timedelta(seconds=1)).to_numpy(dtype=float)


def heat_of(prompt: Prompt, otherwise: float) -> float:
    """Sampling temperature of a prompt, ``otherwise`` where it states none."""
    return otherwise if prompt.temperature is None else prompt.temperature


def make_requests(
    prompts: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
    arrivals: Sequence[Arrival],
    domains: Sequence[str],
    max_new: int,
    temperature: float,
) -> list[Request]:
    """One request per arrival (none given: per prompt, as there is room), the prompts in turn.

    ``temperature`` is that of prompts which state none; of all limits on the answer's length the
    shortest holds. Names are the prompts' keys with temperature and turn, as ``drafters.generate``
    names them.
    """
    codes = {name: i for i, name in enumerate(domains)}
    made = []
    for i, arrival in enumerate(arrivals or [None] * len(prompts)):
        turn, at = divmod(i, len(prompts))
        prompt = prompts[at]
        heat = heat_of(prompt, temperature)
        limits = max_new, prompt.max_tokens, arrival.output_tokens if arrival else None
        made.append(
            Request(
                request_id=i,
                name=f"{prompt.key}/T{heat:g}/{turn}",
                prompt=tuple(encoded[at]),
                max_new=min(limit for limit in limits if limit is not None),
                temperature=heat,
                domain=codes.get(prompt.domain, -1),
                arrival_s=arrival.at_s if arrival else None,
            )
        )
    return made
