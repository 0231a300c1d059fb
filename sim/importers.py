"""Public traffic traces, as published, read into one request table.

``load`` tells the formats apart by their columns. Every error names the file and the missing
columns or the row (rows count from 0, the header not counted).

azure      Azure LLM inference 2023 and 2024: TIMESTAMP, ContextTokens, GeneratedTokens.
burstgpt   BurstGPT: Timestamp, Model, Request tokens, Response tokens (0 = failed, left out).
mooncake   JSON lines, see ``sim.mooncake``.
servegen   a ServeGen pool folder, see ``sim.servegen``.
plain      CSV or Parquet with arrival_s, prompt_tokens, output_tokens and any optional column.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpu_traces.schema import Origin
from sim.arrivals import Floats
from sim.lengths import Tokens
from sim.mooncake import load_mooncake
from sim.request_table import METADATA_KEY, RequestTable
from sim.servegen import load_servegen
from sim.workload import SLO_CLASSES

MOST_TOKENS = np.iinfo(np.int32).max
PLAIN_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")


def load(path: Path, seed: int = 0, origin: str | None = None) -> RequestTable:
    """The requests of a file (or ServeGen folder) in any known format.

    ``origin`` says where a plain file comes from; a Parquet file needs it unless it was written by
    this program. ``seed`` spreads Mooncake's ties and draws ServeGen's requests.
    Raises ValueError for anything that is not a complete trace, FileNotFoundError for no file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; `fetch` downloads the public ones")
    if path.is_dir():
        return load_servegen(path, seed)
    if path.suffix == ".parquet":
        return load_parquet(path, origin)
    if path.suffix in (".jsonl", ".json"):
        return load_mooncake(path, seed)
    frame = _read_csv(path)
    if "TIMESTAMP" in frame or "ContextTokens" in frame:
        return from_azure(frame, path.name)
    if "Request tokens" in frame or "Response tokens" in frame:
        return from_burstgpt(frame, path.name)
    stated = origin or "user file, origin not stated"
    return from_plain(frame, path.name, Origin("measured", stated))


def from_azure(frame: pd.DataFrame, name: str) -> RequestTable:
    """Azure 2023 or 2024; time 0 is the first request."""
    _need(frame, AZURE_COLUMNS, name)
    stamps = _timestamps(frame["TIMESTAMP"], name)
    year = int(stamps.dt.year.iloc[0]) if len(stamps) else 0
    paper = "DynamoLLM, HPCA 2025" if year == 2024 else "Splitwise, ISCA 2024"
    return RequestTable(
        source=name,
        origin=Origin("published", f"Azure LLM inference trace {year}, CC-BY-4.0; {paper}"),
        arrival_s=np.asarray((stamps - stamps.min()) / pd.Timedelta(seconds=1), np.float64),
        prompt_tokens=_tokens(frame, "ContextTokens", name),
        output_tokens=_tokens(frame, "GeneratedTokens", name),
    )


def from_burstgpt(frame: pd.DataFrame, name: str) -> RequestTable:
    """BurstGPT 1, 2 or 3; requests without an answer are left out and counted in the notes."""
    _need(frame, BURSTGPT_COLUMNS, name)
    arrival_s = _numbers(frame, "Timestamp", name)
    prompts = _tokens(frame, "Request tokens", name, least=0)
    outputs = _tokens(frame, "Response tokens", name, least=0)
    kept = np.flatnonzero((prompts > 0) & (outputs > 0))
    models = frame["Model"].astype("category")
    failed = len(frame) - kept.size
    table = RequestTable(
        source=name,
        origin=Origin("published", "BurstGPT, CC-BY-4.0; KDD 2025"),
        arrival_s=arrival_s,
        prompt_tokens=np.maximum(prompts, 1),
        output_tokens=np.maximum(outputs, 1),
        client=models.cat.codes.to_numpy().astype(np.int16),
        clients=tuple(map(str, models.cat.categories)),
    )
    return table.take(kept, f"{failed} failed requests left out" if failed else "")


def load_parquet(path: Path, origin: str | None = None) -> RequestTable:
    """A Parquet file of this program, or any with the plain columns and a stated ``origin``."""
    try:
        arrow = pq.read_table(path.absolute())
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from None
    about = (arrow.schema.metadata or {}).get(METADATA_KEY)
    if about is None and origin is None:
        raise ValueError(
            f"{path}: no origin in the file metadata; state it with --origin TEXT when describing "
            "or converting the file (python -m sim.traffic)"
        )
    told = json.loads(about) if about else {}
    stated = Origin(*told["origin"]) if told else Origin("measured", str(origin))
    table = from_plain(arrow.to_pandas(), told.get("source", path.name), stated)
    return replace(table, notes=tuple(told.get("notes", ())))


def from_plain(frame: pd.DataFrame, name: str, origin: Origin) -> RequestTable:
    """Columns of the shared schema; optional ones may be absent. Times are kept as they are."""
    _need(frame, PLAIN_COLUMNS, name)
    client, clients = _categories(frame, "client", name)
    domain, domains = _categories(frame, "domain", name)
    prefix, think_s = (_optional(frame, c, name) for c in ("prefix_tokens", "think_s"))
    return RequestTable(
        source=name,
        origin=origin,
        arrival_s=_numbers(frame, "arrival_s", name),
        prompt_tokens=_tokens(frame, "prompt_tokens", name),
        output_tokens=_tokens(frame, "output_tokens", name),
        prefix_tokens=None if prefix is None else prefix.astype(np.int32),
        session=_sessions(frame, name),
        think_s=None if think_s is None else think_s.astype(np.float32),
        client=client,
        domain=domain,
        slo_class=_slo_classes(frame, name),
        clients=clients,
        domains=domains,
    )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a readable CSV file ({error})") from None


def _need(frame: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    missing = [c for c in columns if c not in frame]
    if missing:
        raise ValueError(
            f"{name}: missing columns {', '.join(missing)}; "
            f"needed: {', '.join(columns)}; found: {', '.join(map(str, frame.columns))}"
        )


def _numbers(frame: pd.DataFrame, column: str, name: str) -> Floats:
    numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        given = frame[column].iloc[bad[0]]
        raise ValueError(f"{name}: {column} is {str(given)!r} in row {bad[0]}; it must be a number")
    return numbers


def _tokens(frame: pd.DataFrame, column: str, name: str, least: int = 1) -> Tokens:
    numbers = _numbers(frame, column, name)
    bad = np.flatnonzero((numbers < least) | (numbers > MOST_TOKENS) | (numbers % 1 != 0))
    if bad.size:
        value, wanted = f"{numbers[bad[0]]:g}", f"a whole number of at least {least}"
        raise ValueError(f"{name}: {column} is {value} in row {bad[0]}; it must be {wanted}")
    return numbers.astype(np.int32)


def _optional(frame: pd.DataFrame, column: str, name: str) -> Floats | None:
    """A column that may be absent, or empty throughout where its source recorded nothing."""
    if column not in frame or frame[column].isna().all():
        return None
    return _numbers(frame, column, name)


def _timestamps(column: pd.Series[str], name: str) -> pd.Series[pd.Timestamp]:
    stamps = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
    bad = np.flatnonzero(stamps.isna())
    if bad.size:
        given = column.iloc[bad[0]]
        raise ValueError(f"{name}: TIMESTAMP is {given!r} in row {bad[0]}; expected ISO 8601")
    return stamps


def _categories(
    frame: pd.DataFrame, column: str, name: str
) -> tuple[npt.NDArray[np.int16] | None, tuple[str, ...]]:
    if column not in frame or frame[column].isna().all():
        return None, ()
    words = frame[column].astype("category")
    if words.isna().any():
        row = int(np.flatnonzero(words.isna())[0])
        raise ValueError(f"{name}: {column} is empty in row {row}; name it or drop the column")
    return words.cat.codes.to_numpy().astype(np.int16), tuple(map(str, words.cat.categories))


def _sessions(frame: pd.DataFrame, name: str) -> npt.NDArray[np.int32] | None:
    if "session_id" not in frame or frame["session_id"].isna().all():
        return None
    return pd.factorize(frame["session_id"])[0].astype(np.int32)


def _slo_classes(frame: pd.DataFrame, name: str) -> npt.NDArray[np.int16] | None:
    codes, words = _categories(frame, "slo_class", name)
    unknown = sorted(set(words) - set(SLO_CLASSES))
    if unknown:
        raise ValueError(
            f"{name}: unknown slo_class {', '.join(unknown)}; known: {', '.join(SLO_CLASSES)}"
        )
    return None if codes is None else np.array([SLO_CLASSES.index(w) for w in words])[codes]
