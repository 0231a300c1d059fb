"""Compile every kernel for sm_90a without a GPU, as its host function would launch it.

    python -m tests.kernels.aot [operation ...]

The host functions run on meta tensors of the first and last benchmark shape, those of the heads
also with fp32 logits; each launch is caught, turned into a signature (types, divisibility by 16,
constants) and compiled to machine code by ptxas. One line of JSON per kernel: name, registers and
stack bytes per thread, shared bytes.
Must run without TRITON_INTERPRET, hence in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from drafters.kernels import OPERATIONS
from drafters.kernels.types import DraftLaw

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
TARGET = GPUTarget("cuda", 90, 32)


def compile_launch(
    fn: triton.JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CompiledKernel:
    """Compile one caught launch, specialised as the launcher would."""
    options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
    values = dict(zip(fn.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(fn.params):
        value = values[parameter.name]
        specialise = not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif parameter.is_constexpr or (type(value) is int and value == 1 and specialise):
            signature[parameter.name], constants[(index,)] = "constexpr", value
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, Tensor) or (type(value) is int and value % 16 == 0)
        if (index,) not in constants and aligned and specialise:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, constants, attributes)
    return triton.compile(source, target=TARGET, options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes per thread, read from the machine code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", text)}


def launches(operation: str) -> list[tuple[triton.JITFunction, tuple[Any, ...], dict[str, Any]]]:
    """Kernel launches of the operation's first and last benchmark case, caught and not run."""
    caught = []

    def catch(fn: triton.JITFunction, *args: Any, grid: object, warmup: bool, **kwargs: Any):
        caught.append((fn, args, kwargs))

    bench = import_module(f"drafters.kernels.{operation}.bench")
    run = getattr(import_module(f"drafters.kernels.{operation}.triton"), operation)
    cases = list(bench.CASES.values())
    with patch.object(triton.JITFunction, "run", catch):
        for case in (cases[0], cases[-1]):
            arguments = bench.inputs(torch.device("meta"), **case)
            run(*arguments)
            if operation in ("markov_sample", "verify"):
                run(*wide(arguments))
    return caught


def wide(arguments: tuple[Any, ...]) -> list[Any]:
    """The same arguments with fp32 logits, whose tiles take twice the shared memory."""
    logits, *rest = arguments
    laws = [x._replace(logits=x.logits.float()) if isinstance(x, DraftLaw) else x for x in rest]
    return [logits.float(), *laws]


def main(operations: list[str]) -> None:
    """Compile the launches of ``operations`` (default all) and print what each kernel needs."""
    for operation in operations or OPERATIONS:
        seen = set()
        for fn, args, kwargs in launches(operation):
            compiled = compile_launch(fn, args, kwargs)
            if compiled.hash in seen:
                continue
            seen.add(compiled.hash)
            row = {"kernel": f"{operation}.{fn.__name__}"}
            row["sm_90a"] = ".target sm_90a" in compiled.asm["ptx"]
            row |= resources(compiled.asm["cubin"])
            print(json.dumps(row | {"shared": compiled.metadata.shared}))


if __name__ == "__main__":
    main(sys.argv[1:])
