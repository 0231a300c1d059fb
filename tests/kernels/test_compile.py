"""Every kernel compiles to machine code for sm_90a (H100, H200), with no GPU at hand.

Catches what the interpreter lets pass: types that change inside a branch, shapes that are no power
of two, names the compiler cannot resolve, and tiles that spill or exceed shared memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from drafters.kernels import OPERATIONS

MAX_STACK_BYTES = 64
"""Per thread; a kernel that spills its tile uses hundreds."""
MAX_SHARED_BYTES = 227 * 1024
"""Of one block on sm_90."""


def test_kernels_compile_for_hopper(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.aot"],
        cwd=Path(__file__).parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"].partition(".")[0] for row in rows} == set(OPERATIONS)
    for row in rows:
        assert row["sm_90a"], row
        assert row["stack"] <= MAX_STACK_BYTES, row
        assert row["shared"] <= MAX_SHARED_BYTES, row
