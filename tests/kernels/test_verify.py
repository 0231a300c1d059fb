"""Ragged verification against rejection sampling written out in fp64, and against its purpose.

Regimes and what each catches: requests without rows, without drafts and with gamma drafts (row
bookkeeping), greedy beside sampled requests, the three kinds of draft law, odd vocabularies
(masking), ties (argmax order), a residual that rounds to nothing, rows beyond 32-bit offsets. The
last tests check losslessness itself on the whole draft-and-verify round.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from drafters.kernels import tiles
from drafters.kernels.markov_sample import reference as markov_reference
from drafters.kernels.markov_sample import triton as markov_kernel
from drafters.kernels.noise import uniforms
from drafters.kernels.types import DraftLaw, SequentialHead, Verdict, complete_law
from drafters.kernels.verify import reference
from drafters.kernels.verify import triton as kernel
from tests.kernels.helpers import assert_drawn, far_along, move, random_head, random_logits

DTYPES = [torch.float32, torch.bfloat16]
LAWS = ["markov", "complete", "point"]


class Case(NamedTuple):
    """Arguments of ``verify``, in its order."""

    target_logits: Tensor
    cu_rows: Tensor
    draft_tokens: Tensor
    law: DraftLaw | None
    temperatures: Tensor
    accept_uniforms: Tensor
    next_uniforms: Tensor


def case(
    lengths: list[int],
    vocab: int,
    dtype: torch.dtype,
    kind: str,
    device: torch.device,
    gamma: int = 4,
    rank: int = 12,
) -> Case:
    """Drafts that resemble the target; length -1 is a request without rows, T cycles 0, 1, 0.7."""
    g = torch.Generator().manual_seed(vocab + len(lengths))
    requests = len(lengths)
    temperatures = torch.tensor([(1.0, 0.0, 0.7)[i % 3] for i in range(requests)])
    base = random_logits((requests, gamma, vocab), dtype, g)
    head = random_head(vocab, rank, 8, dtype, g)
    anchors = torch.randint(vocab, (requests,), generator=g)
    hidden = torch.zeros((requests, gamma, 8), dtype=dtype)
    draws = torch.rand((3, requests, gamma + 1), generator=g, dtype=torch.float64)
    drafts = markov_reference.markov_sample(
        base, anchors, hidden, head, temperatures, draws[0, :, :gamma].contiguous()
    )
    biased = base.float() + drafts.law.latents.float() @ head.w2.float().T
    law = drafts.law
    if kind == "complete":
        law = complete_law(biased, drafts.tokens, temperatures)
    rows = [
        biased[r, j] if j < gamma else base[r, 0].float()
        for r, length in enumerate(lengths)
        for j in range(length + 1)
    ]
    padding = torch.zeros(3, vocab)
    target = torch.stack([row + torch.randn(vocab, generator=g) for row in rows])
    arguments = Case(
        torch.cat((target, padding)).to(dtype),
        torch.tensor([0, *(length + 1 for length in lengths)]).cumsum(0).int(),
        drafts.tokens,
        None if kind == "point" else law,
        temperatures,
        draws[1, :, :gamma].contiguous(),
        draws[2, :, 0].contiguous(),
    )
    return Case(*(move(argument, device) for argument in arguments))


def softmax(logits: Tensor, temperature: float) -> Tensor:
    """fp64 probabilities; a point mass at the first maximum where T is 0."""
    if temperature == 0:
        return torch.zeros(logits.shape[-1], dtype=torch.float64).index_fill_(
            0, logits.argmax(-1), 1.0
        )
    return (logits.double() / temperature).softmax(-1)


def assert_rejection_sampling(given: Case, verdict: Verdict) -> None:
    """Walk each request by the textbook, in fp64, and hold the verdict against it."""
    given = Case(*(move(part, torch.device("cpu")) for part in given))
    bounds, accepted = given.cu_rows.tolist(), verdict.accepted.tolist()
    for r, temperature in enumerate(given.temperatures.tolist()):
        first, drafts = bounds[r], bounds[r + 1] - bounds[r] - 1
        if drafts < 0:
            assert (accepted[r], int(verdict.next_tokens[r])) == (0, -1)
            continue
        expected, residual = 0, None
        for j in range(drafts):
            target = softmax(given.target_logits[first + j], temperature)
            token = given.draft_tokens[r, j]
            draft = torch.zeros_like(target).index_fill_(0, token, 1.0)
            if given.law is not None and temperature > 0:
                logits = given.law.logits[r, j].double()
                if given.law.latents is not None:
                    logits = logits + given.law.w2.double() @ given.law.latents[r, j].double()
                draft = softmax(logits, temperature)
            if given.accept_uniforms[r, j] * draft[token] >= target[token]:
                residual = (target - draft).clamp_min(0)
                break
            expected += 1
        assert accepted[r] == expected, f"request {r}"
        if residual is None:
            residual = softmax(given.target_logits[first + drafts], temperature)
        assert_drawn(
            residual.unsqueeze(0),
            given.next_uniforms[r : r + 1],
            verdict.next_tokens[r : r + 1].cpu(),
        )


LENGTHS = {
    97: [0, 4, 2, -1, 3, 1, 4, 4, 0, -1, 4, 3, 2, 4, 4, 4, 4, 4, 4],
    257: [4],
    1000: [4, 0, 3],
    9000: [2, 1, 0, 3],
}


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
@pytest.mark.parametrize(("vocab", "dtype", "law"), list(product(LENGTHS, DTYPES, LAWS)))
def test_rejection_sampling(run, vocab, dtype, law, device):
    given = case(LENGTHS[vocab], vocab, dtype, law, device)
    assert_rejection_sampling(given, run(*given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [LENGTHS[97], [1] * 130], ids=["one tile", "two tiles"])
def test_programs_that_walk_over_the_vocabulary(lengths, dtype, device, monkeypatch):
    """A rank above 64 on a GPU of one processor: 11 blocks to one or two programs."""
    monkeypatch.setattr(tiles, "processors", lambda device: 1)
    given = case(lengths, 700, dtype, "markov", device, gamma=max(lengths), rank=80)
    assert_rejection_sampling(given, kernel.verify(*given))


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_forbidden_tokens_are_not_drawn(run, temperature, device):
    """Whole blocks of -inf, logits 500 apart, and uniforms at both ends of [0, 1)."""
    allowed = torch.tensor([5, 4990, 4991], device=device)
    logits = torch.full((6, 5000), float("-inf"), device=device)
    logits[:, allowed] = torch.tensor([-400.0, 100.0, 100.0], device=device)
    tokens = torch.tensor([[4990], [5], [7]], device=device)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53, 0.5], dtype=torch.float64, device=device)
    verdict = run(
        logits,
        torch.tensor([0, 2, 4, 6], device=device),
        tokens,
        None,
        torch.full((3,), temperature, device=device),
        torch.full((3, 1), 0.25, device=device),
        ends,
    )
    assert verdict.accepted.tolist() == [1, 0, 0]
    last = 4990 if temperature == 0 else 4991
    assert verdict.next_tokens.tolist() in ([4990, last, 4990], [4990, last, last])


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
def test_plain_decoding_is_verification_of_nothing(run, device):
    """gamma = 0: every request draws from its only row."""
    given = case([0, 0, 0, -1], 97, torch.float32, "complete", device, gamma=1)
    none = given.draft_tokens[:, :0]
    given = given._replace(draft_tokens=none, law=None, accept_uniforms=none.double())
    assert_rejection_sampling(given, run(*given))


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
def test_no_requests(run, device):
    given = case([0], 97, torch.float32, "complete", device)
    law = DraftLaw(given.law.logits[:0], None, None, *(part[:0] for part in given.law[3:]))
    parts = (part[:0] for part in (given.draft_tokens, *given[4:]))
    tokens, *rest = parts
    verdict = run(given.target_logits, given.cu_rows[:1], tokens, law, *rest)
    assert verdict.accepted.shape == verdict.next_tokens.shape == (0,)


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
def test_greedy_ties_go_to_the_lowest_token(run, device):
    """Tied logits in one block (5, 6) and in two (5, 200): only a draft of token 5 stands."""
    logits = torch.zeros((8, 300), device=device)
    logits[:, [5, 6, 200]] = 2.0
    drafts = torch.tensor([[5, 5, 5], [6, 5, 5], [200, 5, 5], [7, 5, 5]], device=device)
    cu_rows = torch.tensor([0, 2, 4, 6, 8], device=device)
    verdict = run(
        logits, cu_rows, drafts, None, logits[0, :4], drafts.double() * 0, logits[0, :4].double()
    )
    assert verdict.accepted.tolist() == [1, 0, 0, 0]
    assert verdict.next_tokens.tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
def test_rejection_without_residual_takes_the_argmax(run, device):
    """p_t = p_d = 1 on token 130; a wrong log p_d forces the rejection that rounding could."""
    logits = torch.full((2, 300), float("-inf"), device=device)
    logits[:, 130] = 1.0
    tokens = torch.full((1, 1), 130, device=device)
    one = torch.ones(1, device=device)
    law = complete_law(logits[:1].unsqueeze(0), tokens, one)
    law = law._replace(log_probs=law.log_probs + 5.0)
    half = torch.full((1, 1), 0.5, device=device)
    verdict = run(logits, torch.tensor([0, 2], device=device), tokens, law, one, half, half[0])
    assert (verdict.accepted.item(), verdict.next_tokens.item()) == (0, 130)


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
@pytest.mark.parametrize("law", LAWS)
def test_tokens_behind_the_verified_ones_are_not_read(run, law, device):
    given = case([2, 0, 3, -1], 97, torch.float32, law, device)
    verified = given.cu_rows.diff().unsqueeze(1) - 1
    behind = torch.arange(4, device=device) >= verified
    blank = given._replace(draft_tokens=given.draft_tokens.masked_fill(behind, -1))
    assert torch.equal(torch.stack(run(*blank)), torch.stack(run(*given)))


@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
@pytest.mark.parametrize("law", LAWS)
def test_tiny_temperatures_act_as_zero(run, law, device):
    """1e-38 divides into infinities; the law was made at 0, as ``markov_sample`` does."""
    given = case([4, 2, 3, 0], 97, torch.float32, law, device)
    given = given._replace(temperatures=torch.zeros_like(given.temperatures))
    tiny = given._replace(temperatures=torch.full_like(given.temperatures, 1e-38))
    assert torch.equal(torch.stack(run(*tiny)), torch.stack(run(*given)))


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in the interpreter
@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
@pytest.mark.parametrize("law", LAWS)
def test_logits_that_are_no_numbers_touch_their_request_alone(run, law, device):
    """Request 1 (greedy) and 3 (sampled) have NaN at their first row: some token comes of it."""
    given = case([2, 3, 1, 2, 4], 97, torch.float32, law, device)
    hurt = given.target_logits.clone()
    hurt[given.cu_rows[[1, 3]].long()] = float("nan")
    right, got = run(*given), run(*given._replace(target_logits=hurt))
    for name in ("accepted", "next_tokens"):
        for r in (0, 2, 4):
            assert getattr(got, name)[r] == getattr(right, name)[r]
    assert ((got.next_tokens >= 0) & (got.next_tokens < 97)).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in the interpreter
@pytest.mark.parametrize("run", [reference.verify, kernel.verify], ids=["torch", "triton"])
@pytest.mark.parametrize("law", ["markov", "complete"])
def test_drafts_whose_law_is_no_number_are_not_accepted(run, law, device):
    given = case([2, 3, 1, 2, 4], 97, torch.float32, law, device)
    hurt = given.law._replace(log_probs=torch.full_like(given.law.log_probs, float("nan")))
    hot = torch.full_like(given.temperatures, 0.8)
    got = run(*given._replace(law=hurt, temperatures=hot))
    assert (got.accepted == 0).all()
    assert ((got.next_tokens >= 0) & (got.next_tokens < 97)).all()


def test_rows_beyond_32_bits(device):
    near = case([4, 2, 3], 97, torch.bfloat16, "complete", device)
    expected = kernel.verify(*near)
    got = kernel.verify(*near._replace(target_logits=far_along(near.target_logits)))
    assert torch.equal(torch.stack(got), torch.stack(expected))


def chi_square_p(tokens: Tensor, probs: Tensor) -> float:
    """Probability of counts as far from ``probs`` [V] as those of ``tokens``, under the law."""
    expected = probs.double() * tokens.numel()
    counts = torch.bincount(tokens, minlength=probs.numel()).double()
    statistic = ((counts - expected).pow(2) / expected).sum()
    return float(chi2.sf(float(statistic), probs.numel() - 1))


class Round(NamedTuple):
    """A target that is a Markov chain over 6 tokens, another chain's drafts, and the verdict."""

    chain: Tensor
    """[V, V] the target's next-token distributions."""
    lengths: Tensor
    drafts: Tensor
    verdict: Verdict

    def outputs(self) -> Tensor:
        """[R, 2] first two tokens of each request's output; -1 where the round gave one."""
        accepted, follow = self.verdict
        first = torch.where(accepted > 0, self.drafts[:, 0], follow)
        second = torch.where(accepted > 1, self.drafts[:, 1], follow)
        return torch.stack((first, torch.where(accepted > 0, second, -1)), 1).cpu()


def play(sample, judge, requests: int, device: torch.device) -> Round:
    """One round of gamma = 3 drafts, of which 1, 2 or 3 are verified, at temperature 0.8."""
    vocab, gamma, g = 6, 3, torch.Generator().manual_seed(1)
    table = torch.randn((vocab, vocab), generator=g).to(device)
    head = SequentialHead(*torch.randn((2, vocab, 4), generator=g), torch.zeros(5), torch.zeros(1))
    anchors = torch.zeros(requests, dtype=torch.int64, device=device)
    temperatures = torch.full((requests,), 0.8, device=device)
    noise = uniforms(torch.arange(requests, device=device), anchors, 2 * gamma + 1)
    base = torch.randn((gamma, vocab), generator=g).to(device).expand(requests, gamma, vocab)
    hidden = base[..., :1].contiguous()
    drafts = sample(base, anchors, hidden, move(head, device), temperatures, noise[:, :gamma])
    lengths = torch.arange(requests, device=device) % gamma + 1
    rows = torch.arange(gamma + 1, device=device) <= lengths.unsqueeze(1)
    prefix = torch.cat((anchors.unsqueeze(1), drafts.tokens), 1)
    verdict = judge(
        table[prefix[rows]],
        torch.cat((anchors[:1], (lengths + 1).cumsum(0))),
        drafts.tokens,
        drafts.law,
        temperatures,
        noise[:, gamma:-1],
        noise[:, -1].contiguous(),
    )
    return Round((table / 0.8).softmax(-1).cpu(), lengths, drafts.tokens, verdict)


def assert_lossless(played: Round) -> None:
    """The first output token follows p_t(. | anchor), the second p_t(. | first) after each first.

    Seven chi-square tests at 1e-4 each: a correct round fails below once in 1,400 seeds, and the
    seeds are fixed. Drafts must have been accepted and rejected, or nothing was tested.
    """
    accepted = played.verdict.accepted
    assert (accepted > 0).float().mean() > 0.2
    assert (accepted < played.lengths).float().mean() > 0.2
    first, second = played.outputs().unbind(1)
    assert chi_square_p(first, played.chain[0]) > 1e-4
    for token, law in enumerate(played.chain):
        assert chi_square_p(second[(first == token) & (second >= 0)], law) > 1e-4


def test_reference_is_lossless(device):
    assert_lossless(play(markov_reference.markov_sample, reference.verify, 40_000, device))


def test_statistics_see_a_biased_round(device):
    """A draft probability misstated by a tenth biases the output: the test must notice."""

    def biased(target: Tensor, cu_rows: Tensor, tokens: Tensor, law: DraftLaw, *rest: Tensor):
        misstated = law._replace(log_probs=law.log_probs - 0.1)
        return reference.verify(target, cu_rows, tokens, misstated, *rest)

    with pytest.raises(AssertionError):
        assert_lossless(play(markov_reference.markov_sample, biased, 40_000, device))


@pytest.mark.gpu
def test_kernel_is_lossless(device):
    assert_lossless(play(markov_kernel.markov_sample, kernel.verify, 40_000, device))


def test_kernels_repeat_the_references_round(device):
    """Draft and verify together, on the same noise: the same tokens, so the same law."""
    expected = play(markov_reference.markov_sample, reference.verify, 40, device)
    got = play(markov_kernel.markov_sample, kernel.verify, 40, device)
    assert torch.equal(got.drafts, expected.drafts)
    assert torch.equal(torch.stack(got.verdict), torch.stack(expected.verdict))
