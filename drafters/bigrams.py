"""A Markov head's start: what the target itself says after each single token.

With h_v the target's final hidden state after token v alone (behind the token that opens every
prompt) and U its output head, its bigram logits are H U^T: already of rank d, so their best
approximation of rank r costs two QR and one small SVD, never a [V, V] matrix. Rows and columns are
centred and weighted by how often the responses have their token; what is left is how a previous
token shifts the next one's logits, which is what the head adds to the block's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drafters.corpus import Sequence
from drafters.heads import MarkovHead
from drafters.target import Target

MOST = 8192  # previous tokens, the most frequent ones; others start without a shift
SHARE = 0.5  # of the bigram shift: the block's own logits come to know a part of it
ROW_RMS = 0.5  # of W1's rows, which the confidence head reads as well
ROWS = 512  # tokens that the target takes at once


class Bigrams(NamedTuple):
    """``tokens`` [K] previous tokens, ``hidden`` [K, d] the target's final states after them,
    ``frequency`` [V] of tokens in the responses, above zero, sums to one."""

    tokens: Tensor
    hidden: Tensor
    frequency: Tensor

    def weight(self) -> Tensor:
        """[K] share of each previous token among them."""
        own = self.frequency[self.tokens]
        return own / own.sum()


@torch.no_grad()
def ask_bigrams(target: Target, sequences: list[Sequence]) -> Bigrams:
    """Run the target over the most frequent tokens of the responses, one at a time."""
    device = target.norm.weight.device
    counts = torch.zeros(target.vocab_size)
    for s in sequences:
        response = s.tokens[s.start :]
        counts.index_add_(0, response, torch.ones(len(response)))
    tokens = counts.topk(min(MOST, int((counts > 0).sum()))).indices
    opening = int(sequences[0].tokens[0])
    hidden = []
    for chunk in tokens.split(ROWS):
        pairs = torch.stack((torch.full_like(chunk, opening), chunk), 1).to(device)
        positions = torch.arange(2, device=device).expand_as(pairs)
        hidden.append(target(pairs, positions).hidden[:, 1].float().cpu())
    smoothed = counts + 1 / len(counts)
    return Bigrams(tokens, torch.cat(hidden), smoothed / smoothed.sum())


@torch.no_grad()
def start_from_bigrams(head: MarkovHead, target: Target, bigrams: Bigrams) -> None:
    """Set W1 and W2 so that W2 W1[v] is ``SHARE`` of the bigram shift after v. Ranks that it does
    not have keep their start. An rnn head starts as the vanilla one."""
    w1, w2 = factors(bigrams, target.lm_head.weight.float().cpu(), head.rank)
    known, scale = w1.shape[1], ROW_RMS / _rms(w1, bigrams)
    head.markov_w1.weight[:, :known] = 0
    head.markov_w1.weight[bigrams.tokens, :known] = (scale * w1).to(head.markov_w1.weight)
    head.markov_w2.weight[:, :known] = (SHARE / scale * w2).to(head.markov_w2.weight)
    if head.head_type == "rnn":
        output = head.joint_proj.weight[2 * head.rank :]
        output.zero_()
        output[:, head.rank : 2 * head.rank] = torch.eye(head.rank)
        head.joint_proj.bias[2 * head.rank :] = 0


def factors(bigrams: Bigrams, unembedding: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """W1 [K, r] and W2 [V, r], r at most ``rank`` and at most K and d: the weighted least-squares
    factors of the centred bigram logits of output head ``unembedding`` [V, d]."""
    weight, column = bigrams.weight(), bigrams.frequency
    hidden = bigrams.hidden - weight @ bigrams.hidden
    unembedding = unembedding - column @ unembedding
    rows = torch.linalg.qr(weight.sqrt()[:, None] * hidden, mode="r").R
    columns = torch.linalg.qr(column.sqrt()[:, None] * unembedding, mode="r").R
    left, size, right = torch.linalg.svd(rows @ columns.T, full_matrices=False)
    rank = min(rank, len(size))
    share = size[:rank].sqrt()
    # hidden = Q rows, so that Q = hidden rows^+; the pseudo-inverse allows fewer tokens than d
    w1 = hidden @ torch.linalg.pinv(rows) @ left[:, :rank] * share
    w2 = unembedding @ torch.linalg.pinv(columns) @ right[:rank].T * share
    return w1, w2


def _rms(w1: Tensor, bigrams: Bigrams) -> float:
    return float((bigrams.weight() @ w1.square().mean(1)).sqrt().clamp_min(1e-6))
