"""The kernels compile for a real GPU, not only for the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drafters.kernels import OPERATIONS

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernels_compile_to_machine_code(operation: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled", operation],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bytes shared" in done.stdout
