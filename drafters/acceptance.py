"""Which draft tokens stand, and what comes next: lossless verification of a ragged batch.

Rows of the flattened target logits: request r owns rows cu[r] .. cu[r + 1] - 1, of [anchor, draft
1, .., draft l]; row j holds the target's distribution p_t of what follows, so it judges draft j + 1
and the last row judges nothing. At temperature 0 a draft stands if it is the target's argmax. Above
0 it stands if u p_d(x) < p_t(x); the next token is drawn from norm(max(0, p_t - p_d)) at the first
rejection, and from p_t of the last row if all l stand, whatever l: a truncated block that is
accepted whole ends in a bonus token, not in a residual one. Probabilities are fp32 softmaxes of
logits / temperature, the ones that ``drafters.base.Sampler`` draws from.
Source: Leviathan et al. 2023; Chen et al. 2023.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drafters import kernels
from drafters.kernels.types import DraftLaw, Verdict, complete_law
from drafters.sampling import greedy, sample


class Drafts(NamedTuple):
    """The drafted blocks of n requests and the uniforms that judge them."""

    tokens: Tensor
    """[n, gamma]"""
    logits: Tensor | None
    """[n, gamma, V] that the tokens were drawn from, before temperature; read where T > 0."""
    accept_uniforms: Tensor
    """[n, gamma] in [0, 1)."""
    next_uniforms: Tensor
    """[n] in [0, 1)."""
    law: DraftLaw | None = None
    """In place of ``logits``."""


def verify(target_logits: Tensor, cu_rows: Tensor, drafts: Drafts, temperatures: Tensor) -> Verdict:
    """Judge the drafts of n >= 1 requests; ``target_logits`` [rows, V], ``cu_rows`` [n + 1].

    Request r verifies l = cu_rows[r + 1] - cu_rows[r] - 1 <= gamma drafts; ``temperatures`` [n].
    On CUDA, and for drafts with a law, this is ``kernels.verify``; else plain torch that touches
    only the rows it needs.
    """
    if target_logits.is_cuda or drafts.law is not None:
        return _fused(target_logits, cu_rows, drafts, temperatures)
    verdict = _greedy(target_logits, cu_rows, drafts.tokens)
    hot = (temperatures > 0).nonzero().squeeze(1)
    if hot.numel():
        sampled = _sampled(target_logits, cu_rows, drafts, temperatures, hot)
        for whole, part in zip(verdict, sampled, strict=True):
            whole[hot] = part
    return verdict


def judge_greedy(
    choices: list[int], drafts: list[list[int]], lengths: list[int]
) -> tuple[list[int], list[int]]:
    """Accepted drafts and next token of each request at temperature 0, on the host.

    ``choices``: the target's argmax of every flattened row.
    """
    accepted, following, first = [], [], 0
    for draft, length in zip(drafts, lengths, strict=True):
        hits = 0
        while hits < length and draft[hits] == choices[first + hits]:
            hits += 1
        accepted.append(hits)
        following.append(choices[first + hits])
        first += 1 + length
    return accepted, following


def _fused(target_logits: Tensor, cu_rows: Tensor, drafts: Drafts, temperatures: Tensor) -> Verdict:
    law = drafts.law
    if law is None and drafts.logits is not None:
        law = complete_law(drafts.logits, drafts.tokens, temperatures)
    return kernels.verify(
        target_logits, cu_rows, drafts.tokens, law, temperatures,
        drafts.accept_uniforms, drafts.next_uniforms.contiguous(),
    )  # fmt: skip


def _rows(cu_rows: Tensor, gamma: int) -> tuple[Tensor, Tensor]:
    """[n, gamma] row that judges each draft (clamped to the request's own), and which exist."""
    first, lengths = cu_rows[:-1], cu_rows.diff() - 1
    column = torch.arange(gamma, device=cu_rows.device)
    exists = column < lengths.unsqueeze(1)
    return first.unsqueeze(1) + torch.minimum(column, lengths.unsqueeze(1)), exists


def _leading(stands: Tensor) -> Tensor:
    """[n] number of leading True per row of [n, gamma]."""
    return stands.long().cumprod(1).sum(1)


def _greedy(target_logits: Tensor, cu_rows: Tensor, tokens: Tensor) -> Verdict:
    choices = greedy(target_logits)
    rows, exists = _rows(cu_rows, tokens.shape[1])
    accepted = _leading(exists & (choices[rows] == tokens))
    return Verdict(accepted, choices[cu_rows[:-1] + accepted])


def _sampled(
    target_logits: Tensor, cu_rows: Tensor, drafts: Drafts, temperatures: Tensor, hot: Tensor
) -> Verdict:
    """Verdict of the requests ``hot`` [h] alone."""
    tokens, heat = drafts.tokens[hot], temperatures[hot]
    rows, exists = (table[hot] for table in _rows(cu_rows, tokens.shape[1]))
    row, column = exists.nonzero(as_tuple=True)
    p_target = _softmax(target_logits[rows[row, column]], heat[row])
    p_draft = _softmax(drafts.logits[hot[row], column], heat[row])
    drawn = tokens[row, column].unsqueeze(1)
    u = drafts.accept_uniforms[hot[row], column]
    stands = torch.zeros_like(exists)
    stands[row, column] = u * p_draft.gather(1, drawn)[:, 0] < p_target.gather(1, drawn)[:, 0]
    accepted = _leading(stands)
    law = _softmax(target_logits[cu_rows[hot] + accepted], heat)
    rejected = accepted < exists.sum(1)
    at = exists.new_zeros(exists.shape, dtype=torch.long)
    at[row, column] = torch.arange(row.numel(), device=at.device)
    where = at[rejected, accepted[rejected]]
    residual = (law[rejected] - p_draft[where]).clamp_min(0.0)
    law[rejected] = torch.where(residual.sum(1, keepdim=True) > 0, residual, law[rejected])
    return Verdict(accepted, sample(law, drafts.next_uniforms[hot]))


def _softmax(logits: Tensor, temperatures: Tensor) -> Tensor:
    return torch.softmax(logits.float() / temperatures.unsqueeze(1), -1)
