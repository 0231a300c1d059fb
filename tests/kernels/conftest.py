"""Fixtures of the kernel tests: the device, and memory that shows when it was never written."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run: ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _in_bounds(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels keep to the tensors that they are given."""
    if device.type == "cpu":
        from tests.kernels.bounds import checked

        checked(monkeypatch)


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.empty`` filled with NaN (integers: a huge negative), so unwritten outputs fail."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        out = empty(*args, **kwargs)
        return out.fill_(float("nan") if out.is_floating_point() else -(2**30))

    monkeypatch.setattr(torch, "empty", poisoned)
