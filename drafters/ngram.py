"""Prompt lookup: propose what followed the last time these tokens occurred. No weights.

Of all earlier places whose last m tokens equal the request's last m, the one with the largest m
wins (at most ``longest``, at least ``shortest``), the earliest among equals, and the tokens after
it are the draft. Nothing found, or fewer than gamma tokens after it: the draft is that much
shorter. The draft distribution is a point mass. Source: Saxena 2023, "Prompt Lookup Decoding".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drafters.base import Draw, Proposal

IMPOSSIBLE = -1e4
"""Logit of every token that is not proposed; finite, so that no temperature makes a NaN of it."""


@dataclass
class NgramState:
    """The tokens themselves, [slots, capacity]."""

    tokens: Tensor

    def broadcast(self, length: int) -> None:
        """Copy the first ``length`` positions of slot 0 to every slot."""
        self.tokens[1:, :length] = self.tokens[:1, :length]

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        self.tokens[destination, :length] = self.tokens[source, :length]

    def wipe(self, slot: int) -> None:
        """Nothing to do: tokens are always numbers."""


class NgramDrafter:
    """See ``drafters.base.Drafter``. Reads no target features (``feature_layers`` is empty).

    Confidences are m / (m + 1) for a match of m tokens (0 where nothing is proposed): no
    probability before calibration, but monotone in what there is to know.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(
        self,
        vocab_size: int,
        gamma: int = 7,
        longest: int = 4,
        shortest: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"n-grams of {shortest}..{longest} tokens; needs 1 <= shortest <= longest"
            )
        self.vocab_size, self.gamma, self.device = vocab_size, gamma, device
        self.longest, self.shortest = longest, shortest

    def new_state(self, slots: int, capacity: int) -> NgramState:
        """Room for the tokens of each slot."""
        size = (slots, capacity + 1)
        return NgramState(torch.zeros(size, dtype=torch.long, device=self.device))

    def extend(
        self,
        state: NgramState,
        tokens: Tensor,
        features: Tensor | None,
        positions: Tensor,
        slots: Tensor,
    ) -> None:
        """Keep committed tokens [n, q]; ``features`` are not read."""
        state.tokens[slots.unsqueeze(1), positions] = tokens

    def propose(
        self, state: NgramState, anchors: Tensor, positions: Tensor, gamma: int, draw: Draw
    ) -> Proposal:
        """See ``drafters.base.Drafter``; ``drafted`` says how many tokens are real."""
        n = anchors.shape[0]
        rows = torch.arange(n, device=anchors.device)
        state.tokens[rows, positions] = anchors
        text = state.tokens[:n, : int(positions.max()) + 1]
        matched, place = self._longest_match(text, positions)
        after = place.unsqueeze(1) + torch.arange(1, gamma + 1, device=anchors.device)
        real = (after <= positions.unsqueeze(1)) & (matched >= self.shortest).unsqueeze(1)
        guess = torch.where(real, text.gather(1, after.clamp_max(text.shape[1] - 1)), 0)
        logits = torch.full((n, gamma, self.vocab_size), IMPOSSIBLE, device=anchors.device)
        logits.scatter_(2, guess.unsqueeze(2), 0.0)
        tokens = torch.stack([draw(k, logits[:, k]) for k in range(gamma)], 1)
        share = (matched / (matched + 1)).unsqueeze(1)
        confidences = torch.where(real, share, 0.0)
        return Proposal(tokens, logits, confidences, drafted=real.sum(1))

    def _longest_match(self, text: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(matched tokens m, position of the last matched token), each [n].

        Position e of ``text`` [n, t] matches m tokens if text[e - i] equals the anchor's text
        [P - i] for all i < m.
        """
        index = torch.arange(text.shape[1], device=text.device)
        running = index < positions.unsqueeze(1)
        matched = torch.zeros_like(text)
        for i in range(min(self.longest, text.shape[1])):
            own = text.gather(1, (positions - i).clamp_min(0).unsqueeze(1))
            same = torch.zeros_like(running)
            same[:, i:] = text[:, : text.shape[1] - i] == own
            running = running & same & (positions >= i).unsqueeze(1)
            matched += running
        best = matched.max(1)
        first = (matched == best.values.unsqueeze(1)).long().argmax(1)
        return best.values, first
