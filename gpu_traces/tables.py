"""Arrow tables of a bundle: building them from columns, decoding them, and checking every value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpu_traces.manifest import BundleError, Manifest
from gpu_traces.schema import STEP_MODES, TABLES, Column

Columns = Mapping[str, Any] | pd.DataFrame

VECTOR_TYPES = {"uint8": pa.uint8(), "float16": pa.float16(), "float32": pa.float32()}
LEVELS = {"uint8": 255, "levels32": 31}
DEFAULT_ENCODINGS = {"confidence": "float16", "alpha": "uint8", "max_prob": "uint8"}


def build_table(name: str, columns: Columns, gamma: int, encodings: Mapping[str, str]) -> pa.Table:
    """One Arrow table in schema order; further columns are kept behind it as they are.

    ``columns`` is a mapping of equally long arrays (or a DataFrame); probability vectors are
    [rows, gamma] arrays. Raises BundleError for a missing column or one that doesn't fit its type.
    """
    known = TABLES[name]
    arrays: dict[str, pa.Array] = {}
    for column in known:
        if column.name in columns:
            arrays[column.name] = _array(name, column, columns[column.name], gamma, encodings)
        elif column.default is None:
            needs = ", ".join(c.name for c in known if c.default is None)
            raise BundleError(f"{name}: column {column.name!r} is missing; it needs {needs}")
        else:
            rows = len(next(iter(arrays.values())))
            arrays[column.name] = pa.array([column.default] * rows, type=column.type)
    for extra in [str(c) for c in columns if c not in arrays]:
        arrays[extra] = pa.array(columns[extra])
    lengths = {key: len(value) for key, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise BundleError(f"{name}: columns of different length {lengths}")
    return pa.table(arrays)


def _array(
    table: str, column: Column, values: Any, gamma: int, encodings: Mapping[str, str]
) -> pa.Array:
    try:
        if column.type is None:
            return _encode(np.asarray(values), gamma, encodings[column.name])
        return pa.array(values, type=column.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"{table}: column {column.name!r}: {error}") from None


def _encode(values: npt.NDArray[Any], gamma: int, encoding: str) -> pa.Array:
    if values.ndim != 2 or values.shape[1] != gamma:
        raise ValueError(f"shape {values.shape}, must be [rows, {gamma}]")
    refuse_outside(values, 0.0, 1.0)
    if encoding in LEVELS:
        step = np.float32(LEVELS[encoding])
        flat = np.round(np.round(values * step) * (255 / step)).astype(np.uint8)
    else:
        flat = values.astype(np.dtype(encoding))
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), gamma)


def refuse_outside(values: npt.NDArray[Any], low: float, high: float) -> None:
    """Raise ValueError naming the first row with a NaN or a value outside low..high."""
    bad = ~((values >= low) & (values <= high))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        value = values[at]
        what = "NaN" if np.isnan(value) else f"{value:g}"
        raise ValueError(f"row {at[0]}: {what}, must be {low:g}..{high:g}")


def read_table(path: Path, name: str, gamma: int) -> pa.Table:
    """Read one Parquet file and check its columns and types; raises BundleError."""
    try:
        table = pq.read_table(path.absolute(), memory_map=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BundleError(f"{path}: not a readable Parquet file ({_first(error)})") from None
    for column in TABLES[name]:
        if column.name not in table.column_names:
            raise BundleError(f"{path}: column {column.name!r} is missing")
        found = table.schema.field(column.name).type
        if not _fits(found, column.type, gamma):
            want = column.type or f"fixed_size_list<uint8|float16|float32>[{gamma}]"
            raise BundleError(f"{path}: column {column.name!r} has type {found}, must be {want}")
        nulls = table.column(column.name).is_null()
        if table.column(column.name).null_count:
            row = nulls.to_pylist().index(True)
            raise BundleError(f"{path}: column {column.name!r}, row {row}: empty")
    return table


def _fits(found: pa.DataType, want: pa.DataType | None, gamma: int) -> bool:
    if want is not None:
        return bool(found == want)
    vector = pa.types.is_fixed_size_list(found) and found.list_size == gamma
    return vector and found.value_type in VECTOR_TYPES.values()


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120]


def vector(table: pa.Table, column: str, gamma: int) -> npt.NDArray[np.float32]:
    """A probability-vector column as [rows, gamma] float32, decoded."""
    flat = table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values: npt.NDArray[np.float32] = flat.astype(np.float32).reshape(-1, gamma)
    if flat.dtype == np.uint8:
        values /= np.float32(255)
    return values


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A scalar column as a numpy array (text columns as objects)."""
    return np.asarray(table.column(name).to_numpy())


def check_values(manifest: Manifest, tables: Mapping[str, pa.Table], where: str) -> None:
    """Raise BundleError naming table, column and row of the first value that cannot be right."""
    if ("responses" in tables) != ("anchors" in tables):
        raise BundleError(f"{where}: responses and anchors come together, or neither")
    if not tables.keys() & {"anchors", "steps", "live_steps"}:
        raise BundleError(f"{where}: holds neither anchors nor steps")
    if "responses" in tables:
        _check_responses(manifest, tables["responses"], f"{where}/responses.parquet")
        _check_anchors(manifest, tables, f"{where}/anchors.parquet")
    if "steps" in tables:
        _check_steps(tables["steps"], f"{where}/steps.parquet")


def _refuse(bad: npt.NDArray[np.bool_], values: npt.NDArray[Any], at: str, must: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise BundleError(f"{at}, row {row}: {values[row]}, must be {must}")


def _check_responses(manifest: Manifest, table: pa.Table, where: str) -> None:
    ids = column(table, "request_id")
    first = np.zeros(ids.size, dtype=bool)
    first[np.unique(ids, return_index=True)[1]] = True
    _refuse(~first, ids, f"{where}: column request_id", "unique")
    domain = column(table, "domain")
    unknown = ~np.isin(domain, np.asarray(manifest.domains, dtype=object))
    _refuse(unknown, domain, f"{where}: column domain", f"one of {list(manifest.domains)}")
    temperature = column(table, "temperature")
    known = np.asarray(manifest.temperatures, dtype=np.float32)
    off = ~np.isclose(temperature[:, None], known[None, :]).any(axis=1)
    _refuse(off, temperature, f"{where}: column temperature", f"one of {known.tolist()}")
    for name in ("prompt_tokens", "response_tokens"):
        tokens = column(table, name)
        _refuse(tokens < 1, tokens, f"{where}: column {name}", "at least 1")


def _check_anchors(manifest: Manifest, tables: Mapping[str, pa.Table], where: str) -> None:
    table, gamma = tables["anchors"], manifest.gamma
    length = column(tables["responses"], "response_tokens")
    count = np.maximum(length - 1, 0)
    if int(count.sum()) != table.num_rows:
        raise BundleError(
            f"{where}: column request_id, row {min(int(count.sum()), table.num_rows)}:"
            f" {table.num_rows} anchors, the responses need {int(count.sum())}"
        )
    ids, expected = column(table, "request_id"), column(tables["responses"], "request_id")
    _refuse(
        ids != np.repeat(expected, count), ids, f"{where}: column request_id", "as in responses"
    )
    position = column(table, "position")
    first = np.concatenate(([0], np.cumsum(count)))[:-1]
    right = np.arange(ids.size) - np.repeat(first, count)
    _refuse(position != right, position, f"{where}: column position", "0, 1, ... per response")
    accepted = column(table, "accepted")
    limit = np.minimum(gamma, np.repeat(length, count) - 1 - right)
    bad = (accepted < 0) | (accepted > limit)
    _refuse(bad, accepted, f"{where}: column accepted", f"0..{gamma}, inside the response")
    context = column(table, "context_tokens")
    _refuse(context < 0, context, f"{where}: column context_tokens", "at least 0")
    for name in ("confidence", "alpha", "max_prob"):
        try:
            refuse_outside(vector(table, name, gamma), 0.0, 1.0)
        except ValueError as error:
            raise BundleError(f"{where}: column {name}, {error}") from None


def _check_steps(table: pa.Table, where: str) -> None:
    mode = column(table, "mode")
    bad = ~np.isin(mode, np.asarray(STEP_MODES, dtype=object))
    _refuse(bad, mode, f"{where}: column mode", f"one of {', '.join(STEP_MODES)}")
    for name in ("requests", "tokens", "context_tokens", "draft_length", "repetition"):
        values = column(table, name)
        _refuse(values < 0, values, f"{where}: column {name}", "at least 0")
    time = column(table, "microseconds")
    _refuse(~(np.isfinite(time) & (time > 0)), time, f"{where}: column microseconds", "above 0")
