"""``draft_loss``: autograd on the plain formula is the reference of the reference.

Regimes: odd vocabularies (one block, a ragged last one), bf16 and fp32, hard and soft labels, rows
of the target shared and out of order, weight 0, no rows at all, forbidden tokens (-inf), logits in
a strided slice, addresses beyond 32 bits.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from drafters.kernels.draft_loss import bench, reference
from tests.kernels.helpers import RATIO, assert_close, far_along, random_logits

KERNEL = import_module("drafters.kernels.draft_loss.triton").draft_loss
WEIGHTS = ((1.0, 0.0), (0.0, 1.0), (0.1, 0.9))


def arguments(rows: int, vocab: int, dtype: torch.dtype, device: torch.device):
    generator = torch.Generator().manual_seed(rows * vocab)
    told = max(1, rows // 2)
    made = (
        random_logits((rows, vocab), dtype, generator),
        random_logits((told, vocab), dtype, generator),
        torch.randint(told, (rows,), generator=generator),
        torch.randint(vocab, (rows,), generator=generator),
        torch.rand(rows, generator=generator) * (torch.arange(rows) != 1),
    )
    return tuple(x.to(device) for x in made)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("a_ce", "a_l1"), WEIGHTS)
def test_reference_equals_autograd(a_ce: float, a_l1: float, soft: bool) -> None:
    logits, told, rows, labels, weights = arguments(6, 33, torch.float32, torch.device("cpu"))
    variable = logits.clone().requires_grad_(True)
    p, q = variable.softmax(-1), told.softmax(-1)[rows]
    goal = q if soft else torch.nn.functional.one_hot(labels, 33).float()
    ce, l1 = -(goal * p.log()).sum(-1), (p - q).abs().sum(-1)
    (weights * (a_ce * ce + a_l1 * l1)).sum().backward()
    got_ce, got_l1 = reference.draft_loss(logits, told, rows, labels, weights, a_ce, a_l1, soft)
    torch.testing.assert_close(got_ce, ce.detach())
    torch.testing.assert_close(got_l1, l1.detach())
    torch.testing.assert_close(logits, variable.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 7), (5, 1000), (3, 4096), (4, 4097), (2, 9001)])
def test_kernel_equals_reference(
    rows: int, vocab: int, soft: bool, dtype: torch.dtype, device: torch.device
) -> None:
    logits, *others = arguments(rows, vocab, dtype, device)
    wanted = logits.float().clone()
    ce, l1 = reference.draft_loss(wanted, *others, 0.1, 0.9, soft)
    got_ce, got_l1 = KERNEL(logits, *others, 0.1, 0.9, soft)
    assert_close("ce", ce, got_ce, RATIO[torch.float32])
    assert_close("l1", l1, got_l1, RATIO[torch.float32])
    assert_close("gradient", wanted, logits.float(), RATIO[dtype])


def test_gradient_sums_to_zero_and_weight_zero_gives_none(device: torch.device) -> None:
    logits, *others = arguments(4, 513, torch.float32, device)
    KERNEL(logits, *others, 0.3, 0.7, False)
    torch.testing.assert_close(logits.sum(-1), torch.zeros(4, device=device), atol=1e-5, rtol=0)
    assert not logits[1].any()
    assert logits[0].any()


def test_no_rows_and_forbidden_tokens(device: torch.device) -> None:
    logits, told, rows, labels, weights = arguments(3, 70, torch.float32, device)
    logits[:, 40:], told[:, 50:], labels = float("-inf"), float("-inf"), labels % 40
    ce, l1 = KERNEL(logits, told, rows, labels, weights, 0.1, 0.9, False)
    assert torch.isfinite(ce).all()
    assert torch.isfinite(l1).all()
    assert torch.isfinite(logits).all()
    empty = KERNEL(logits[:0], told, rows[:0], labels[:0], weights[:0], 0.1, 0.9, False)
    assert [x.shape[0] for x in empty] == [0, 0]


def test_rows_beyond_32_bits(device: torch.device) -> None:
    logits, told, rows, labels, weights = arguments(3, 64, torch.bfloat16, device)
    far = far_along(logits)
    wanted = KERNEL(logits, told, rows, labels, weights, 0.1, 0.9, False)
    got = KERNEL(far, told, rows, labels, weights, 0.1, 0.9, False)
    assert torch.equal(torch.stack(wanted), torch.stack(got))
    assert torch.equal(far, logits)


def test_floor_by_hand() -> None:
    """8 x 100 bf16 logits in and out, 2 rows of the target."""
    given = bench.inputs(torch.device("cpu"), rows=8, vocab=100)
    assert bench.floor(*given).bytes == (2 * 8 * 100 + 2 * 100) * 2
