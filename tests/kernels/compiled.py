"""Compile every Triton kernel for a Hopper GPU where there is none: ``python -m
tests.kernels.compiled [OPERATION ...]``.

Runs the operations on CPU tensors with launching switched off: Triton specialises on the arguments,
compiles down to machine code and stops. Prints a line per binary. The interpreter, which the other
tests use, accepts much that the compiler refuses.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from drafters import kernels
from drafters.kernels import dispatch

LARGEST = {"requests": 200, "rows": 1024, "vocab": 50_000}  # above, the binaries are the same


class NoDevice:
    """What the compiler asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def cases(operations: Sequence[str]) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """(operation, case, arguments) of every benchmark case that is small enough to build here."""
    for operation in operations:
        bench = importlib.import_module(f"drafters.kernels.{operation}.bench")
        for name, options in bench.CASES.items():
            if all(options.get(key, 0) <= most for key, most in LARGEST.items()):
                yield operation, name, bench.inputs(torch.device("cpu"), **options)


def main() -> int:
    """0 if everything compiled; Triton's own error otherwise."""
    run, seen = JITFunction.run, set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            shape = kernel.metadata
            print(f"{self.__name__}: {shape.shared} bytes shared, {shape.num_warps} warps")
        return kernel

    JITFunction.run = compile_only
    driver.set_active(NoDevice())
    dispatch.backend = lambda kind: "triton"
    for operation, name, arguments in cases(sys.argv[1:] or kernels.OPERATIONS):
        print(f"{operation} {name}", flush=True)
        getattr(kernels, operation)(*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
