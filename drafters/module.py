"""What every drafter family with weights shares: one request's block, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drafters.base import Draw, Proposal
from drafters.config import DraftConfig
from drafters.errors import UserError


class DraftLogits(NamedTuple):
    """One request's block, to be held against another implementation."""

    logits: Tensor
    """[gamma, V] fp32."""
    hidden: Tensor
    """[gamma, d] after the final norm."""
    confidences: Tensor | None
    """[gamma] raw conditional confidences, or None."""


class DraftModule(nn.Module):
    """Base of the families with weights, which give ``new_state``, ``extend`` and ``propose``."""

    config: DraftConfig
    gamma: int
    feature_layers: tuple[int, ...]

    def new_state(self, slots: int, capacity: int) -> Any:
        """See ``drafters.base.Drafter``."""
        raise NotImplementedError

    def extend(
        self, state: Any, tokens: Tensor, features: Tensor, positions: Tensor, slots: Tensor
    ) -> None:
        """See ``drafters.base.Drafter``."""
        raise NotImplementedError

    def propose(
        self, state: Any, anchors: Tensor, positions: Tensor, gamma: int, draw: Draw
    ) -> Proposal:
        """See ``drafters.base.Drafter``."""
        raise NotImplementedError

    @torch.no_grad()
    def draft_logits(
        self,
        target_features: Tensor,
        input_ids: Tensor,
        anchor: int,
        teacher_forced: bool = False,
    ) -> DraftLogits:
        """The block drafted after ``input_ids[anchor]``, for one request.

        ``input_ids`` [t] (or [1, t]) are the tokens from position 0; ``target_features``
        [>= anchor, m * d] (or with a leading 1) the target's features of the positions before the
        anchor, later rows are not read. In-block tokens are the drafter's own argmax, or, where
        ``teacher_forced``, ``input_ids[anchor + 1 :]``.
        """
        features = target_features.reshape(-1, target_features.shape[-1])
        tokens = input_ids.reshape(-1)
        self._check_request(features, tokens, anchor, teacher_forced)
        state = self.new_state(1, anchor + 1)
        where = torch.arange(anchor, device=tokens.device).unsqueeze(0)
        slot = torch.zeros(1, dtype=torch.long, device=tokens.device)
        self.extend(state, tokens[None, :anchor], features[None, :anchor], where, slot)
        told = tokens[anchor + 1 :]

        def draw(k: int, logits: Tensor) -> Tensor:
            return told[k : k + 1] if teacher_forced and k < len(told) else logits.argmax(-1)

        anchors = tokens[anchor : anchor + 1]
        out = self.propose(state, anchors, slot + anchor, self.gamma, draw)
        assert out.hidden is not None
        confidences = None if out.confidences is None else out.confidences[0]
        return DraftLogits(out.logits[0], out.hidden[0], confidences)

    def _check_request(self, features: Tensor, tokens: Tensor, anchor: int, forced: bool) -> None:
        width, need = self.config.feature_size, anchor + (self.gamma if forced else 1)
        if anchor < 1 or tokens.shape[0] < need:
            raise UserError(
                f"anchor position {anchor} with {tokens.shape[0]} input ids; it must be at least 1"
                f" and the ids must reach position {need - 1}"
            )
        if features.shape[0] < anchor or features.shape[1] != width:
            raise UserError(
                f"target features of shape {tuple(features.shape)}; this drafter reads"
                f" [at least {anchor}, {width}] (layers {list(self.feature_layers)})"
            )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the checkpoint as it would be read: same keys, same types, bit for bit."""
        from drafters.checkpoint import save_drafter

        save_drafter(self, Path(folder), self.config.shares_target_embeddings, dtype=None)
