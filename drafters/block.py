"""DSpark and DFlash: one parallel pass over [anchor, mask, ...] drafts a whole block.

Context is the target's features of all positions before the anchor, H = hidden_norm(fc(features)),
the same for every layer; queries are the block only; attention inside the block is bidirectional.
Slot j of the block sits at position anchor + j and predicts token anchor + j + 1. DFlash is the
case without Markov and confidence head. Source: DSpark paper section 3, DeepSpec.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from drafters import block_rows, kernels
from drafters.base import Draw, Proposal, Sampler
from drafters.block_rows import RowCache
from drafters.cache import KVCache
from drafters.config import DraftConfig
from drafters.heads import ConfidenceHead, MarkovHead
from drafters.layers import Attention, DecoderLayer, RMSNorm, attend, attention_bias
from drafters.module import DraftModule

TOGETHER = 16
"""Blocks of one sequence that training attends together. They are masked from each other and
computed all the same, so few waste little; each such group copies the sequence's context."""


class TeacherForced(NamedTuple):
    """Outputs of a training pass over N blocks whose in-block tokens are given."""

    hidden: Tensor
    """[N, gamma, d] after the final norm."""
    latents: Tensor | None
    """[N, gamma, r] transition latents z (logits = lm_head(hidden) + W2 z)."""
    confidence_logits: Tensor | None
    """[N, gamma]"""


class BlockDrafter(DraftModule):
    """A block drafter; state-dict names equal DeepSpec's. ``embed_tokens`` and ``lm_head`` are the
    target's, frozen; they may be shared with it instead of stored."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        shape, rank = config.shape, config.markov_rank
        self.config, self.gamma = config, config.gamma
        self.feature_layers = config.target_layer_ids
        self.embed_tokens = nn.Embedding(config.vocab_size, shape.hidden_size)
        self.lm_head = nn.Linear(shape.hidden_size, config.vocab_size, bias=False)
        self.fc = nn.Linear(config.feature_size, shape.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(config.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        if rank:
            self.markov_head = MarkovHead(
                config.vocab_size, rank, shape.hidden_size, config.markov_head_type
            )
        if config.confidence_head:
            used = rank if config.confidence_with_markov else 0
            self.confidence_head = ConfidenceHead(shape.hidden_size, used)

    # --- inference: contexts of many requests, kept in slots ---

    def new_state(self, slots: int, capacity: int) -> KVCache:
        """Context keys and values; the block's own are written past the anchor and overwritten."""
        like = self.norm.weight.detach()
        shape, layers = self.config.shape, self.config.num_layers
        return KVCache(layers, shape, slots, capacity + self.gamma, like)

    def new_rows(self, slots: int, capacity: int) -> RowCache:
        """The same as the kernels read it, for drafts that are captured."""
        like = self.norm.weight.detach()
        shape, layers = self.config.shape, self.config.num_layers
        return RowCache(layers, shape, slots, capacity + self.gamma, like)

    def extend(
        self,
        state: KVCache | RowCache,
        tokens: Tensor,
        features: Tensor,
        positions: Tensor,
        slots: Tensor,
    ) -> None:
        """Project target features [n, q, m * d] at ``positions`` [n, q] into the context cache."""
        if isinstance(state, RowCache):
            block_rows.extend(self, state, features, positions, slots)
            return
        context = self.context(features)
        rope = self._rope(positions, context.dtype)
        for i, layer in enumerate(self.layers):
            state.write(i, slots, positions, *layer.self_attn.keys_values(context, rope))

    def propose(
        self,
        state: KVCache,
        anchors: Tensor,
        positions: Tensor,
        gamma: int,
        draw: Draw,
    ) -> Proposal:
        """See ``drafters.base.Drafter``; drafts a full block and returns its first gamma. From a
        ``RowCache`` blocks are drafted by ``block_rows.BlockFeed``."""
        hidden = self._block_hidden(state, anchors, positions)
        return self.drawn(hidden[:, :gamma].contiguous(), anchors, draw)

    def drawn(self, hidden: Tensor, anchors: Tensor, draw: Draw) -> Proposal:
        """The tokens of blocks with final hidden states [n, g, d] after ``anchors`` [n]."""
        rows = hidden.flatten(0, 1)  # a slice of one request has a stride that 3-d products dislike
        base = self.lm_head(rows).unflatten(0, hidden.shape[:2])
        if isinstance(draw, Sampler) and draw.fused and self.drawn_in_one:
            return self._drawn_by_kernel(base, hidden, anchors, draw)
        return self.sequential(base.float(), hidden, anchors, draw)

    @property
    def drawn_in_one(self) -> bool:
        """Whether the heads are those that ``kernels.markov_sample`` computes."""
        made = self.config
        return bool(
            made.markov_rank and made.markov_head_type == "vanilla" and made.confidence_head
        )

    def _drawn_by_kernel(
        self, base: Tensor, hidden: Tensor, anchors: Tensor, draw: Sampler
    ) -> Proposal:
        """The sequential part in one operation; its logits exist only as a law."""
        w1, w2 = self.markov_head.markov_w1.weight, self.markov_head.markov_w2.weight
        head = kernels.SequentialHead(
            w1,
            w2.to(w1.dtype).contiguous(),  # as ``MarkovHead.lay_out`` leaves it on a CPU
            self.confidence_head.proj.weight.view(-1),
            self.confidence_head.proj.bias,
        )
        out = kernels.markov_sample(
            base, anchors, hidden, head, draw.temperatures, draw.uniforms[:, : base.shape[1]]
        )
        return Proposal(out.tokens, None, out.confidences, hidden, law=out.law)

    def _block_hidden(self, state: KVCache, anchors: Tensor, positions: Tensor) -> Tensor:
        n = anchors.shape[0]
        offsets = torch.arange(self.gamma, device=anchors.device)
        at = positions.unsqueeze(1) + offsets
        slots = torch.arange(n, device=anchors.device)
        span = state.reach(positions, self.gamma)
        seen = torch.arange(span, device=anchors.device) < (positions + self.gamma).unsqueeze(-1)
        x = self.block_inputs(anchors)
        seen = seen.unsqueeze(1).expand(n, self.gamma, span)
        bias = attention_bias(seen, self.config.shape, x.dtype)
        rope = self._rope(at, x.dtype)
        for i, layer in enumerate(self.layers):
            normed = layer.input_layernorm(x)
            q = layer.self_attn.queries(normed, rope)
            state.write(i, slots, at, *layer.self_attn.keys_values(normed, rope))
            k, v = state.keys[i, :n, :, :span], state.values[i, :n, :, :span]
            x = layer.finish(x, attend(q, k, v, bias))
        return self.norm(x)

    def sequential(self, base: Tensor, hidden: Tensor, anchors: Tensor, draw: Draw) -> Proposal:
        """The sequential part: hidden [n, g, d] and fp32 base logits [n, g, V], which become those
        of the block, -> drawn block."""
        if not self.config.markov_rank:
            tokens = [draw(k, base[:, k]) for k in range(base.shape[1])]
            return Proposal(torch.stack(tokens, 1), base, self._confidences(hidden, None), hidden)
        previous, state, tokens, rows = anchors, None, [], []
        for k in range(base.shape[1]):
            z, row, state = self.markov_head.latent(hidden[:, k], previous, state)
            previous = draw(k, self.markov_head.add_bias(base[:, k], z))
            tokens.append(previous)
            rows.append(row)
        confidences = self._confidences(hidden, torch.stack(rows, 1))
        return Proposal(torch.stack(tokens, 1), base, confidences, hidden)

    def _confidences(self, hidden: Tensor, rows: Tensor | None) -> Tensor | None:
        if not self.config.confidence_head:
            return None
        return torch.sigmoid(self.confidence_head(hidden, rows))

    # --- training: many anchors of whole sequences, in-block tokens given ---

    def teacher_forced(
        self, tokens: Tensor, features: Tensor, anchors: Tensor, in_block: Tensor
    ) -> TeacherForced:
        """Blocks at ``anchors`` [b, a] of ``tokens`` [b, t] with ``features`` [b, t, m * d].

        ``in_block`` [b, a, gamma] holds the tokens before each prediction: the anchor, then the
        text. Returns N = b * a blocks.
        """
        b, a = anchors.shape
        context = self.context(features)
        context_rope = self._rope(torch.arange(tokens.shape[1], device=tokens.device)[None])
        at = (anchors.unsqueeze(-1) + torch.arange(self.gamma, device=tokens.device)).flatten(1)
        x = self.block_inputs(in_block[..., 0].flatten()).reshape(b, a * self.gamma, -1)
        rope, groups = self._rope(at), 1 if a % TOGETHER else a // TOGETHER
        seen = self._training_mask(tokens.shape[1], anchors.reshape(b * groups, -1))
        bias = attention_bias(seen, self.config.shape, x.dtype)
        for layer in self.layers:
            normed = layer.input_layernorm(x)
            q = layer.self_attn.queries(normed, rope)
            ck, cv = layer.self_attn.keys_values(context, context_rope)
            bk, bv = layer.self_attn.keys_values(normed, rope)
            q, bk, bv = (_grouped(part, groups) for part in (q, bk, bv))
            ck, cv = (part.repeat_interleave(groups, 0) for part in (ck, cv))
            k, v = torch.cat((ck, bk), 2), torch.cat((cv, bv), 2)
            x = layer.finish(x, attend(q, k, v, bias).reshape(b, a * self.gamma, -1))
        hidden = self.norm(x).reshape(b * a, self.gamma, -1)
        latents, rows = None, None
        if self.config.markov_rank:
            latents, rows = self.markov_head.latents(hidden, in_block.reshape(b * a, -1))
        logits = self.confidence_head(hidden, rows) if self.config.confidence_head else None
        return TeacherForced(hidden, latents, logits)

    def _training_mask(self, length: int, anchors: Tensor) -> Tensor:
        """[b, a * gamma, t + a * gamma]: context before the anchor, and the query's own block."""
        b, a = anchors.shape
        before = torch.arange(length, device=anchors.device) < anchors.unsqueeze(-1)
        block = torch.arange(a * self.gamma, device=anchors.device) // self.gamma
        own = (block.unsqueeze(0) == block.unsqueeze(1)).expand(b, -1, -1)
        return torch.cat((before.repeat_interleave(self.gamma, 1), own), -1)

    def context(self, features: Tensor) -> Tensor:
        """H [..., d] from features [..., m * d]."""
        return self.hidden_norm(self.fc(features))

    @property
    def attentions(self) -> list[Attention]:
        """Those of all layers."""
        return [layer.self_attn for layer in self.layers]

    def block_inputs(self, anchors: Tensor) -> Tensor:
        """Embedded [anchor, mask, ...] blocks [n, gamma, d]."""
        ids = anchors.new_full((anchors.shape[0], self.gamma), self.config.mask_token_id)
        ids[:, 0] = anchors
        return self.embed_tokens(ids)

    def _rope(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Tables of fp32 angles, rounded once for all layers."""
        cos, sin = self.config.shape.rope.table(positions, self.config.shape.head_dim)
        return cos.to(dtype), sin.to(dtype)


def _grouped(heads: Tensor, groups: int) -> Tensor:
    """[b, H, groups * q, e] -> [b * groups, H, q, e]."""
    return heads.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
