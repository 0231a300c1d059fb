"""``verify`` in plain torch: whole [R, V] probability tables, for reading."""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.kernels.types import DraftLaw, Verdict, is_sampled
from drafters.sampling import sample


def verify(
    target_logits: Tensor,
    cu_rows: Tensor,
    draft_tokens: Tensor,
    law: DraftLaw | None,
    temperatures: Tensor,
    accept_uniforms: Tensor,
    next_uniforms: Tensor,
) -> Verdict:
    """See ``drafters.kernels.verify``."""
    first, rows = cu_rows[:-1].long(), cu_rows.diff().long()
    last_row = target_logits.shape[0] - 1
    alive = rows > 0
    accepted = torch.zeros_like(first)
    position = torch.arange(draft_tokens.shape[1], device=rows.device)
    draft_tokens = torch.where(position < rows.unsqueeze(-1) - 1, draft_tokens, 0)
    for j in range(draft_tokens.shape[1]):
        target = _probabilities(target_logits[(first + j).clamp_max(last_row)], temperatures)
        p_target = target.gather(-1, draft_tokens[:, j : j + 1]).squeeze(-1)
        p_draft = _drawn_probability(law, temperatures, j)
        alive = alive & (j < rows - 1) & (accept_uniforms[:, j] * p_draft < p_target)
        accepted = accepted + alive
    target = _probabilities(target_logits[(first + accepted).clamp_max(last_row)], temperatures)
    residual = target
    if draft_tokens.shape[1]:
        draft = _draft_probabilities(target, draft_tokens, law, temperatures, accepted)
        rejected = (accepted < rows - 1).unsqueeze(-1)
        residual = torch.where(rejected, (target - draft).clamp_min(0.0), target)
    found = residual.sum(-1) > 0
    next_tokens = torch.where(found, sample(residual, next_uniforms), target.argmax(-1))
    return Verdict(accepted, torch.where(rows > 0, next_tokens, -1))


def _probabilities(logits: Tensor, temperatures: Tensor) -> Tensor:
    """softmax(logits / T) in fp32, [R, V]; a point mass at the argmax where T is 0."""
    hot = is_sampled(temperatures).unsqueeze(-1)
    soft = (logits.float() / torch.where(hot, temperatures.unsqueeze(-1), 1.0)).softmax(-1)
    point = torch.zeros_like(soft).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(hot, soft, point)


def _drawn_probability(law: DraftLaw | None, temperatures: Tensor, j: int) -> Tensor:
    """p_d of draft token j itself, [R] fp32, as its sampler computed it."""
    if law is None:
        return torch.ones_like(temperatures)
    return torch.where(is_sampled(temperatures), law.log_probs[:, j].exp(), 1.0)


def _draft_probabilities(
    like: Tensor, tokens: Tensor, law: DraftLaw | None, temperatures: Tensor, at: Tensor
) -> Tensor:
    """p_d at position ``at`` [R] of each request, [R, V] fp32; rows past gamma are not used."""
    request = torch.arange(at.shape[0], device=at.device)
    at = at.clamp_max(tokens.shape[1] - 1)
    point = torch.zeros_like(like).scatter_(-1, tokens[request, at].unsqueeze(-1), 1.0)
    if law is None:
        return point
    logits = law.logits[request, at].float()
    if law.latents is not None and law.w2 is not None:
        logits = logits + law.latents[request, at].float() @ law.w2.float().T
    hot = is_sampled(temperatures).unsqueeze(-1)
    scaled = logits / torch.where(hot, temperatures.unsqueeze(-1), 1.0)
    soft = (scaled - law.log_normalizer[request, at].unsqueeze(-1)).exp()
    return torch.where(hot, soft, point)
