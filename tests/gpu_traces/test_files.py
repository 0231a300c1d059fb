"""Files: names that only look like something else."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gpu_traces.files import read_frame


def test_a_relative_name_with_a_colon_is_no_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("live-fixed-k:k=7") / "steps.parquet"
    path.parent.mkdir()
    wanted = pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]})
    wanted.to_parquet(path.absolute())
    pd.testing.assert_frame_equal(read_frame(path), wanted)
    pd.testing.assert_frame_equal(read_frame(path, columns=["b"]), wanted[["b"]])
