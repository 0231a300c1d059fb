"""The benchmark's refusals and arithmetic; timings themselves are not tested."""

from __future__ import annotations

import subprocess
from importlib import import_module

import pytest
import torch

from drafters.errors import UserError
from drafters.kernels import bench
from drafters.kernels.measure import Ceiling, Floor, Row, append

ROW = Row(*("op", "case", "triton", 20.0, 19.0, 22.0, 15.0, 0.75, 4e12, 8e14, *"gdcttmx"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cpu"], "run on a machine with an NVIDIA GPU"),
        (["sort"], "unknown operation 'sort'; known: markov_sample, verify"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(argv, message, capsys):
    assert bench.main(argv) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


def test_red_tests_stop_the_benchmark(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="1 failed in 2.00s\n", stderr="")
    monkeypatch.setattr(bench.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match="must pass on this device.*1 failed"):
        bench._require_green("verify")


def test_the_floor_is_the_slower_of_bytes_and_products():
    ceiling = Ceiling(bytes_per_s=4e12, flops_per_s=8e14)
    assert ceiling.best_us(Floor(bytes=4_000_000, flops=8)) == pytest.approx(1.0)
    assert ceiling.best_us(Floor(bytes=4, flops=1_600_000_000)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("operation", "expected_bytes"),
    [
        # 7 positions of 2 x 1000 fp32 logits and 1000 x 256 fp32 weights
        ("markov_sample", 7 * (2 * 1000 + 1000 * 256) * 4),
        # 2 x 8 target rows, 2 draft rows and W2, all bf16
        ("verify", (16 * 1000 + 2 * 1000 + 1000 * 256) * 2),
        # keys and values of 2 x 1024 tokens, queries and outputs of 2 x 8, all bf16
        ("ragged_attention", (2 * 2 * 1024 * 3 * 64 + 2 * 2 * 8 * 9 * 64) * 2),
        # 2 x 7 fp32 in; lengths and offsets out
        ("prefix_schedule", 2 * 7 * 4 + 2 * 24),
    ],
)
def test_floors_by_hand(operation, expected_bytes):
    """The first case of each operation, with 2 requests and a vocabulary of 1,000."""
    module = import_module(f"drafters.kernels.{operation}.bench")
    case = {**next(iter(module.CASES.values())), "requests": 2}
    case |= {"vocab": 1000} if "vocab" in case else {}
    arguments = module.inputs(torch.device("cpu"), **case)
    assert module.floor(*arguments).bytes == expected_bytes


def test_rows_are_appended_under_one_header(tmp_path):
    path = tmp_path / "new" / "kernels.csv"
    append(path, [ROW])
    append(path, [ROW, ROW])
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("operation,case,implementation,median_us,p20_us,p80_us,floor_us")
    assert lines[1].startswith("op,case,triton,20.0,19.0,22.0,15.0,0.75")


def test_summary_names_spread_floor_and_rivals():
    eager = ROW.__class__(*("op", "case", "eager", 80.0, *([0.0] * 6), *"gdcttmx"))
    assert bench.summary([ROW, eager]) == (
        "op case: 20.0 us (19.0-22.0), 75% of the floor (15.0 us), 4.0x eager"
    )
