"""Who may import whom: the rooms of the house, read from the source, and seen at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("policies", "gpu_traces", "sim", "drafters", "app")
MAY_IMPORT = {
    "policies": {"policies"},
    "gpu_traces": {"gpu_traces", "policies"},
    "sim": {"sim", "policies", "gpu_traces"},
    "drafters": {"drafters", "policies", "gpu_traces"},
    "app": {"app", "sim", "policies", "gpu_traces"},
}
FORBIDDEN = {
    "policies": {"simpy", "torch", "pandas", "transformers", "streamlit"},
    "gpu_traces": {"simpy", "torch", "transformers", "streamlit"},
    "sim": {"torch", "transformers", "streamlit"},
    "drafters": {"simpy", "streamlit"},
    "app": {"torch", "transformers"},
}


def imported(path: Path) -> set[tuple[str, bool]]:
    """(dotted module, at import time?) of every import statement in a file."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        found |= {(name, id(node) not in lazy) for name in names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name, eager in imported(path):
            top = name.split(".")[0]
            where = f"{path.relative_to(ROOT)} imports {name}"
            if room == "app" and top == "drafters" and not eager:
                continue  # the live page may, lazily
            assert top not in FORBIDDEN[room], where
            assert top not in ROOMS or top in MAY_IMPORT[room], where


def test_gpu_traces_takes_only_the_cost_table_from_policies() -> None:
    for path in (ROOT / "gpu_traces").rglob("*.py"):
        for name, _ in imported(path):
            assert not name.startswith("policies") or name == "policies.cost", f"{path}: {name}"


def test_core_rooms_run_without_torch() -> None:
    """The light install: simulating must not pull in torch, not even indirectly."""
    code = (
        "import sim.run, policies.registry, gpu_traces.bundle, sys; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
