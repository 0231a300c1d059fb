"""The sequential head against its reference and against theory.

Regimes and what each catches: vocabularies that are no multiple of a block (masking), one request
(tile padding), a rank that is no power of two, mixed greedy and sampled requests (branching by
row), forbidden tokens (-inf), strided logits and positions beyond 32-bit offsets (addressing), tied
logits (argmax order), temperatures that divide into infinities, no requests, no positions.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from drafters.kernels import tiles
from drafters.kernels.markov_sample import reference
from drafters.kernels.markov_sample import triton as kernel
from drafters.kernels.types import Drafts
from tests.kernels.helpers import (
    RATIO,
    assert_close,
    assert_drawn,
    far_along,
    move,
    random_head,
    random_logits,
)

RUNS = {"torch": reference.markov_sample, "triton": kernel.markov_sample}
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [  # R, gamma, V, r, d
    (1, 1, 97, 5, 8),
    (3, 4, 97, 16, 33),
    (17, 2, 257, 70, 300),
    (2, 7, 1000, 64, 64),
]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, temperatures: list[float]
) -> list:
    """Arguments of the operation; temperatures are repeated over the requests."""
    requests, gamma, vocab, rank, hidden = shape
    g = torch.Generator().manual_seed(sum(shape))
    arguments = [
        random_logits((requests, gamma, vocab), dtype, g),
        torch.randint(vocab, (requests,), generator=g),
        torch.randn((requests, gamma, hidden), generator=g).to(dtype),
        random_head(vocab, rank, hidden, dtype, g),
        torch.tensor([temperatures[i % len(temperatures)] for i in range(requests)]),
        torch.rand((requests, gamma), generator=g, dtype=torch.float64),
    ]
    return [move(argument, device) for argument in arguments]


def biased_logits(arguments: list, drafts: Drafts) -> Tensor:
    """fp64 logits [R, gamma, V] along the chain that was drawn."""
    logits, anchors, _, head = arguments[:4]
    previous = torch.cat((anchors.unsqueeze(1), drafts.tokens[:, :-1]), 1)
    return logits.double() + head.w1[previous].double() @ head.w2.double().T


@pytest.mark.parametrize(("shape", "dtype"), list(product(SHAPES, DTYPES)))
def test_kernel_follows_the_formula(shape, dtype, device):
    arguments = inputs(shape, dtype, device, [1.0, 0.0, 0.6])
    drafts = kernel.markov_sample(*arguments)
    temperatures, uniforms = arguments[4:]
    biased = biased_logits(arguments, drafts)
    hot = temperatures > 0
    assert torch.equal(drafts.tokens[~hot], biased[~hot].argmax(-1))
    scaled = biased[hot] / temperatures[hot, None, None]
    assert_drawn(
        scaled.softmax(-1).flatten(0, 1), uniforms[hot].flatten(), drafts.tokens[hot].flatten()
    )
    assert_close("normalizer", scaled.logsumexp(-1), drafts.law.log_normalizer[hot], 1e-5)
    log_probs = scaled.log_softmax(-1).gather(-1, drafts.tokens[hot].unsqueeze(-1)).squeeze(-1)
    assert_close("log_probs", log_probs, drafts.law.log_probs[hot], 1e-5)
    assert (drafts.law.log_probs[~hot] == 0).all()


@pytest.mark.parametrize(
    "shape",
    [(19, 4, 300, 32, 40), (19, 2, 700, 80, 40), (130, 2, 300, 80, 8), (2, 2, 300, 300, 5000)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_equals_reference(shape, dtype, device, monkeypatch):
    """One tile a program; programs that walk over several; two tiles of requests; a latent that
    takes several steps of the product, and a long hidden state."""
    monkeypatch.setattr(tiles, "processors", lambda device: 1)
    arguments = inputs(shape, dtype, device, [0.0, 1.0])
    got, expected = kernel.markov_sample(*arguments), reference.markov_sample(*arguments)
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.law.latents, expected.law.latents)
    assert_close("confidences", expected.confidences, got.confidences, RATIO[torch.float32])


def test_confidence_without_latent(device):
    arguments = inputs((3, 2, 97, 16, 33), torch.float32, device, [0.0])
    head = arguments[3]
    arguments[3] = head._replace(confidence_weight=head.confidence_weight[:33].contiguous())
    got, expected = kernel.markov_sample(*arguments), reference.markov_sample(*arguments)
    theory = (arguments[2] @ head.confidence_weight[:33] + head.confidence_bias).sigmoid()
    assert_close("kernel", theory, got.confidences, 1e-5)
    assert_close("reference", theory, expected.confidences, 1e-5)


def test_forbidden_tokens_and_extreme_uniforms(device):
    """Only 5 tokens of two far blocks are allowed; u = 0 and u just under 1 stay among them."""
    arguments = inputs((4, 3, 1000, 16, 8), torch.float32, device, [1.0])
    allowed = torch.tensor([130, 131, 140, 900, 999], device=device)
    mask = torch.full((1000,), float("-inf"), device=device).index_fill_(0, allowed, 0.0)
    arguments[0] = arguments[0] + mask
    arguments[5][:2], arguments[5][2:] = 0.0, 1.0 - 2.0**-53
    tokens = kernel.markov_sample(*arguments).tokens
    assert torch.isin(tokens, allowed).all()
    assert (tokens[:2] == 130).all()
    assert (tokens[2:] == 999).all()


def test_ties_go_to_the_lowest_token(device):
    arguments = inputs((2, 2, 400, 4, 8), torch.float32, device, [0.0])
    arguments[0].zero_()
    arguments[0][0, :, [77, 200, 399]] = 5.0
    head = arguments[3]
    arguments[3] = head._replace(w2=torch.zeros_like(head.w2))
    assert kernel.markov_sample(*arguments).tokens.tolist() == [[77, 77], [0, 0]]


def test_strided_logits_equal_dense_ones(device):
    arguments = inputs((3, 3, 97, 16, 8), torch.float32, device, [1.0])
    dense = kernel.markov_sample(*arguments)
    wide = torch.full((3, 5, 128), float("nan"), device=device)
    wide[:, 1:4, :97] = arguments[0]
    arguments[0] = wide[:, 1:4, :97]
    strided = kernel.markov_sample(*arguments)
    assert torch.equal(dense.tokens, strided.tokens)
    assert torch.equal(dense.law.log_probs, strided.law.log_probs)


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in the interpreter
@pytest.mark.parametrize("run", list(RUNS))
def test_logits_that_are_no_numbers_touch_their_request_alone(run, device):
    arguments = inputs((4, 3, 97, 16, 8), torch.float32, device, [0.0, 1.0])
    right = RUNS[run](*arguments)
    arguments[0] = arguments[0].clone()
    arguments[0][1:3] = float("nan")
    got = RUNS[run](*arguments)
    assert torch.equal(got.tokens[[0, 3]], right.tokens[[0, 3]])
    assert ((got.tokens >= 0) & (got.tokens < 97)).all()


def test_no_requests(device):
    drafts = kernel.markov_sample(*inputs((0, 3, 97, 16, 8), torch.float32, device, [1.0]))
    assert drafts.tokens.shape == (0, 3)


@pytest.mark.parametrize("run", list(RUNS))
def test_no_positions(run, device):
    """gamma = 0: every tensor keeps its type and its other axes."""
    drafts = RUNS[run](*inputs((3, 0, 97, 16, 8), torch.bfloat16, device, [1.0]))
    assert drafts.tokens.shape == drafts.confidences.shape == drafts.law.log_probs.shape == (3, 0)
    assert drafts.law.latents.shape == (3, 0, 16)
    assert drafts.law.latents.dtype == torch.bfloat16
    assert drafts.tokens.dtype == torch.int64


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("temperature", [1e-44, 1e-38, 9e-7])
def test_tiny_temperatures_act_as_zero(run, temperature, device):
    arguments = inputs((3, 4, 97, 16, 33), torch.float32, device, [0.0])
    greedy = RUNS[run](*arguments)
    arguments[4] = torch.full_like(arguments[4], temperature)
    tiny = RUNS[run](*arguments)
    assert torch.equal(tiny.tokens, greedy.tokens)
    assert torch.equal(tiny.law.log_normalizer, greedy.law.log_normalizer)
    assert (tiny.law.log_probs == 0).all()


@pytest.mark.parametrize("argument", [0, 2], ids=["logits", "hidden"])
def test_positions_beyond_32_bits(argument, device):
    arguments = inputs((2, 3, 97, 16, 8), torch.bfloat16, device, [0.0, 1.0])
    near = kernel.markov_sample(*arguments)
    arguments[argument] = far_along(arguments[argument], 1)
    far = kernel.markov_sample(*arguments)
    assert torch.equal(near.tokens, far.tokens)
    assert torch.equal(near.confidences, far.confidences)
