"""Draft blocks coupled to a text that is already known: dense traces at one pass per response.

The target's text y was drawn without a drafter. For the block at any anchor we draw the draft
tokens from their law *given* y. Position k, while all before it were accepted, is accepted with
probability min(1, p_d(y_k) / p_t(y_k)) and is then y_k itself; otherwise the draft token comes from
norm(max(0, p_d - p_t)), and from there on the drafter runs freely. Together with y ~ p_t this is
the joint law of standard rejection sampling (x ~ p_d, accept with min(1, p_t(x) / p_d(x))), so
confidences and accepted lengths have the distribution of a live run. At T = 0 a position is
accepted if the drafter's argmax is y_k. Source: Leviathan et al. 2023, maximal coupling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drafters.sampling import block_sums, chosen_block, draw, greedy, in_blocks


class Coupled:
    """A ``Draw`` that follows a known text and keeps what happened; rows are n anchors.

    ``truth`` [n, gamma]: y_k, -1 past the response's end (nothing there can be accepted).
    ``told``: for every position k the target's probabilities [n, V] before y_k (views of one table
    where anchors are neighbours); not read at temperature 0.
    ``uniforms`` [2, n, gamma]: one for acceptance, one for the token drawn otherwise.
    """

    def __init__(
        self, truth: Tensor, told: Sequence[Tensor], temperature: float, uniforms: Tensor
    ) -> None:
        n, gamma = truth.shape
        self.truth, self.told, self.temperature = truth, told, temperature
        self.uniforms = uniforms
        self.alive = torch.ones(n, dtype=torch.bool, device=truth.device)
        self.accepted = torch.zeros(n, dtype=torch.int8, device=truth.device)
        self.alpha = torch.zeros(n, gamma, device=truth.device)
        self.max_prob = torch.zeros(n, gamma, device=truth.device)

    def __call__(self, k: int, logits: Tensor) -> Tensor:
        return self._greedy(k, logits) if self.temperature == 0 else self._sampled(k, logits)

    def _greedy(self, k: int, logits: Tensor) -> Tensor:
        token = greedy(logits)
        self.max_prob[:, k] = torch.softmax(logits, -1).amax(-1)
        matches = token == self.truth[:, k]
        self._advance(k, matches, matches.float())
        return token

    def _sampled(self, k: int, logits: Tensor) -> Tensor:
        p_d, p_t = softmax(logits, self.temperature), self.told[k]
        self.max_prob[:, k] = p_d.amax(-1)
        y = self.truth[:, k].clamp_min(0).unsqueeze(1)
        ratio = (p_d.gather(1, y) / p_t.gather(1, y)).squeeze(1)
        takes = (self.uniforms[0, :, k] < ratio) & (self.truth[:, k] >= 0)
        drafted, residual = in_blocks(p_d), in_blocks((p_d - p_t).clamp_min_(0))
        masses = block_sums(residual)
        excess = masses.sum(-1)
        rejects = (self.alive & (self.truth[:, k] >= 0) & (excess > 0)).unsqueeze(1)

        def within(block: Tensor) -> Tensor:
            """What is drawn from after a rejection or off the text: residual or p_d."""
            return torch.where(rejects, chosen_block(residual, block), chosen_block(drafted, block))

        masses = torch.where(rejects, masses, block_sums(drafted))
        other = draw(masses, within, self.uniforms[1, :, k])
        token = torch.where(self.alive & takes, y.squeeze(1), other)
        self._advance(k, takes, (1 - excess).float())
        return token

    def _advance(self, k: int, takes: Tensor, alpha: Tensor) -> None:
        """Record position k; alpha is known only while the block follows the text, else 0."""
        inside = self.alive & (self.truth[:, k] >= 0)
        self.alpha[:, k] = torch.where(inside, alpha, 0.0)
        self.alive = inside & takes
        self.accepted += self.alive.to(torch.int8)


def softmax(logits: Tensor, temperature: float) -> Tensor:
    """fp32 softmax of logits [..., V] at a temperature above 0."""
    wide = logits.float()
    return torch.softmax(wide if temperature == 1 else wide / temperature, -1)
