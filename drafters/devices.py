"""Devices by name: what there is, and what happens where there is none."""

from __future__ import annotations

import torch

from drafters.errors import UserError
from drafters.graphs import say_once


def checked(device: str) -> str:
    """``device``; UserError if it names CUDA and torch sees none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device {device!r}: torch {torch.__version__} sees no CUDA device; give --device cpu"
        )
    return device


def usable(device: str) -> str:
    """``device``, or the CPU in place of a CUDA that is not there, which is said once."""
    try:
        return checked(device)
    except UserError:
        say_once(f"no CUDA device for {device!r}: running on the CPU")
        return "cpu"
