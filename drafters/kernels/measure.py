"""Timing on a CUDA device, what the device can do at best, and where a number came from."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from drafters.provenance import git_commit


class Floor(NamedTuple):
    """Work that an operation cannot do without."""

    bytes: int
    """Inputs read once and outputs written once."""
    flops: int
    """Multiplications and additions of its matrix products, at the bf16 rate."""


class Ceiling(NamedTuple):
    """What this device was measured to reach."""

    bytes_per_s: float
    flops_per_s: float

    def best_us(self, floor: Floor) -> float:
        """No implementation is faster than this, in microseconds."""
        return 1e6 * max(floor.bytes / self.bytes_per_s, floor.flops / self.flops_per_s)


class Timing(NamedTuple):
    """Quantiles over repetitions, microseconds."""

    p20_us: float
    median_us: float
    p80_us: float


def time_call(call: Callable[[], object]) -> Timing:
    """Quantiles of device time over about 200 ms, with the L2 cache emptied before each call."""
    from triton.testing import do_bench

    p20, median, p80 = do_bench(call, warmup=50, rep=200, quantiles=[0.2, 0.5, 0.8])
    return Timing(1e3 * p20, 1e3 * median, 1e3 * p80)


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Replay of ``call`` as a CUDA graph: device time without the host's launches."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure_ceiling() -> Ceiling:
    """Bandwidth of a 2 GiB device copy (read + written), and rate of an 8192^3 bf16 product."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy_us = time_call(lambda: target.copy_(source)).median_us
    a, b = torch.randn((2, 8192, 8192), device="cuda", dtype=torch.bfloat16)
    product_us = time_call(lambda: a @ b).median_us
    return Ceiling(2 * source.nbytes / copy_us * 1e6, 2 * 8192**3 / product_us * 1e6)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV: a measurement and where it was made."""

    operation: str
    case: str
    implementation: str
    median_us: float
    p20_us: float
    p80_us: float
    floor_us: float
    fraction_of_floor: float
    bytes_per_s: float
    flops_per_s: float
    gpu: str
    driver: str
    cuda: str
    torch: str
    triton: str
    commit: str
    measured_at: str


def origin() -> dict[str, str]:
    """The machine and the software, for ``Row``."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": git_commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _output(*command: str) -> str:
    """First line that a command prints, or "unknown" where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0]


def append(path: Path, rows: list[Row]) -> None:
    """Add rows to a CSV; the header is written with the first ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if fresh:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
