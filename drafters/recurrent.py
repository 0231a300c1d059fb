"""Drafters that draft one token after the other with one layer: what Eagle3 and MTP share.

Entry j joins token j with what is known of position j - 1: the projected target feature while the
token is committed, the drafter's own hidden state while it is only drafted. Entries are stored at
index j of the cache and rotated at RoPE position j - 1; index 0 has no feature and is never seen.
Committed entries depend on nothing but their own feature and token, so writing true features over
the drafted ones is all that a verification needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drafters.base import Draw, Proposal
from drafters.cache import KVCache
from drafters.config import DraftConfig
from drafters.layers import DecoderLayer, RMSNorm, attend, attention_bias
from drafters.module import DraftModule


@dataclass
class RecurrentState:
    """Cached entries, and the projected feature of every committed position."""

    cache: KVCache
    features: Tensor
    """[slots, capacity, d]"""

    def broadcast(self, length: int) -> None:
        """Copy the first ``length`` positions of slot 0 to every slot."""
        self.cache.broadcast(length)
        self.features[1:, :length] = self.features[:1, :length]

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        self.cache.move(source, destination, length)
        self.features[destination, :length] = self.features[source, :length]

    def wipe(self, slot: int) -> None:
        """Set a slot to zeros."""
        self.cache.wipe(slot)
        self.features[slot] = 0


class RecurrentDrafter(DraftModule):
    """Base of ``Eagle3Drafter`` and ``MTPDrafter``; a subclass gives ``project`` and ``join``."""

    layer: DecoderLayer

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        shape = config.shape
        self.config, self.gamma = config, config.gamma
        self.feature_layers = config.target_layer_ids
        self.embed_tokens = nn.Embedding(config.vocab_size, shape.hidden_size)
        self.lm_head = nn.Linear(shape.hidden_size, config.vocab_size, bias=False)
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def project(self, features: Tensor) -> Tensor:
        """Hidden states [..., d] that stand for target features [..., m * d]."""
        raise NotImplementedError

    def join(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """(residual [..., d], attention input) from a state and the next token's embedding."""
        raise NotImplementedError

    # --- inference: entries of many requests, kept in slots ---

    def new_state(self, slots: int, capacity: int) -> RecurrentState:
        """See ``drafters.base.Drafter``; drafted entries are written past the anchor."""
        like, shape = self.norm.weight.detach(), self.config.shape
        cache = KVCache(1, shape, slots, capacity + self.gamma, like)
        return RecurrentState(
            cache, like.new_zeros(slots, capacity + self.gamma, shape.hidden_size)
        )

    def extend(
        self,
        state: RecurrentState,
        tokens: Tensor,
        features: Tensor,
        positions: Tensor,
        slots: Tensor,
    ) -> None:
        """Keep projected features, and enter each token with the feature of the position before."""
        rows = slots.unsqueeze(1)
        state.features[rows, positions] = self.project(features)
        before = state.features[rows, (positions - 1).clamp_min(0)]
        _, given = self.join(before, self.embed_tokens(tokens))
        rope = self._rope(positions - 1)
        state.cache.write(0, slots, positions, *self.layer.self_attn.keys_values(given, rope))

    def propose(
        self,
        state: RecurrentState,
        anchors: Tensor,
        positions: Tensor,
        gamma: int,
        draw: Draw,
    ) -> Proposal:
        """See ``drafters.base.Drafter``; ``gamma`` is at most the depth of training."""
        slots = torch.arange(anchors.shape[0], device=anchors.device)
        hidden = state.features[slots, positions - 1]
        previous, tokens, logits, normed = anchors, [], [], []
        for k in range(gamma):
            hidden = self._step(state.cache, hidden, previous, positions + k)
            normed.append(self.norm(hidden))
            logits.append(self.lm_head(normed[-1]).float())
            previous = draw(k, logits[-1])
            tokens.append(previous)
        return Proposal(
            torch.stack(tokens, 1), torch.stack(logits, 1), None, torch.stack(normed, 1)
        )

    def _step(self, cache: KVCache, hidden: Tensor, previous: Tensor, at: Tensor) -> Tensor:
        """Enter tokens ``previous`` [n] at index ``at`` [n] with states [n, d]; the next states."""
        attention, where = self.layer.self_attn, at.unsqueeze(1)
        residual, given = self.join(hidden.unsqueeze(1), self.embed_tokens(previous[:, None]))
        rope = self._rope(where - 1)
        slots = torch.arange(len(at), device=at.device)
        cache.write(0, slots, where, *attention.keys_values(given, rope))
        index = torch.arange(cache.reach(at, 1), device=at.device)
        seen = ((index > 0) & (index <= where)).unsqueeze(1)
        bias = attention_bias(seen, self.config.shape, given.dtype)
        keys, values = (s[0, : len(at), :, : len(index)] for s in (cache.keys, cache.values))
        attended = attend(attention.queries(given, rope), keys, values, bias)
        return self.layer.finish(residual, attended).squeeze(1)

    # --- training and recording: many anchors of whole sequences at once ---

    def unroll(
        self, tokens: Tensor, features: Tensor, anchors: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Step all ``anchors`` [b, a] of sequences ``tokens`` [b, t], ``features`` [b, t, m * d].

        Returns a function from previous tokens [b, a] (the anchors first) to hidden states
        [b, a, d] after the norm. Each anchor sees the committed entries before its own and its own
        drafted ones (training-time test; EAGLE-3 section 3).
        """
        context = self.project(features)
        index = torch.arange(1, tokens.shape[1], device=tokens.device)
        _, given = self.join(context[:, :-1], self.embed_tokens(tokens[:, 1:]))
        attention = self.layer.self_attn
        k, v = attention.keys_values(given, self._rope(index[None] - 1))
        own = torch.eye(anchors.shape[1], dtype=torch.bool, device=tokens.device)
        bias, own = (
            attention_bias(seen.expand(len(tokens), -1, -1), self.config.shape, k.dtype)
            for seen in (index < anchors.unsqueeze(-1), own)
        )
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        hidden, at = context[rows, anchors - 1], anchors

        def step(previous: Tensor) -> Tensor:
            nonlocal hidden, at, k, v, bias
            residual, given = self.join(hidden, self.embed_tokens(previous))
            rope = self._rope(at - 1)
            key, value = attention.keys_values(given, rope)
            k, v, bias = (
                torch.cat((k, key), 2),
                torch.cat((v, value), 2),
                torch.cat((bias, own), -1),
            )
            attended = attend(attention.queries(given, rope), k, v, bias)
            hidden, at = self.layer.finish(residual, attended), at + 1
            return self.norm(hidden)

        return step

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.config.shape.rope.table(positions, self.config.shape.head_dim)
