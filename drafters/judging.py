"""What a step's rows draw and get: uniforms, accepted drafts, next and first tokens.

At temperature 0 all is decided on the host by the target's argmax; a sampled row takes the whole
batch through ``drafters.acceptance.verify``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drafters.acceptance import Drafts, judge_greedy, verify
from drafters.base import Proposal, Sampler
from drafters.kernels.noise import host_uniforms
from drafters.request import Running

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


def judge(
    rows: Sequence[Running],
    drafts: list[list[int]],
    proposal: Proposal | None,
    lengths: list[int],
    logits: Tensor,
    choices: Tensor,
    gamma: int,
) -> tuple[list[int], list[int]]:
    """Accepted drafts and next token of each decoding row.

    ``drafts`` [n][k] are the proposal's tokens on the host. ``logits`` and their argmax ``choices``
    hold the rows' flattened tokens first: each row's anchor and its first ``lengths`` drafts.
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
    if proposal is None:
        empty = cu_rows.new_empty((len(rows), 0))
        proposal = Proposal(empty, logits.new_empty((len(rows), 0, logits.shape[1])), None)
    accept = drawn[:, gamma : gamma + proposal.tokens.shape[1]]
    given = Drafts(
        proposal.tokens, proposal.logits, accept, drawn[:, -1].contiguous(), proposal.law
    )
    verdict = verify(logits, cu_rows, given, temperatures_of(rows, device))
    accepted, following = torch.stack((verdict.accepted, verdict.next_tokens)).tolist()
    return accepted, following


def first_tokens(
    heads: Sequence[tuple[Running, int]], logits: Tensor, choices: Tensor, gamma: int
) -> list[int]:
    """What follows each finished prompt; ``heads`` pairs a row with its row of ``logits``."""
    if not heads:
        return []
    rows, device = [row for row, _ in heads], logits.device
    at = torch.tensor([last for _, last in heads], dtype=torch.long, device=device)
    if not any(row.request.temperature for row in rows):
        return choices[at].tolist()
    uniforms = torch.from_numpy(uniforms_of(rows, gamma)[:, -1:]).to(device)
    sampler = Sampler(temperatures_of(rows, device), uniforms, any_hot=True)
    return sampler(0, logits[at].float()).tolist()
