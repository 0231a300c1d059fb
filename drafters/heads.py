"""DSpark's sequential heads: a low-rank transition bias, and a confidence per draft position.

logits_k = U_k + W2 z_k with z_k made from the previous token's row W1[x_{k-1}] (rank r):
vanilla z = W1[prev]; gated z = sigmoid(Wg [h_k ; W1[prev]] + b) * W1[prev];
rnn [g, c, o] = Wj [s ; W1[prev] ; h_k] + b, s' = sigmoid(g) s + (1 - sigmoid(g)) tanh(c) and
z = tanh(o).
Source: DSpark paper section 3 and DeepSpec's checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MarkovHead(nn.Module):
    """Transition bias of rank r over V tokens; ``head_type`` as in the module docstring."""

    def __init__(self, vocab_size: int, rank: int, hidden_size: int, head_type: str) -> None:
        super().__init__()
        self.rank, self.head_type = rank, head_type
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, vocab_size, bias=False)
        if head_type == "gated":
            self.gate_proj = nn.Linear(hidden_size + rank, rank)
        if head_type == "rnn":
            self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def latent(
        self, hidden: Tensor, previous: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One position: hidden [n, d], previous token [n] -> (z [n, r], W1[prev] [n, r], state)."""
        row = self.markov_w1(previous)
        if self.head_type == "gated":
            gate = torch.sigmoid(self.gate_proj(torch.cat((hidden, row), -1)))
            return gate * row, row, None
        if self.head_type == "rnn":
            state = torch.zeros_like(row) if state is None else state
            g, c, o = self.joint_proj(torch.cat((state, row, hidden), -1)).chunk(3, -1)
            keep = torch.sigmoid(g)
            return torch.tanh(o), row, keep * state + (1 - keep) * torch.tanh(c)
        return row, row, None

    def lay_out(self) -> None:
        """Store W2 on a CPU in fp32 and by columns, which halves the time of one row's bias."""
        w2 = self.markov_w2.weight
        if w2.is_cpu:
            w2.data = w2.data.float().t().contiguous().t()

    def add_bias(self, logits: Tensor, z: Tensor) -> Tensor:
        """``logits`` [n, V] fp32 with W2 z [n, V] added in place; a W2 in fp32 is read once."""
        w2 = self.markov_w2.weight
        if w2.dtype == torch.float32:
            return logits.addmm_(z.float(), w2.t())
        return logits.add_(self.markov_w2(z))

    def latents(self, hidden: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced block: hidden [n, gamma, d], previous [n, gamma] -> z, W1[prev]."""
        if self.head_type != "rnn":
            z, rows, _ = self.latent(hidden, previous, None)
            return z, rows
        state: Tensor | None = None
        steps = []
        for k in range(hidden.shape[1]):
            z, row, state = self.latent(hidden[:, k], previous[:, k], state)
            steps.append((z, row))
        return torch.stack([z for z, _ in steps], 1), torch.stack([row for _, row in steps], 1)


class ConfidenceHead(nn.Module):
    """c_k = sigmoid(w [h_k ; W1[prev]] + b); the second part only ``with_markov``."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size + rank, 1)
        self.rank = rank

    def forward(self, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """Confidence logits [...], fp32, from hidden [..., d] and W1 rows [..., r]."""
        given = torch.cat((hidden, rows), -1) if self.rank and rows is not None else hidden
        weight, bias = self.proj.weight.float(), self.proj.bias.float()
        return nn.functional.linear(given.float(), weight, bias).squeeze(-1)
