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
RUN = """
import sys
from sim.run import main
sys.exit(main(["--policy", "half-and-half,none", "--requests", "40", "--out", sys.argv[1]]))
"""
DASHBOARD = """
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("app/main.py", default_timeout=120).run()
assert not app.exception, app.exception
assert "half-and-half" in app.multiselect(key="policies").options
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of an interpreter that has the example package installed beside the lab."""
    tmp_path = tmp_path_factory.mktemp("third")
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    (source / "half_and_half").mkdir(parents=True)
    for file in ("pyproject.toml", "half_and_half/__init__.py"):
        (source / file).write_bytes((EXAMPLE / file).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, *flags, str(source)], check=True, capture_output=True, timeout=120)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}


def _python(program: str, environment: dict[str, str], *words: str) -> str:
    """What a fresh interpreter prints."""
    used = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert used.returncode == 0, used.stderr
    return used.stdout


def test_installed_example_is_discovered(environment: dict[str, str]) -> None:
    """names() lists it, create() builds it, plan() answers."""
    assert len(_python(USE, environment).split(",")) == 4


def test_installed_example_runs_in_the_command_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """It is a choice of sim.run like any other, and its row is in the table."""
    assert "half-and-half" in _python(RUN, environment, str(tmp_path / "run"))


def test_installed_example_is_in_the_dashboard(environment: dict[str, str]) -> None:
    """The menu of policies offers it."""
    pytest.importorskip("streamlit")
    _python(DASHBOARD, environment)
