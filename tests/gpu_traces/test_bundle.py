"""A bundle comes back as it was written, and anything damaged is named in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpu_traces import bundle as bundles
from gpu_traces.__main__ import main
from gpu_traces.bundle import (
    BundleError,
    Calibration,
    check_place,
    default_bundle,
    find_bundle,
    read_bundle,
    write_bundle,
)
from gpu_traces.calibration import calibrate
from gpu_traces.files import replacing
from gpu_traces.manifest import FileInfo, Manifest, load_manifest
from gpu_traces.schema import AcceptanceTraces
from gpu_traces.synthetic import synthetic_bundle, synthetic_traces, trace_tables
from gpu_traces.tables import build_table
from tests.limits import largest_file

GAMMA = 4


@pytest.fixture(scope="module")
def traces() -> AcceptanceTraces:
    return synthetic_traces(gamma=GAMMA, responses=5, response_tokens=40)


@pytest.fixture
def folder(tmp_path: Path, traces: AcceptanceTraces) -> Path:
    return synthetic_bundle(tmp_path / "b", traces)


def rewrite(folder: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Edit one table and make the manifest's hash and row count agree with the edit."""
    path = folder / f"{table}.parquet"
    changed = change(pq.read_table(path))
    pq.write_table(changed, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][table] = {"rows": changed.num_rows, "sha256": bundles._sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(values)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def set_cell(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """Replace one scalar of a column, or the first number of a vector column."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            if column.type.value_type == pa.uint8():
                flat /= 255
            flat[row * GAMMA] = value
            new: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(flat), GAMMA)
        else:
            values = column.to_pylist()
            values[row] = value
            new = pa.array(values, type=column.type)
        return table.set_column(table.column_names.index(name), name, new)

    return change


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip(folder: Path, traces: AcceptanceTraces) -> None:
    back = read_bundle(folder)
    for name in ("request_id", "domain", "temperature", "prompt_tokens", "response_tokens"):
        assert np.array_equal(getattr(back.traces, name), getattr(traces, name)), name
    assert np.array_equal(back.traces.first_anchor, traces.first_anchor)
    assert np.array_equal(back.traces.accepted, traces.accepted)
    assert np.array_equal(back.traces.confidence, traces.confidence)
    assert np.abs(back.traces.alpha - traces.alpha).max() <= 0.5 / 255 + 1e-6
    assert back.traces.origin.kind == "synthetic"
    assert len(back.steps) == back.manifest.files["steps"].rows > 0


def test_a_relative_name_with_a_colon_is_no_uri(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename("fixed-k:k=7")
    assert read_bundle("fixed-k:k=7").traces.gamma == GAMMA


@pytest.mark.parametrize(
    ("encoding", "error"),
    [("uint8", 0.002), ("levels32", 0.018), ("float16", 0.0005), ("float32", 0.0)],
)
def test_encodings_keep_their_documented_error(
    tmp_path: Path, traces: AcceptanceTraces, folder: Path, encoding: str, error: float
) -> None:
    manifest = replace(load_manifest(folder), files={}, encodings={})
    coding = {"confidence": encoding, "alpha": encoding, "max_prob": encoding}
    write_bundle(tmp_path / "c", manifest, trace_tables(traces), encodings=coding)
    back = read_bundle(tmp_path / "c")
    assert np.abs(back.raw_confidence - traces.confidence).max() <= error
    assert np.abs(back.traces.alpha - traces.alpha).max() <= error


def test_each_temperature_gets_its_own_calibration(
    tmp_path: Path, traces: AcceptanceTraces, folder: Path
) -> None:
    greedy = np.arange(traces.responses) % 2 == 0
    mixed = replace(traces, temperature=np.where(greedy, 0, 1).astype(np.float32))
    scales, bias = (2.0, 1.5, 1.0, 0.5), (0.1, 0.0, -0.1, 0.3)
    manifest = replace(
        load_manifest(folder),
        temperatures=(0.0, 1.0),
        calibration=(
            Calibration(0.0, "sts+bias", scales, bias),
            Calibration(1.0, "sts", (1.0,) * GAMMA, (0.0,) * GAMMA),
        ),
        files={},
    )
    write_bundle(tmp_path / "two", manifest, trace_tables(mixed))
    back = read_bundle(tmp_path / "two", temperature=0.0)
    assert back.traces.responses == int(greedy.sum())
    assert np.array_equal(back.traces.confidence, calibrate(back.raw_confidence, scales, bias))
    assert not np.array_equal(back.traces.confidence, back.raw_confidence)
    hot = read_bundle(tmp_path / "two", temperature=1.0)
    assert np.allclose(hot.traces.confidence, hot.raw_confidence, atol=1e-3)
    assert read_bundle(tmp_path / "two").traces.anchors == traces.anchors
    with pytest.raises(BundleError, match=r"no responses at temperature 0\.7; it has 0, 1"):
        read_bundle(tmp_path / "two", temperature=0.7)


def test_calibrate_is_the_formula_on_the_float16_grid() -> None:
    raw = np.array([[0.0, 0.2, 0.5, 0.9, 1.0]], dtype=np.float32)
    got = calibrate(raw, 2.0, 0.5)
    c = np.clip(raw.astype(float), 1e-6, 1 - 1e-6)
    exact = 1 / (1 + np.exp(-(np.log(c / (1 - c)) / 2 + 0.5)))
    assert np.allclose(got, exact, atol=6e-4)
    assert np.array_equal(got, got.astype(np.float16).astype(np.float32))


def test_an_existing_folder_is_kept_without_force(folder: Path, traces: AcceptanceTraces) -> None:
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exists"):
        synthetic_bundle(folder, traces)
    assert (folder / "manifest.json").read_bytes() == before
    synthetic_bundle(folder, traces, force=True)
    assert os.listdir(folder.parent) == [folder.name]


def test_force_replaces_bundles_alone(folder: Path, tmp_path: Path) -> None:
    """A wrong --out with --force must not cost anyone their folder."""
    check_place(folder, force=True)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        check_place(folder, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="file is no folder that can be written to"):
        check_place(tmp_path / "file" / "a" / "b")
    check_place(tmp_path / "new" / "bundle")
    assert not (tmp_path / "new").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "steps.parquet"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half\ud800", encoding="utf-8")
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("size", [100, 30_000], ids=["a table", "a text"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, folder: Path, traces: AcceptanceTraces, size: int
) -> None:
    """Neither a part of the bundle nor one without what lies beside its tables."""
    out, texts = tmp_path / "out" / "full", {"responses.jsonl": "x" * 40_000}
    tables = trace_tables(traces)
    with (
        largest_file(size),
        pytest.raises(BundleError, match="out/full could not be written .*File too large"),
    ):
        write_bundle(out, load_manifest(folder), tables, texts=texts)
    assert os.listdir(out.parent) == []
    write_bundle(out, load_manifest(folder), tables, texts=texts)
    assert (out / "responses.jsonl").read_text() == texts["responses.jsonl"]


def test_a_refused_write_leaves_nothing(tmp_path: Path, traces: AcceptanceTraces) -> None:
    bad = replace(traces, accepted=np.full(traces.anchors, GAMMA + 1, dtype=np.int8))
    with pytest.raises(BundleError, match="column accepted, row 0: 5"):
        synthetic_bundle(tmp_path / "bad", bad)
    assert os.listdir(tmp_path) == []


def test_missing_column_and_unknown_table(folder: Path, traces: AcceptanceTraces) -> None:
    tables = trace_tables(traces)
    del tables["anchors"]["alpha"]
    with pytest.raises(BundleError, match="anchors: column 'alpha' is missing"):
        build_table("anchors", tables["anchors"], GAMMA, {"confidence": "uint8"})
    with pytest.raises(BundleError, match=r"unknown tables \['anchor'\]"):
        write_bundle(folder.parent / "x", load_manifest(folder), {"anchor": {}})


def test_missing_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "manifest.json: missing" in refusal(folder)


def test_manifest_that_is_not_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    assert "manifest.json: not JSON" in refusal(folder)


def test_unknown_version(folder: Path) -> None:
    edit_manifest(folder, schema_version=99)
    assert "schema_version 99; this reader knows 1" in refusal(folder)


def test_missing_and_unknown_manifest_field(folder: Path) -> None:
    edit_manifest(folder, surprise=1)
    assert "unknown field 'surprise'" in refusal(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["surprise"], manifest["hardware"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "missing field 'hardware'" in refusal(folder)


def test_published_numbers_never_come_as_a_bundle(folder: Path) -> None:
    edit_manifest(folder, kind="published")
    assert "kind 'published' must be measured or synthetic" in refusal(folder)


def test_wrong_hash_and_missing_file(folder: Path) -> None:
    path = folder / "steps.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "steps.parquet: SHA-256 differs" in refusal(folder)
    path.unlink()
    assert "steps.parquet: missing" in refusal(folder)


def test_truncated_parquet(folder: Path) -> None:
    """Even with a hash that matches the truncated file."""
    path = folder / "anchors.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["anchors"]["sha256"] = bundles._sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "anchors.parquet: not a readable Parquet file" in refusal(folder)


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("anchors", set_cell("confidence", 7, np.nan), "column confidence, row 7: NaN"),
        ("anchors", set_cell("confidence", 3, 1.5), "column confidence, row 3: 1.5, must be 0..1"),
        ("anchors", set_cell("alpha", 0, -0.5), "column alpha, row 0: -0.5"),
        ("anchors", set_cell("max_prob", 5, np.nan), "column max_prob, row 5: NaN"),
        ("anchors", set_cell("accepted", 2, GAMMA + 1), "column accepted, row 2: 5, must be 0..4"),
        ("anchors", set_cell("accepted", 2, -1), "column accepted, row 2: -1"),
        ("anchors", set_cell("accepted", -1, 3), "inside the response"),
        ("anchors", set_cell("request_id", 4, 99), "column request_id, row 4: 99"),
        ("anchors", set_cell("position", 4, 9), "column position, row 4: 9"),
        ("anchors", lambda t: t.slice(1), "anchors, the responses need"),
        ("anchors", lambda t: t.drop_columns("alpha"), "column 'alpha' is missing"),
        ("anchors", set_cell("accepted", 6, None), "column 'accepted', row 6: empty"),
        ("responses", set_cell("domain", 1, "law"), "column domain, row 1: law, must be one of"),
        ("responses", set_cell("temperature", 1, 0.3), "column temperature, row 1"),
        ("responses", set_cell("request_id", 2, 0), "column request_id, row 2: 0, must be unique"),
        ("responses", set_cell("prompt_tokens", 0, 0), "column prompt_tokens, row 0: 0"),
        ("steps", set_cell("microseconds", 4, np.nan), "column microseconds, row 4: nan"),
        ("steps", set_cell("mode", 4, "lunch"), "column mode, row 4: lunch, must be one of draft"),
        ("steps", set_cell("requests", 4, -1), "column requests, row 4: -1"),
    ],
)
def test_values_that_cannot_be_right(
    folder: Path, table: str, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    rewrite(folder, table, change)
    message = refusal(folder)
    assert f"{table}.parquet" in message
    assert says in message


def test_wrong_column_type(folder: Path) -> None:
    def as_text(table: pa.Table) -> pa.Table:
        at = table.column_names.index("accepted")
        return table.set_column(at, "accepted", table.column("accepted").cast(pa.string()))

    rewrite(folder, "anchors", as_text)
    assert "column 'accepted' has type string, must be int8" in refusal(folder)


def test_gamma_must_match_the_vectors(folder: Path) -> None:
    edit_manifest(folder, gamma=GAMMA + 1)
    assert "column 'confidence' has type fixed_size_list" in refusal(folder)


def test_calibration_must_cover_gamma_and_temperatures(folder: Path) -> None:
    entry = {"temperature": 1.0, "method": "sts", "scales": [1.0], "bias": [0.0]}
    edit_manifest(folder, calibration=[entry])
    assert "needs 4 scales and biases" in refusal(folder)
    entry |= {"temperature": 0.0, "scales": [1.0] * GAMMA, "bias": [0.0] * GAMMA}
    edit_manifest(folder, calibration=[entry])
    assert "no calibration for temperature 1.0" in refusal(folder)


def test_latency_only_bundle(folder: Path, traces: AcceptanceTraces) -> None:
    manifest = replace(load_manifest(folder), files={}, drafter="")
    steps = read_bundle(folder).steps
    write_bundle(folder.parent / "shape", manifest, {"steps": steps})
    back = read_bundle(folder.parent / "shape")
    assert back.latency.max_tokens > 0
    with pytest.raises(BundleError, match="latency only"):
        back.traces  # noqa: B018
    tables = {"responses": trace_tables(traces)["responses"]}
    with pytest.raises(BundleError, match="come together"):
        write_bundle(folder.parent / "half", manifest, tables)


def test_live_tables_keep_their_lists(folder: Path) -> None:
    manifest = replace(load_manifest(folder), files={})
    live = {
        "step": [0, 1],
        "requests": [2, 1],
        "request_ids": [[4, 7], [7]],
        "drafted": [[4, 4], [4]],
        "lengths": [[3, 0], [2]],
        "accepted": [[1, 0], [2]],
        "tokens_planned": [5, 3],
        "tokens_padded": [8, 4],
        "context_tokens": [100, 60],
        **{name: [1.0, 2.0] for name in ("draft_us", "verify_us", "plan_us", "overhead_us")},
        "policy": ["none", "none"],
    }
    tables = {"steps": read_bundle(folder).steps, "live_steps": live}
    write_bundle(folder.parent / "live", manifest, tables)
    back = read_bundle(folder.parent / "live").live_steps
    assert back is not None
    assert [list(row) for row in back["lengths"]] == [[3, 0], [2]]
    assert list(back["policy"]) == ["none", "none"]


def test_default_prefers_h200_then_any_gpu_then_anchors(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_manifest(folder)

    def ship(name: str, **changes: Any) -> None:
        files = {"anchors": FileInfo(10, ""), "steps": FileInfo(1, "")}
        manifest: Manifest = replace(base, name=name, files=files, **changes)
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "manifest.json").write_text(manifest.dump())

    monkeypatch.setattr(bundles, "DATA", tmp_path / "data")
    ship("made-up")
    with pytest.raises(BundleError, match="no measured bundle"):
        default_bundle()
    ship("laptop", kind="measured", hardware="CPU", device="cpu")
    assert default_bundle() == "laptop"
    ship("a100", kind="measured", hardware="NVIDIA A100", device="cuda")
    assert default_bundle() == "a100"
    ship("h200-dflash", kind="measured", hardware="NVIDIA H200", device="cuda", drafter="dflash")
    ship("h200", kind="measured", hardware="NVIDIA H200", device="cuda", drafter="dspark")
    assert default_bundle() == "h200"
    assert find_bundle("laptop") == tmp_path / "data" / "laptop"
    with pytest.raises(BundleError, match="ships \\(a100, h200"):
        find_bundle("nonsense")


def test_every_shipped_bundle_is_valid() -> None:
    for name in bundles.list_bundles():
        assert read_bundle(name).manifest.kind == "measured"


def test_check_command(
    folder: Path, traces: AcceptanceTraces, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(folder)]) == 0
    text = capsys.readouterr().out
    assert f"anchors {traces.anchors}" in text
    assert "synthetic" in text
    for domain in traces.domains:
        assert domain in text
    (folder / "manifest.json").unlink()
    assert main(["check", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    with pytest.raises(SystemExit, match="2"):
        main(["chekc"])
    assert capsys.readouterr().err.count("\n") == 1
