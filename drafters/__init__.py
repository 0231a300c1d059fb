"""Real models: targets, drafters, training, calibration, live decoding, the trace recorder."""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``drafters.load`` on first use, so that importing the package stays light."""
    if name == "load":
        from drafters.checkpoint import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
