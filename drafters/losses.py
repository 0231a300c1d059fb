"""The three-term training loss of DSpark, over a candidate vocabulary where the full one costs.

L = sum_j w_j (a_ce CE + a_l1 ||p_d - p_t||_1 + a_conf BCE(c, 1 - TV)) / sum w, w_j = exp(-j / 4)
(DeepSpec; the paper writes exp(-(k-1)/gamma)). Over a full vocabulary of 49 k, nearly all time goes
into probabilities that are zero, so on a CPU the sums run over S: every token that the target gives
noticeable probability somewhere in the sequence, plus a random sample of the rest whose logits are
shifted by log(rest / sample) (sampled softmax). The rest counts as one bucket in the L1 term.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DECAY = 4.0
"""Of the weights of draft positions (DeepSpec)."""


class Candidates(NamedTuple):
    """A subset of the vocabulary: ``kept`` exact tokens, then sampled ones."""

    ids: Tensor
    """[C] token ids, the first ``kept`` exact, the others a uniform sample of the rest."""
    kept: int
    shift: float
    """Added to the logits of sampled tokens: log(size of the rest / sample size)."""


def with_negatives(kept: Tensor, vocab_size: int, count: int) -> Candidates:
    """Append ``count`` uniform samples of the tokens outside ``kept`` [K] (sorted ids)."""
    outside = torch.ones(vocab_size, dtype=torch.bool)
    outside[kept] = False
    rest = outside.nonzero().squeeze(1)
    if len(rest) <= count:
        return Candidates(torch.cat((kept, rest)), len(kept), 0.0)
    drawn = rest[torch.randint(len(rest), (count,))]
    shift = float(torch.log(torch.tensor(len(rest) / count)))
    return Candidates(torch.cat((kept, drawn)), len(kept), shift)


class _FusedLoss(torch.autograd.Function):
    """Row-wise a_ce CE + a_l1 L1 from logits, with the closed-form gradient in few passes.

    d CE / d logit = p_d - onehot; d L1 / d logit_i = p_i (s_i - sum_j s_j p_j) with
    s = sign(p_d - p_t).
    """

    @staticmethod
    def forward(ctx, logits, target, tail, label, kept, a_ce, a_l1):  # type: ignore[no-untyped-def]
        p = torch.softmax(logits.float(), -1)
        ce = -p.gather(1, label.unsqueeze(1)).squeeze(1).clamp_min(1e-30).log()
        excess = p[:, :kept] - target
        rest = p[:, kept:].sum(-1) - tail
        l1 = excess.abs().sum(-1) + rest.abs()
        signs = torch.cat((excess.sign_(), rest.sign()[:, None].expand(-1, p.shape[1] - kept)), 1)
        gradient = signs.sub_((signs * p).sum(-1, keepdim=True)).mul_(a_l1).add_(a_ce).mul_(p)
        gradient.scatter_add_(1, label.unsqueeze(1), gradient.new_full((len(p), 1), -a_ce))
        ctx.save_for_backward(gradient.to(logits.dtype))
        ctx.mark_non_differentiable(ce, l1)
        return a_ce * ce + a_l1 * l1, ce, l1

    @staticmethod
    def backward(ctx, upstream, _ce, _l1):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(1).to(gradient.dtype), *([None] * 6)


def ce_and_l1(
    logits: Tensor, target: Tensor, tail: Tensor, label: Tensor, kept: int, a_ce: float, a_l1: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of (a_ce CE + a_l1 L1, CE, L1); only the first carries gradient.

    logits [n, C] drafter's; target [n, kept] probabilities; tail [n] probability outside; label [n]
    index of the true token among the candidates (< kept).
    """
    return _FusedLoss.apply(logits, target, tail, label, kept, a_ce, a_l1)  # type: ignore[no-any-return]


def soft_ce_and_l1(
    logits: Tensor, target: Tensor, tail: Tensor, kept: int, a_ce: float, a_l1: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``ce_and_l1`` with CE to the target's whole distribution in place of a label."""
    log_p = torch.log_softmax(logits.float(), -1)
    ce = -(target * log_p[:, :kept]).sum(-1)
    if kept < logits.shape[1]:
        ce = ce - tail * log_p[:, kept:].logsumexp(-1)
    p = (log_p if a_l1 else log_p.detach()).exp()  # a term of no weight costs no backward pass
    l1 = (p[:, :kept] - target).abs().sum(-1) + (p[:, kept:].sum(-1) - tail).abs()
    return a_ce * ce + a_l1 * l1, ce.detach(), l1.detach()


def position_weights(gamma: int, decay: float = DECAY) -> Tensor:
    """w_j = exp(-j / decay), j = 0..gamma-1."""
    return torch.exp(-torch.arange(gamma) / decay)
