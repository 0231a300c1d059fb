"""Which implementation runs an operation, and the check of what it is given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

_log = logging.getLogger(__name__)


def implementation(operation: str, tensor: Tensor) -> Callable[..., Any]:
    """The function that runs ``operation`` on the tensor's device."""
    return _load(operation, backend(tensor.device.type))


@cache
def backend(device_type: str) -> str:
    """``triton`` on CUDA where Triton is installed, else ``reference``; said once in the log."""
    missing = find_spec("triton") is None
    if device_type == "cuda" and not missing:
        _log.info("kernels on cuda: Triton")
        return "triton"
    if device_type == "cuda":
        _log.warning("kernels on cuda: plain torch (Triton is not installed)")
    else:
        _log.info("kernels on %s: plain torch (Triton needs CUDA)", device_type)
    return "reference"


@cache
def _load(operation: str, backend: str) -> Callable[..., Any]:
    return getattr(import_module(f"drafters.kernels.{operation}.{backend}"), operation)


def require(name: str, tensor: Tensor, shape: tuple[int, ...], strided: bool = False) -> None:
    """Raise ValueError unless ``tensor`` has this shape and is contiguous.

    ``strided``: only the last axis need be dense, as in a slice of a larger tensor.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, must be {list(shape)}")
    if strided and tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"the last axis of {name} has stride {tensor.stride(-1)}, must be 1")
    if not strided and not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {list(tensor.stride())}, must be contiguous")
