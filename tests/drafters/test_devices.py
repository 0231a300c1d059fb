"""Memory of the CPU: large tensors come in huge pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT = """
import resource
import drafters, torch

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.empty(2**24).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """Page faults of four tensors of 64 MiB each."""
    inherited = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    ran = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=inherited | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(ran.stdout)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="this kernel gives huge pages to all or to none",
)
def test_large_tensors_come_in_huge_pages() -> None:
    """16,384 small pages of 4 KiB each, or 32 of 2 MiB; some at the ends stay small. What the user
    sets holds."""
    assert faults() < faults(THP_MEM_ALLOC_ENABLE="0") / 2
