"""The training loss over the whole vocabulary, with what the target says computed as it is needed.

On an accelerator nothing is sampled and nothing is kept: the target runs over each batch, and the
output heads of drafter and target meet in chunks of rows, whose logits are turned into their own
gradient in place (``drafters.kernels.draft_loss``). So the memory for [rows, V] is that of a chunk.
Same loss as ``drafters.objectives``, which on a CPU sums over a part of the vocabulary instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.corpus import Sequence, padded
from drafters.kernels import draft_loss
from drafters.module import DraftModule
from drafters.objectives import Objective, Outputs, pack, side_terms, tally, teacher_forced
from drafters.target import Target, TargetOutput

CHUNK_ROWS = 4096


@torch.no_grad()
def ask(target: Target, sequences: list[Sequence], feature_layers: tuple[int, ...]) -> TargetOutput:
    """What the target says about a padded batch [b, t]."""
    tokens = _to(padded(sequences, 0), target.norm.weight.device)
    where = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return target(tokens, where, feature_layers=feature_layers)  # type: ignore[no-any-return]


def full_loss(
    drafter: DraftModule,
    told: TargetOutput,
    sequences: list[Sequence],
    objective: Objective,
    done: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mean loss of one batch when a fraction ``done`` of the run has passed, and the sums of
    ``drafters.objectives.tally``; on the device, which is never waited for. ``told`` holds the
    features of the drafter's layers."""
    device, depth = told.hidden.device, objective.depth
    weights = objective.weights.at(done)
    assert told.features is not None
    batch = pack(sequences, told.features, depth, objective.anchors_per_sequence)
    out = teacher_forced(drafter, batch)
    rows = batch.valid.flatten().nonzero().squeeze(1)
    where, kept = _told_rows(batch.at, rows, told.hidden.shape[1])
    rows, where, kept = (_to(x, device) for x in (rows, where, kept))
    mine = Outputs(*(x if x is None else x.flatten(0, 1)[rows] for x in out))
    position, labels = rows % depth, _to(batch.labels.flatten(), device)[rows]
    w = _to(objective.positions, device)[position]
    hidden = told.hidden.flatten(0, 1)[kept]
    w2 = None if mine.latents is None else drafter.markov_head.markov_w2.weight
    total, ce, l1 = _HeadLoss.apply(
        mine.hidden, mine.latents, w2, drafter.lm_head.weight.detach(), hidden, where, labels, w,
        weights.ce, weights.l1, weights.soft,
    )  # fmt: skip
    accept = (1 - 0.5 * l1).clamp(0, 1)
    beside, error = side_terms(mine, hidden[where], accept, w, weights)
    stats = tally(position, accept, ce, error, depth)
    return (total + beside) / w.sum(), stats


def _told_rows(at: Tensor, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Which positions of the flattened [b * t] batch the chosen ``rows`` of ``at`` [b, a, depth]
    read: the row of each among the distinct ones [n], and those [P]."""
    first = torch.arange(at.shape[0])[:, None, None] * width
    kept, where = torch.unique((at + first).flatten()[rows], return_inverse=True)
    return where, kept


def _to(values: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that does not wait for what runs there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


class _HeadLoss(torch.autograd.Function):
    """sum_i w_i (a_ce CE_i + a_l1 L1_i) of rows that go through the output heads, and CE, L1 [n].

    Gradients reach hidden [n, d], latents [n, r] and W2 [V, r]; they are made in the forward pass.
    """

    @staticmethod
    def forward(ctx, hidden, latents, w2, head, told, where, labels, weights, a_ce, a_l1, soft):  # type: ignore[no-untyped-def]
        inputs = (hidden,) if latents is None else (hidden, latents)
        maps = [head] if latents is None else [head, w2.to(head.dtype)]
        made = [torch.empty_like(x) for x in inputs]
        d_w2 = None if latents is None else torch.zeros_like(w2)
        told_logits, losses = told.to(head.dtype) @ head.T, []
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            given = [x[part].to(head.dtype) for x in inputs]
            logits = given[0] @ maps[0].T
            if latents is not None:
                logits.addmm_(given[1], maps[1].T)
            chunk = (told_logits, where[part], labels[part], weights[part])
            losses.append(torch.stack(draft_loss(logits, *chunk, a_ce, a_l1, soft)))
            for gradient, weight in zip(made, maps, strict=True):
                gradient[part] = (logits @ weight).to(gradient.dtype)
            if latents is not None:
                d_w2 += (logits.T @ given[1]).to(d_w2.dtype)
        ce, l1 = torch.cat(losses, 1)
        ctx.save_for_backward(*made, *(() if latents is None else (d_w2,)))
        ctx.mark_non_differentiable(ce, l1)
        return (weights * (a_ce * ce + a_l1 * l1)).sum(), ce, l1

    @staticmethod
    def backward(ctx, upstream, _ce, _l1):  # type: ignore[no-untyped-def]
        made = [upstream * gradient for gradient in ctx.saved_tensors]
        return *made, *([None] * (11 - len(made)))
