"""Out-of-bounds accesses in Triton's interpreter, which by itself reads and writes any address.

``checked`` holds every unmasked load and store of an interpreted kernel against the memory of the
tensors that the kernel was given; ``OutOfBounds`` tells where one lies outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


class OutOfBounds(AssertionError):
    """An address outside all of a kernel's tensors."""


def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check interpreted kernels for the rest of a test."""
    launched = {"kernel": "", "memory": []}
    launch = interpreter.GridExecutor.__call__

    def watched(executor: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if hasattr(x, "untyped_storage")]
        storages = [tensor.untyped_storage() for tensor in tensors]
        memory = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages})
        launched.update(kernel=executor.fn.__name__, memory=memory)
        return launch(executor, *args, **kwargs)

    def guarded(access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def run(builder: Any, pointers: Any, *rest: Any) -> Any:
            mask = np.broadcast_to(rest[mask_at].data, pointers.data.shape)
            _inside(pointers.data[mask.astype(bool)], access.__name__, **launched)
            return access(builder, pointers, *rest)

        return run

    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched)
    load, store = builder.create_masked_load, builder.create_masked_store
    monkeypatch.setattr(builder, "create_masked_load", guarded(load, 0))
    monkeypatch.setattr(builder, "create_masked_store", guarded(store, 1))


def _inside(addresses: np.ndarray, access: str, kernel: str, memory: list[tuple[int, int]]) -> None:
    inside = np.zeros(addresses.shape, dtype=bool)
    for first, end in memory:
        inside |= (addresses >= first) & (addresses < end)
    if not inside.all():
        raise OutOfBounds(f"{kernel}: {access} at {(~inside).sum()} of {inside.size} addresses")
