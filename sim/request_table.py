"""The one table that every traffic source becomes, generated or imported, and its Parquet form.

Columns that the source does not have are None, never zeros. Files carry their origin in the
Parquet metadata; a file without it is refused, so that no number loses where it came from.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpu_traces.schema import Origin
from sim.arrivals import Floats, check_times, generator
from sim.lengths import Tokens
from sim.scaling import check_scaling
from sim.workload import SLO_CLASSES

Codes = npt.NDArray[np.int16]
Numbers = npt.NDArray[np.int32]
Seconds = npt.NDArray[np.float32]
METADATA_KEY = b"dspark_requests"


@dataclass(frozen=True)
class RequestTable:
    """n requests sorted by arrival; arrays are [n], optional columns None where unknown.

    Raises ValueError, naming the source and row, for arrivals that are empty, NaN, negative or
    unsorted and for lengths below 1.
    """

    source: str
    """Scenario or file name."""
    origin: Origin
    arrival_s: Floats
    """Seconds from 0. With ``think_s`` it is the expected arrival: a sort key for later turns."""
    prompt_tokens: Tokens
    output_tokens: Tokens
    prefix_tokens: Tokens | None = None
    """Leading prompt tokens that an unlimited prefix cache would hold."""
    session: Numbers | None = None
    """Session (or user) number, -1 for none."""
    think_s: Seconds | None = None
    """Closed loop: seconds from the end of the session's previous request to this one."""
    client: Codes | None = None
    """Index into ``clients``."""
    domain: Codes | None = None
    """Index into ``domains``."""
    slo_class: Codes | None = None
    """Index into ``sim.workload.SLO_CLASSES``."""
    clients: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was done to the traffic, by name: rate scaling, clipping, spread ties."""

    def __post_init__(self) -> None:
        check_times(self.arrival_s, self.source)
        for name in ("prompt_tokens", "output_tokens"):
            low = np.flatnonzero(getattr(self, name) < 1)
            if low.size:
                value = getattr(self, name)[low[0]]
                raise ValueError(f"{self.source}: {name} is {value} in row {low[0]}; at least 1")

    @property
    def requests(self) -> int:
        return int(self.arrival_s.size)

    @property
    def rate_rps(self) -> float:
        """Mean rate over the span of the arrivals (inf when they share one instant)."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (self.requests - 1) / span_s if span_s else float("inf")

    def take(self, rows: npt.NDArray[np.intp] | slice, note: str = "") -> RequestTable:
        """The given rows, with a note on what was done."""
        cut = {name: getattr(self, name)[rows] for name in self._columns()}
        return replace(self, **cut, notes=self.notes + ((note,) if note else ()))

    def _columns(self) -> list[str]:
        return [f.name for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)]


def scaled(table: RequestTable, factor: float, method: str, seed: int = 0) -> RequestTable:
    """A recorded table at ``factor`` times its rate; methods as in ``sim.scaling``.

    ``superpose`` lays copies of the whole trace over itself, each shifted cyclically by a random
    part of its span. A closed-loop table has no rate of its own and is refused.
    """
    check_scaling(factor, method)
    if table.think_s is not None:
        raise ValueError(f"{table.source} is a closed loop: set the number of users instead")
    note = f"{method} {factor:g}"
    if method == "time_scale":
        return replace(table, arrival_s=table.arrival_s / factor, notes=(*table.notes, note))
    rng = generator(np.random.SeedSequence(seed), 0)
    if method == "thin":
        kept = np.flatnonzero(rng.random(table.requests) < factor)
        return table.take(kept, f"{note} (seed {seed})")
    return _superposed(table, factor, rng, f"{note} (seed {seed})")


def _superposed(
    table: RequestTable, factor: float, rng: np.random.Generator, note: str
) -> RequestTable:
    times = table.arrival_s - table.arrival_s[0]
    span_s = times[-1] * table.requests / max(table.requests - 1, 1)
    rows, arrivals = [], []
    for copy in range(int(np.ceil(factor))):
        kept = np.flatnonzero(rng.random(table.requests) < factor - copy)
        shift_s = rng.uniform(0, span_s) if copy else 0.0
        rows.append(kept)
        arrivals.append((times[kept] + shift_s) % span_s if span_s else times[kept])
    every = np.concatenate(arrivals)
    order = np.argsort(every, kind="stable")
    unsorted = replace(table, session=None)
    merged = {n: getattr(unsorted, n)[np.concatenate(rows)[order]] for n in unsorted._columns()}
    return replace(unsorted, **(merged | {"arrival_s": every[order]}), notes=(*table.notes, note))


def closed_loop(table: RequestTable, users: int, think_s: float, seed: int = 0) -> RequestTable:
    """The table's requests, in order, sent by ``users`` users who take turns.

    User u sends requests u, u + users, ...: each an exponential think time of mean ``think_s``
    (0: at once) after the end of the last. Users begin at even random times in one ``think_s``.
    """
    if users < 1 or not think_s >= 0:
        raise ValueError(f"users={users}, think_s={think_s:g}; at least 1 user and 0 s are needed")
    rng = generator(np.random.SeedSequence(seed), 0)
    turn, user = np.divmod(np.arange(table.requests), users)
    begins_s = np.sort(rng.uniform(0, think_s, users))
    return replace(
        table,
        arrival_s=begins_s[user] + turn * think_s,
        session=user.astype(np.int32),
        think_s=rng.exponential(think_s, table.requests).astype(np.float32),
        notes=(*table.notes, f"closed loop of {users} users, think time {think_s:g} s"),
    )


def clipped(table: RequestTable, context_tokens: int) -> RequestTable:
    """Prompts cut so that prompt + output fit ``context_tokens``, as a serving front end does.

    Raises ValueError when an output alone does not fit.
    """
    room = context_tokens - table.output_tokens
    if room.min() < 1:
        longest = int(table.output_tokens.max())
        raise ValueError(
            f"{table.source}: an output of {longest} tokens leaves no room for a prompt "
            f"in a context of {context_tokens}"
        )
    prompts = np.minimum(table.prompt_tokens, room).astype(np.int32)
    prefix = None if table.prefix_tokens is None else np.minimum(table.prefix_tokens, prompts)
    cut = int(np.count_nonzero(prompts < table.prompt_tokens))
    note = f"prompts clipped to a context of {context_tokens} ({cut} requests)"
    return replace(table, prompt_tokens=prompts, prefix_tokens=prefix, notes=(*table.notes, note))


def to_frame(table: RequestTable) -> pd.DataFrame:
    """The table as a data frame in the shared schema, names in place of codes."""
    frame = pd.DataFrame({"request_id": np.arange(table.requests), "arrival_s": table.arrival_s})
    for name in ("prompt_tokens", "output_tokens", "prefix_tokens", "think_s"):
        if (column := getattr(table, name)) is not None:
            frame[name] = column
    if table.session is not None:
        frame["session_id"] = table.session
        frame["turn"] = frame.groupby("session_id").cumcount().astype(np.int32)
    for name, codes, words in (
        ("client", table.client, table.clients),
        ("domain", table.domain, table.domains),
        ("slo_class", table.slo_class, SLO_CLASSES),
    ):
        if codes is not None:
            frame[name] = pd.Categorical.from_codes(codes, categories=pd.Index(words))
    return frame


def write_parquet(table: RequestTable, path: Path) -> None:
    """Write the table with its origin; the file appears complete or not at all."""
    about = {
        "source": table.source,
        "origin": [table.origin.kind, table.origin.detail],
        "notes": list(table.notes),
    }
    arrow = pa.Table.from_pandas(to_frame(table), preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(about).encode()}
    partial = path.with_name(path.name + ".part")
    pq.write_table(arrow.replace_schema_metadata(metadata), partial, compression="zstd")
    os.replace(partial, path)
