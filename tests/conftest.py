"""Options that hold for the whole test run; they must be known before anything is collected."""

from __future__ import annotations

import os
import sys

import pytest

# Threads that wait actively starve each other on a busy machine: ten times slower, at worst.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A worker of pytest-xdist inherits what its controller sets here, but not the command line.
if "PYTEST_XDIST_WORKER" not in os.environ and not {"cuda", "--device=cuda"} & set(sys.argv):
    # Triton reads this when it is first imported, which any conftest or test module may cause.
    os.environ["TRITON_INTERPRET"] = "1"
else:
    # Triton 3.9 warns, which fails a test, unless told what to do with a * b + c.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs the kernel tests compiled, on the GPU; the default interprets them."""
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="kernels' device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU unless one was asked for."""
    if config.getoption("--device") == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs --device cuda"))
