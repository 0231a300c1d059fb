"""Time the kernels against eager torch and torch.compile, as fractions of the device's floor.

    python -m drafters.kernels.bench [operation ...] --device cuda [--out kernels.csv]

Nothing is timed before the operation's own tests pass on the same device. The kernels run as a
captured CUDA graph, as in the engine. The floor is the time that the bytes which must move take at
the copy bandwidth measured in the same run, or the matrix products at the measured bf16 rate,
whichever is longer. Rows are appended to the CSV with the machine they were measured on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from drafters.errors import UserError
from drafters.kernels import OPERATIONS
from drafters.kernels.measure import (
    Ceiling,
    Row,
    append,
    captured,
    measure_ceiling,
    origin,
    time_call,
)
from gpu_traces.commands import Parser

ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr."""
    parser = Parser("python -m drafters.kernels.bench", __doc__.partition("\n")[0])
    parser.add_argument("operations", nargs="*", help=f"default: all of {', '.join(OPERATIONS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("kernels.csv"), help="CSV to append to")
    options = parser.parse_args(argv)
    try:
        operations = _chosen(options.operations)
        _require_cuda(options.device)
        for operation in operations:
            _require_green(operation)
        ceiling = measure_ceiling()
        print(f"{ceiling.bytes_per_s / 1e12:.2f} TB/s, {ceiling.flops_per_s / 1e12:.0f} TFLOP/s")
        for operation in operations:
            for case in import_module(f"drafters.kernels.{operation}.bench").CASES:
                rows = measure(operation, case, ceiling)
                append(options.out, rows)
                print(summary(rows), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _chosen(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in OPERATIONS:
            raise UserError(f"unknown operation {name!r}; known: {', '.join(OPERATIONS)}")
    return tuple(names) or OPERATIONS


def _require_cuda(device: str) -> None:
    if device == "cpu":
        raise UserError(
            "--device cpu: off CUDA the kernels only run interpreted, and such timings mean "
            "nothing; run on a machine with an NVIDIA GPU, with --device cuda"
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; install a CUDA build "
            "of torch on a machine with an NVIDIA GPU"
        )


def _require_green(operation: str) -> None:
    """Run the operation's tests, compiled, on the device; UserError unless they pass."""
    tests = f"tests/kernels/test_{operation}.py"
    command = [sys.executable, "-m", "pytest", "-q", tests, "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
        raise UserError(f"{tests} must pass on this device before it is timed: {last}")


def measure(operation: str, case: str, ceiling: Ceiling) -> list[Row]:
    """Kernel (captured), eager reference and compiled reference on the same inputs."""
    module = import_module(f"drafters.kernels.{operation}.bench")
    arguments = module.inputs(torch.device("cuda"), **module.CASES[case])
    floor_us = ceiling.best_us(module.floor(*arguments))
    where = origin()
    rows = []
    for name, call in _implementations(operation, arguments).items():
        timing = time_call(call)
        fraction = floor_us / timing.median_us
        rows.append(
            Row(
                operation,
                case,
                name,
                timing.median_us,
                timing.p20_us,
                timing.p80_us,
                floor_us,
                fraction,
                *ceiling,
                **where,
            )
        )
    return rows


def _implementations(operation: str, arguments: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
    kernel, reference = (_function(operation, part) for part in ("triton", "reference"))
    torch.compiler.reset()  # past its limit of recompilations it would run eagerly
    compiled = torch.compile(reference)
    return {
        "triton": captured(lambda: kernel(*arguments)),
        "eager": lambda: reference(*arguments),
        "compile": lambda: compiled(*arguments),
    }


def _function(operation: str, part: str) -> Callable[..., Any]:
    module: ModuleType = import_module(f"drafters.kernels.{operation}.{part}")
    return getattr(module, operation)


def summary(rows: list[Row]) -> str:
    """One line: the kernel's time, its spread and floor, and how many times it beats the others."""
    kernel, *others = rows
    versus = ", ".join(
        f"{row.median_us / kernel.median_us:.1f}x {row.implementation}" for row in others
    )
    return (
        f"{kernel.operation} {kernel.case}: {kernel.median_us:.1f} us "
        f"({kernel.p20_us:.1f}-{kernel.p80_us:.1f}), {kernel.fraction_of_floor:.0%} of the floor "
        f"({kernel.floor_us:.1f} us), {versus}"
    )


if __name__ == "__main__":
    sys.exit(main())
