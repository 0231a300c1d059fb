"""Decoder parts that targets and drafters share (Llama and Qwen3 architectures).

Shapes: n sequences, q positions each, d hidden size, H query heads, K key/value heads, e head size,
c cached positions. Module names equal those of Hugging Face checkpoints, so state dicts load as is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drafters import kernels
from drafters.rope import Rope

# cuDNN's attention builds a plan for every new shape, tens of milliseconds each, and lengths here
# are new at almost every call.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer; ``input_size`` differs from ``hidden_size`` only in Eagle3."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    qk_norm: bool
    attention_bias: bool = False
    input_size: int | None = None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype == self.weight.dtype:  # one kernel instead of eight
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class RopeTable:
    """Cosine and sine of all positions below ``capacity``, to be looked up."""

    def __init__(self, shape: LayerShape, capacity: int, device: torch.device) -> None:
        positions = torch.arange(capacity, device=device)
        self._cos, self._sin = shape.rope.table(positions, shape.head_dim)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each [n, head_dim] fp32, at ``positions`` [n]."""
        return self._cos[positions], self._sin[positions]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embedding to heads ``x`` [n, heads, q, e]; ``rope`` tables are [n, q, e]."""
    cos, sin = (table.unsqueeze(1).to(x.dtype) for table in rope)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def attention_bias(seen: Tensor, shape: LayerShape, dtype: torch.dtype) -> Tensor:
    """What ``attend`` adds to scores, [n or 1, 1, H / K * q, c]: 0 where ``seen`` [n or 1, q, c] is
    True, else minus infinity. Made once for all layers of a pass."""
    wide = seen.unsqueeze(1).repeat(1, 1, shape.num_heads // shape.num_kv_heads, 1)
    return torch.zeros(wide.shape, dtype=dtype, device=seen.device).masked_fill_(
        wide.logical_not_(), float("-inf")
    )


def causal(length: int, device: torch.device) -> Tensor:
    """[1, q, q] True where a query of a whole sequence may look."""
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention; q [n, H, q, e], k and v [n, K, c, e] -> [n, q, H * e].

    ``bias`` comes from ``attention_bias``. Query heads of one group are folded into the query axis,
    so keys are never repeated.
    """
    n, heads, length, size = q.shape
    folded = q.reshape(n, k.shape[1], -1, size)
    out = F.scaled_dot_product_attention(folded, k, v, attn_mask=bias)
    return out.reshape(n, heads, length, size).transpose(1, 2).reshape(n, length, heads * size)


Joined = tuple[Tensor, Tensor | None]
"""Weights and biases of several projections of the same input, side by side."""


def joined(before: Joined | None, *linears: nn.Linear) -> Joined:
    """``before`` if the frozen ``linears`` still share it; else their weights put side by side,
    the modules keeping views, so that nothing is stored twice."""
    first = linears[0].weight
    if before is not None and before[0].data_ptr() == first.data_ptr():
        return before
    weight = torch.cat([linear.weight.data for linear in linears])
    parts = weight.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None


def add_product(x: Tensor, given: Tensor, linear: nn.Linear) -> None:
    """Add ``linear(given)`` to ``x`` [T, d] in place."""
    x.addmm_(given, linear.weight.t())
    if linear.bias is not None:
        x.add_(linear.bias)


class Attention(nn.Module):
    """Projections, optional q/k norms and rotary embedding; the caller chooses keys and mask."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        size, bias = shape.input_size or shape.hidden_size, shape.attention_bias
        self.q_proj = nn.Linear(size, shape.num_heads * shape.head_dim, bias=bias)
        self.k_proj = nn.Linear(size, shape.num_kv_heads * shape.head_dim, bias=bias)
        self.v_proj = nn.Linear(size, shape.num_kv_heads * shape.head_dim, bias=bias)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=bias)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self._joined: Joined | None = None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, e], keys and values [T, K, e] of ``x`` [T, input size], not rotated, from
        one product of frozen weights."""
        self._joined = joined(self._joined, self.q_proj, self.k_proj, self.v_proj)
        heads, kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        made = F.linear(x, *self._joined).unflatten(-1, (-1, self.shape.head_dim))
        q, k, v = made.split((heads, kv_heads, kv_heads), 1)
        return (self.q_norm(q), self.k_norm(k), v) if self.shape.qk_norm else (q, k, v)

    def project_context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Only the keys and values of ``project``."""
        self._joined = joined(self._joined, self.q_proj, self.k_proj, self.v_proj)
        first = self.q_proj.out_features
        weight, bias = self._joined[0][first:], self._joined[1]
        made = F.linear(x, weight, None if bias is None else bias[first:])
        k, v = made.unflatten(-1, (-1, self.shape.head_dim)).chunk(2, 1)
        return (self.k_norm(k), v) if self.shape.qk_norm else (k, v)

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Rotated queries [n, H, q, e] of ``x`` [n, q, input size]."""
        heads = self.q_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        if self.shape.qk_norm:
            heads = self.q_norm(heads)
        return rotate(heads.transpose(1, 2), rope)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated keys and plain values, each [n, K, q, e]."""
        keys = self.k_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        if self.shape.qk_norm:
            keys = self.k_norm(keys)
        values = self.v_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        return rotate(keys.transpose(1, 2), rope), values.transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)
        self._joined: Joined | None = None

    def activated(self, x: Tensor) -> Tensor:
        """What ``down_proj`` reads, from one product of frozen weights."""
        self._joined = joined(self._joined, self.gate_proj, self.up_proj)
        return kernels.silu_mul(F.linear(x, self._joined[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer; its two halves are called by target and drafter backbones."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Output projection and feed-forward half, both residual."""
        hidden = residual + self.self_attn.o_proj(attended)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def finish_in_place(self, x: Tensor, attended: Tensor) -> None:
        """The same for rows [T, d] and frozen weights, in the fewest launches; ``x`` becomes the
        layer's output."""
        add_product(x, attended, self.self_attn.o_proj)
        add_product(x, self.mlp.activated(self.post_attention_layernorm(x)), self.mlp.down_proj)
