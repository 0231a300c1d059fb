"""The example package is found through its entry point, by a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "third_party_policy"
USE = """
from policies.registry import create, names
from tests.policies.states import make_state
assert "half-and-half" in names(), names()
state = make_state(7, 4, 0)
print(create("half-and-half", 7, long=2).plan(state).lengths.tolist())
"""


def test_installed_example_is_discovered(tmp_path: Path) -> None:
    """pip installs it beside the lab; names() lists it, create() builds it, plan() answers."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    (source / "half_and_half").mkdir(parents=True)
    for file in ("pyproject.toml", "half_and_half/__init__.py"):
        (source / file).write_bytes((EXAMPLE / file).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, *flags, str(source)], check=True, capture_output=True, timeout=120)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    used = subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert used.returncode == 0, used.stderr
    assert len(used.stdout.split(",")) == 4
