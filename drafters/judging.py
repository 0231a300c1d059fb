"""What a step's rows draw and get: uniforms, accepted drafts, next and first tokens.

At temperature 0 all is decided on the host by the target's argmax; a sampled row takes the whole
batch through ``drafters.acceptance.verify``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drafters.acceptance import Drafts, judge_greedy, verify
from drafters.base import Proposal, Sampler
from drafters.kernels.noise import host_uniforms
from drafters.request import Running
from drafters.sampling import greedy

Uniforms = npt.NDArray[np.float64]


def uniforms_of(rows: Sequence[Running], gamma: int) -> Uniforms:
    """[n, 2 gamma + 1] of each row's own next round: drafts, acceptances, next token."""
    rounds = np.array([row.rounds + bool(row.generated) for row in rows], dtype=np.int64)
    streams = np.array([row.stream for row in rows], dtype=np.int64)
    return host_uniforms(streams, rounds, 2 * gamma + 1)


def temperatures_of(rows: Sequence[Running], device: torch.device) -> Tensor:
    """[n] fp32"""
    heat = [row.request.temperature for row in rows]
    return torch.tensor(heat, dtype=torch.float32, device=device)


def best_tokens(logits: Tensor) -> Tensor:
    """[rows] argmax of ``logits`` [rows, V]; -1 where the largest is no finite number."""
    best = greedy(logits)
    largest = logits.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    return best.masked_fill_(largest - largest != 0, -1)  # NaN for NaN and infinities


def judge(
    rows: Sequence[Running],
    drafts: list[list[int]],
    proposal: Proposal | None,
    lengths: list[int],
    logits: Tensor,
    choices: Tensor,
    gamma: int,
) -> tuple[list[int], list[int]]:
    """Accepted drafts and next token of each decoding row, -1 where the target's logits are no
    numbers.

    ``drafts`` [n][k] are the proposal's tokens on the host. ``logits`` and their ``best_tokens``
    ``choices`` hold the rows' flattened tokens first: each row's anchor and its first ``lengths``
    drafts.
    """
    if not rows:
        return [], []
    verified = len(rows) + sum(lengths)
    if not any(row.request.temperature for row in rows):
        return judge_greedy(choices[:verified].tolist(), drafts, lengths)
    logits, device = logits[:verified], logits.device
    bounds = [0, *accumulate(1 + length for length in lengths)]
    cu_rows = torch.tensor(bounds, dtype=torch.long, device=device)
    drawn = torch.from_numpy(uniforms_of(rows, gamma)).to(device)
    given = _drafts(proposal, drawn, gamma, logits)
    verdict = verify(logits, cu_rows, given, temperatures_of(rows, device))
    told = torch.cat((verdict.accepted, verdict.next_tokens, choices[:verified])).tolist()
    accepted, following, best = told[: len(rows)], told[len(rows) : 2 * len(rows)], told[-verified:]
    for i, (start, end) in enumerate(pairwise(bounds)):
        if min(best[start:end]) < 0:
            accepted[i], following[i] = 0, -1
    return accepted, following


def _drafts(proposal: Proposal | None, drawn: Tensor, gamma: int, logits: Tensor) -> Drafts:
    """What ``verify`` judges with the uniforms ``drawn`` [n, 2 gamma + 1] of each row; no drafts
    where there is no proposal. ``logits`` [.., V] are the target's."""
    if proposal is None:
        none = drawn.new_empty((len(drawn), 0), dtype=torch.long)
        proposal = Proposal(none, logits.new_empty((len(drawn), 0, logits.shape[1])), None)
    accept = drawn[:, gamma : gamma + proposal.tokens.shape[1]]
    following = drawn[:, -1].contiguous()
    return Drafts(proposal.tokens, proposal.logits, accept, following, proposal.law)


def rehearse(proposal: Proposal | None, target_logits: Tensor, gamma: int) -> None:
    """Judge none of the drafts of a proposal for n requests, after ``target_logits`` [n, V]: what
    judges blocks of this size at temperatures above 0 is then compiled. Its numbers do not matter.
    """
    n, device = len(target_logits), target_logits.device
    drawn = torch.zeros((n, 2 * gamma + 1), dtype=torch.float64, device=device)
    given = _drafts(proposal, drawn, gamma, target_logits)
    given = given._replace(tokens=torch.zeros_like(given.tokens))
    verify(target_logits, torch.arange(n + 1, device=device), given, torch.ones(n, device=device))


def first_tokens(
    heads: Sequence[tuple[Running, int]], logits: Tensor, choices: Tensor, gamma: int
) -> list[int]:
    """What follows each finished prompt, -1 where its logits are no numbers; ``heads`` pairs a row
    with its row of ``logits``."""
    if not heads:
        return []
    rows, device = [row for row, _ in heads], logits.device
    at = torch.tensor([last for _, last in heads], dtype=torch.long, device=device)
    if not any(row.request.temperature for row in rows):
        return choices[at].tolist()
    uniforms = torch.from_numpy(uniforms_of(rows, gamma)[:, -1:]).to(device)
    sampler = Sampler(temperatures_of(rows, device), uniforms, any_hot=True)
    drawn = sampler(0, logits[at].float())
    return torch.where(choices[at] < 0, -1, drawn).tolist()
