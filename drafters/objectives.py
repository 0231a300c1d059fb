"""What each family learns from: random anchors of packed sequences, and its loss.

L = sum_j w_j (a_ce CE_j + a_l1 ||p_d - p_t||_1 + a_conf BCE(c_j, 1 - TV)) / sum_j w_j over draft
positions j = 0, 1, ... of all anchors.

- Block families: CE to the text's own token, w_j = exp(-j / 4); ``--decay`` sets the 4. Where few
  rounds reach the later positions, a faster decay weighs positions closer to how often they count.
  DSpark ends at weights 0.1, 0.9, 1.0; DFlash is CE alone. A run begins CE-heavy, because the L1
  term has little gradient while the drafter gives the right token no probability yet, and with a
  regression of the drafter's hidden states onto the target's (relative squared error, as EAGLE's
  first version has it), which fades out: on little data it teaches far more per anchor than token
  losses do.
- Eagle3: the layer runs on its own states for as many steps as are drafted (training-time test);
  CE to the target's whole distribution, w_j = 0.8^j. MTP likewise, w_j = 1 over few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from drafters.block import TOGETHER, BlockDrafter
from drafters.corpus import Sequence, Supervision, padded, padded_features
from drafters.losses import DECAY, ce_and_l1, position_weights, soft_ce_and_l1, with_negatives
from drafters.module import DraftModule
from drafters.recurrent import RecurrentDrafter

CE_HEAVY = 0.15  # share of the run in which the loss moves from CE to the block's own weights
REGRESSION = 0.75  # share of the run in which the weight of the hidden regression falls to zero


@dataclass(frozen=True)
class Weights:
    """Weights (a_ce, a_l1, a_conf) at the end of a run; ``hidden``: weight of the regression at its
    start; ``soft``: CE to the target's distribution, not to the text."""

    ce: float
    l1: float
    confidence: float
    hidden: float = 0.0
    soft: bool = False

    def at(self, done: float) -> Weights:
        """Weights when a fraction ``done`` of the run has passed: CE first, L1 phased in."""
        phase = min(1.0, done / CE_HEAVY)
        ce = 1.0 + phase * (self.ce - 1.0)
        hidden = self.hidden * max(0.0, 1.0 - done / REGRESSION)
        return Weights(ce, phase * self.l1, self.confidence, hidden, self.soft)


DEFAULT_WEIGHTS = {
    "dspark": Weights(0.1, 0.9, 1.0, hidden=1.0),
    "dflash": Weights(1.0, 0.0, 0.0, hidden=1.0),
    "eagle3": Weights(1.0, 0.0, 0.0, soft=True),
    "mtp": Weights(1.0, 0.0, 0.0, soft=True),
}
STEP_DECAY = {"eagle3": 0.8, "mtp": 1.0}
MTP_DEPTH = 3
USERS = {"confidence": ("dspark",), "decay": ("dspark", "dflash"), "depth": tuple(STEP_DECAY)}
"""Families that an option of the loss means something to; the others mean it to all."""


def trained_depth(family: str, gamma: int, asked: int = 0) -> int:
    """Draft positions that are trained: a whole block, or the steps ``asked`` for (0: default)."""
    default = MTP_DEPTH if family == "mtp" else gamma
    return min(gamma, asked or default) if family in STEP_DECAY else gamma


@dataclass(frozen=True)
class Objective:
    """Everything that turns a batch into a loss."""

    weights: Weights
    positions: Tensor
    """[depth] weight of each trained draft position."""
    anchors_per_sequence: int
    negatives: int
    """Sampled tokens beside those that the target itself gives probability."""

    @property
    def depth(self) -> int:
        return self.positions.shape[0]


def make_objective(
    family: str,
    depth: int,
    weights: Weights,
    anchors_per_sequence: int,
    negatives: int,
    decay: float = DECAY,
) -> Objective:
    """The objective of a family, trained on the first ``depth`` draft positions; ``decay`` is that
    of block families."""
    if family in STEP_DECAY:
        positions = STEP_DECAY[family] ** torch.arange(depth)
    else:
        positions = position_weights(depth, decay)
    return Objective(weights, positions, anchors_per_sequence, negatives)


class Pack(NamedTuple):
    """b sequences with a anchors each; positions ``at`` precede what is to be predicted."""

    tokens: Tensor
    """[b, t]"""
    features: Tensor
    """[b, t, m * d] bf16"""
    anchors: Tensor
    """[b, a]"""
    at: Tensor
    """[b, a, depth]"""
    in_block: Tensor
    """[b, a, depth] tokens at ``at``."""
    labels: Tensor
    """[b, a, depth] tokens after them."""
    valid: Tensor
    """[b, a, depth] True where the anchor is real and the label inside the response."""


def pack(sequences: list[Sequence], features: Tensor, depth: int, anchors: int) -> Pack:
    """Up to ``anchors`` distinct anchors per response, drawn from torch's global generator.

    ``features`` [b, t, m * d] of the padded sequences.
    """
    tokens = padded(sequences, depth)
    most = min(anchors, max(len(s.tokens) - 1 - s.start for s in sequences))
    columns = most if most < TOGETHER else -(-most // TOGETHER) * TOGETHER
    chosen = torch.ones(len(sequences), columns, dtype=torch.long)
    real = torch.zeros_like(chosen, dtype=torch.bool)
    for i, s in enumerate(sequences):
        choice = torch.randperm(len(s.tokens) - 1 - s.start)[:anchors]
        chosen[i, : len(choice)] = choice.sort().values + s.start
        real[i, : len(choice)] = True
    at = chosen.unsqueeze(-1) + torch.arange(depth)
    in_block = tokens.gather(1, at.flatten(1)).view_as(at)
    labels = tokens.gather(1, at.flatten(1) + 1).view_as(at)
    lengths = torch.tensor([len(s.tokens) for s in sequences])
    valid = real.unsqueeze(-1) & (at + 1 < lengths[:, None, None])
    return Pack(tokens[:, : features.shape[1]], features, chosen, at, in_block, labels, valid)


class Outputs(NamedTuple):
    """Teacher-forced outputs for every anchor and position, flattened to [b, a * depth, ...]."""

    hidden: Tensor
    latents: Tensor | None
    confidence_logits: Tensor | None


def teacher_forced(drafter: DraftModule, batch: Pack) -> Outputs:
    """Run any family over a batch with the text's own in-block tokens."""
    like = drafter.norm.weight
    tokens, features = batch.tokens.to(like.device), batch.features.to(like)
    anchors, in_block = batch.anchors.to(like.device), batch.in_block.to(like.device)
    rows = len(tokens)
    if isinstance(drafter, BlockDrafter):
        out = drafter.teacher_forced(tokens, features, anchors, in_block)
        return Outputs(*(x if x is None else _per_sequence(x, rows) for x in out))
    assert isinstance(drafter, RecurrentDrafter)
    step = drafter.unroll(tokens, features, anchors)
    hidden = torch.stack([step(previous) for previous in in_block.unbind(-1)], 2)
    return Outputs(hidden.flatten(1, 2), None, None)


def _per_sequence(values: Tensor, rows: int) -> Tensor:
    """[b * a, gamma, ...] -> [b, a * gamma, ...]."""
    return values.unflatten(0, (rows, -1)).flatten(1, 2)


def batch_loss(
    drafter: DraftModule,
    sequences: list[Sequence],
    told: list[Supervision],
    objective: Objective,
    done: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mean loss of one batch when a fraction ``done`` of the run has passed, and ``tally``."""
    features = padded_features(told)
    batch = pack(sequences, features, objective.depth, objective.anchors_per_sequence)
    return packed_loss(drafter, batch, sequences, told, objective, done)


def packed_loss(
    drafter: DraftModule,
    batch: Pack,
    sequences: list[Sequence],
    told: list[Supervision],
    objective: Objective,
    done: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``batch_loss`` for anchors already chosen."""
    device, depth = drafter.norm.weight.device, objective.depth
    weights = objective.weights.at(done)
    out, scale = teacher_forced(drafter, batch), objective.positions.to(device)
    total, weight_sum, stats = out.hidden.new_zeros(()), 0.0, torch.zeros(4, depth, device=device)
    for i, (s, t) in enumerate(zip(sequences, told, strict=True)):
        rows = batch.valid[i].flatten().nonzero().squeeze(1)
        where = rows.to(device)
        mine = Outputs(*(x if x is None else x[i, where] for x in out))
        loss, ce, l1 = _token_losses(drafter, mine, batch, i, rows, s, t, weights, objective)
        position = where % depth
        w, accept = scale[position], (1 - 0.5 * l1).clamp(0, 1)
        goal = t.hidden[batch.at[i].flatten()[rows] - s.start].to(device)
        beside, error = side_terms(mine, goal, accept, w, weights)
        total = total + (w * loss).sum() + beside
        weight_sum += float(w.sum())
        stats += tally(position, accept, ce, error, depth)
    return total / weight_sum, stats


def side_terms(
    mine: Outputs, goal: Tensor, accept: Tensor, w: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Regression of hidden states onto ``goal`` [n, d] and BCE of confidences against ``accept``
    [n], summed with ``w`` [n]; and each confidence's error [n]."""
    total, error = mine.hidden.new_zeros((), dtype=torch.float32), torch.zeros_like(accept)
    if weights.hidden:
        goal = goal.float()
        miss = (mine.hidden.float() - goal).square().mean(-1) / goal.var()
        total = total + weights.hidden * (w * miss).sum()
    if mine.confidence_logits is not None:
        guess = mine.confidence_logits.float()
        bce = torch.nn.functional.binary_cross_entropy_with_logits(guess, accept, reduction="none")
        total = total + weights.confidence * (w * bce).sum()
        error = (guess.sigmoid() - accept).detach().abs()
    return total, error


def tally(position: Tensor, accept: Tensor, ce: Tensor, error: Tensor, depth: int) -> Tensor:
    """Sums [4, depth] of count, acceptance, CE and confidence error per draft position."""
    rows = torch.stack((torch.ones_like(accept), accept, ce, error))
    return rows.new_zeros(4, depth).index_add_(1, position, rows)


def _token_losses(
    drafter: DraftModule,
    out: Outputs,
    batch: Pack,
    i: int,
    rows: Tensor,
    sequence: Sequence,
    told: Supervision,
    weights: Weights,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, CE, L1) of positions ``rows`` of sequence i; the last two carry no gradient."""
    device = out.hidden.device
    chosen = with_negatives(told.kept, drafter.config.vocab_size, objective.negatives)
    ids = chosen.ids.to(device)
    logits = out.hidden @ drafter.lm_head.weight[ids].T
    if out.latents is not None:
        logits = logits + out.latents @ drafter.markov_head.markov_w2.weight[ids].T
    logits[:, chosen.kept :] += chosen.shift
    target = told.probs[batch.at[i].flatten()[rows] - sequence.start].float().to(device)
    tail = 1 - target.sum(-1)
    if weights.soft:
        return soft_ce_and_l1(logits, target, tail, chosen.kept, weights.ce, weights.l1)
    label = torch.searchsorted(told.kept, batch.labels[i].flatten()[rows]).to(device)
    return ce_and_l1(logits, target, tail, label, chosen.kept, weights.ce, weights.l1)


def metrics(stats: Tensor) -> dict[str, float]:
    """Means from the sums of ``tally``."""
    rate = stats[1] / stats[0].clamp_min(1)
    count = stats[0].sum().clamp_min(1)
    return {
        "ce": float(stats[2].sum() / count),
        "tokens_per_round": 1 + float(rate.cumprod(0).sum()),
        "confidence_error": float(stats[3].sum() / count),
        **{f"accept_{k + 1}": float(x) for k, x in enumerate(rate)},
    }
