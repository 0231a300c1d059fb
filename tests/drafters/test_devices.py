"""Memory of the CPU: what was freed is handed out again, not mapped and cleared anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from drafters.devices import keep_freed_memory

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
mapped = faults(5)
keep_freed_memory()
faults(20)
print(mapped, faults(5))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="of another C library nothing is known"
)
def test_freed_tensors_cost_no_page_faults() -> None:
    """64 MiB are 16,384 pages of 4 KiB; huge pages make fewer, so the counts are compared."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    mapped, kept = map(int, ran.stdout.split())
    assert mapped > 5
    assert kept < mapped / 10
