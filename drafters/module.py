"""What every drafter family with weights shares: one request's block, and saving."""

from __future__ import annotations

import operator
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

    def __init__(self) -> None:
        super().__init__()
        self.stored_types: dict[str, torch.dtype] = {}
        """Types of the weights in the file it was loaded from; ``save_pretrained`` keeps them."""

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
        anchor, in any floating-point type; later rows are not read. Whatever torch makes a tensor
        of will do, ids in any integer type. In-block tokens are the drafter's own argmax, or, where
        ``teacher_forced``, ``input_ids[anchor + 1 :]``.
        """
        features = _of_one_request(target_features, 2, "target_features")
        features = features.to(self.norm.weight)
        tokens = _of_one_request(input_ids, 1, "input_ids").to(features.device)
        anchor = _position(anchor)
        self._check_request(features, tokens, anchor, teacher_forced)
        tokens = tokens.long()
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
        if not features[:anchor].isfinite().all():
            raise UserError(
                f"target features hold NaN or infinity before position {anchor}; give finite ones"
            )
        self._check_ids(tokens[:need])

    def _check_ids(self, read: Tensor) -> None:
        allowed = f"allowed: integers, 0..{self.config.vocab_size - 1}"
        if read.dtype == torch.bool or read.is_floating_point() or read.is_complex():
            raise UserError(f"input_ids of type {read.dtype}; {allowed}")
        if read.min() < 0 or read.max() >= self.config.vocab_size:
            raise UserError(f"input_ids reach from {read.min()} to {read.max()}; {allowed}")

    def save_pretrained(self, folder: Path | str, whole: bool = False) -> None:
        """Write the checkpoint as it would be read: same keys, types of the file it came from.

        ``whole`` stores embedding and output head even where the file left them to the target, so
        that it loads without one.
        """
        from drafters.checkpoint import save_drafter

        shares = self.config.shares_target_embeddings and not whole
        save_drafter(self, Path(folder), shares, dtype=None)


def _position(anchor: object) -> int:
    """``anchor`` as an int; UserError where it is no whole number."""
    try:
        if isinstance(anchor, bool):
            raise TypeError
        return operator.index(anchor)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(
            f"anchor is {anchor!r}; it must be an int, a position of input_ids"
        ) from None


def _of_one_request(given: Tensor, dims: int, name: str) -> Tensor:
    """``given`` as a tensor, less a leading 1; UserError where it is none or holds several
    requests."""
    try:
        given = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} is a {type(given).__name__}; it must be a tensor") from None
    if given.dim() == dims + 1 and given.shape[0] == 1:
        return given[0]
    if given.dim() != dims:
        raise UserError(
            f"{name} has shape {list(given.shape)}; it must have {dims} axes, those of one request,"
            " with or without a leading 1"
        )
    return given
