"""Devices by name: what there is, and what happens where there is none."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from drafters.errors import UserError
from drafters.graphs import say_once


def checked(device: str) -> str:
    """``device``; UserError if torch knows no such device or cannot use it here."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device {device!r}: torch {torch.__version__} sees no CUDA device; give --device cpu"
        )
    try:
        torch.zeros(1, device=device).item()  # of device "meta" nothing can be read
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # streams, graphs and Triton go to the current one
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(f"device {device!r} cannot be used ({reason}); give cpu or cuda") from None
    return device


def usable(device: str) -> str:
    """``device``, or the CPU in place of a CUDA that is not there, which is said once."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        say_once(f"no CUDA device for {device!r}: running on the CPU")
        return "cpu"
    return checked(device)


def available_bytes() -> float:
    """Memory that a new allocation may fill without swapping; inf where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((1024.0 * int(words[1]) for words in found), math.inf)
