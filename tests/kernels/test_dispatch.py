"""The public functions: which implementation they run, what they refuse, what they say."""

from __future__ import annotations

import logging

import pytest
import torch

from drafters import kernels
from drafters.kernels import dispatch
from drafters.kernels.types import SequentialHead


@pytest.fixture(autouse=True)
def _forget_choice():
    dispatch.backend.cache_clear()
    yield
    dispatch.backend.cache_clear()


@pytest.mark.parametrize("operation", kernels.OPERATIONS)
def test_functions_survive_the_import_of_their_packages(operation):
    """A package of the same name must not take the function's place."""
    dispatch._load(operation, "reference")
    assert callable(getattr(kernels, operation))


def test_cpu_runs_the_reference_and_says_so_once(caplog):
    confidences, budget = torch.full((2, 3), 0.5), torch.tensor([3])
    with caplog.at_level(logging.INFO, logger="drafters.kernels"):
        for _ in range(2):
            schedule = kernels.prefix_schedule(confidences, torch.tensor([3, 3]), budget)
    assert schedule.lengths.tolist() == [2, 1]
    assert [r.getMessage() for r in caplog.records] == [
        "kernels on cpu: plain torch (Triton needs CUDA)"
    ]


@pytest.mark.parametrize(("installed", "chosen"), [(True, "triton"), (False, "reference")])
def test_cuda_runs_triton_where_it_is_installed(installed, chosen, monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object() if installed else None)
    assert dispatch.backend("cuda") == chosen


def test_a_round_through_the_public_functions():
    """Draft, schedule, verify and attend at once on the CPU: shapes and types fit together."""
    requests, gamma, vocab = 3, 4, 50
    head = SequentialHead(*torch.randn(2, vocab, 8), torch.randn(8 + 6), torch.zeros(1))
    temperatures = torch.tensor([0.0, 1.0, 0.5])
    noise = kernels.uniforms(torch.arange(3), torch.zeros(3, dtype=torch.int64), 2 * gamma + 1)
    drafts = kernels.markov_sample(
        torch.randn(requests, gamma, vocab),
        torch.tensor([1, 2, 3]),
        torch.randn(requests, gamma, 6),
        head,
        temperatures,
        noise[:, :gamma],
    )
    schedule = kernels.prefix_schedule(
        drafts.confidences, torch.full((requests,), gamma), torch.tensor([7])
    )
    assert schedule.cu_rows[-1] == 7 + requests
    queries = torch.randn(10, 2, 16)
    caches = torch.randn(2, 3, 16, 1, 16)
    tables, contexts = torch.arange(3).unsqueeze(1), torch.full((3,), 12)
    attended = kernels.ragged_attention(
        queries, *caches, tables, schedule.cu_rows, contexts, gamma + 1
    )
    verdict = kernels.verify(
        attended.flatten(1) @ torch.randn(32, vocab),
        schedule.cu_rows,
        drafts.tokens,
        drafts.law,
        temperatures,
        noise[:, gamma:-1],
        noise[:, -1].contiguous(),
    )
    assert (verdict.accepted <= schedule.lengths).all()
    assert ((verdict.next_tokens >= 0) & (verdict.next_tokens < vocab)).all()


def test_wrong_shapes_and_strides_are_named():
    with pytest.raises(ValueError, match=r"drafted has shape \[3\], must be \[2\]"):
        kernels.prefix_schedule(torch.zeros(2, 3), torch.zeros(3).long(), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"cu_rows has strides \[2\], must be contiguous"):
        kernels.verify(
            torch.zeros(2, 5),
            torch.zeros(6).long()[::2],
            torch.zeros(2, 1).long(),
            None,
            torch.zeros(2),
            torch.zeros(2, 1),
            torch.zeros(2),
        )
    with pytest.raises(ValueError, match="last axis of confidences has stride 4, must be 1"):
        kernels.prefix_schedule(torch.zeros(3, 4).T, torch.zeros(4).long(), torch.tensor([1]))
