"""Real models: targets, drafters, training, calibration, live decoding, the trace recorder."""

from __future__ import annotations

import os
from typing import Any

# Large CPU tensors in huge pages, which torch reads at its first one: each is mapped anew, and
# clearing it in small pages can take the kernel as long as a training step's arithmetic.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``drafters.load`` on first use, so that importing the package stays light."""
    if name == "load":
        from drafters.checkpoint import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
