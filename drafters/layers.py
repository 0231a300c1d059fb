"""Decoder parts that targets and drafters share (Llama and Qwen3 architectures).

Shapes: n sequences, q positions each, d hidden size, H query heads, K key/value heads, e head size,
c cached positions. Module names equal those of Hugging Face checkpoints, so state dicts load as is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
        self._table = torch.stack(shape.rope.table(positions, shape.head_dim))

    def __call__(self, positions: Tensor) -> Tensor:
        """Cosine and sine [2, n, head_dim] fp32 at ``positions`` [n], in one launch."""
        return self._table[:, positions]


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


class Joined(NamedTuple):
    """Several projections of the same input, side by side."""

    weight: Tensor
    """[sum of output sizes, input size]."""
    bias: Tensor | None
    """[sum of output sizes], or None without."""
    places: list[int]
    """Address of each projection's weight."""


def joined(before: Joined | None, *linears: nn.Linear) -> Joined:
    """``before`` if the weights of the frozen ``linears`` still are its parts; else all of them
    side by side, the modules keeping views, so that nothing is stored twice."""
    if before is not None and before.places == [linear.weight.data_ptr() for linear in linears]:
        return before
    weight = _side_by_side([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    places = [linear.weight.data_ptr() for linear in linears]
    return Joined(weight, _side_by_side(biases) if biases else None, places)


def _side_by_side(parameters: Sequence[Tensor]) -> Tensor:
    """All ``parameters`` along their first axis, as one tensor that they are views of. Those that
    lie so already, as part of a longer row, stay where they are."""
    data = [parameter.data for parameter in parameters]
    sizes = [len(part) for part in data]
    if _is_row(data):
        return data[0].as_strided((sum(sizes), *data[0].shape[1:]), data[0].stride())
    whole = torch.cat(data)
    for parameter, part in zip(parameters, whole.split(sizes), strict=True):
        parameter.data = part
    return whole


def _is_row(data: Sequence[Tensor]) -> bool:
    """Whether each of ``data`` begins where the one before ends, in the same memory."""
    memory, at = data[0].untyped_storage().data_ptr(), data[0].data_ptr()
    for part in data:
        if part.untyped_storage().data_ptr() != memory or part.data_ptr() != at:
            return False
        at += part.nbytes
    return True


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
        weight, bias, _ = self._joined
        heads, kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        made = F.linear(x, weight, bias).unflatten(-1, (-1, self.shape.head_dim))
        q, k, v = made.split((heads, kv_heads, kv_heads), 1)
        return (self.q_norm(q), self.k_norm(k), v) if self.shape.qk_norm else (q, k, v)

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


def keys_values_of_all(layers: Sequence[Attention], x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, each [L * T, K, e], that each of L ``layers`` makes of the same ``x``
    [T, input size], not rotated, from one product of frozen weights."""
    shape, count = layers[0].shape, len(layers)
    linears = [part for layer in layers for part in (layer.q_proj, layer.k_proj, layer.v_proj)]
    weight, bias, _ = joined(None, *linears)
    queries = shape.num_heads * shape.head_dim
    given, weight = x.expand(count, -1, -1), weight.unflatten(0, (count, -1))[:, queries:].mT
    if bias is None:
        made = torch.bmm(given, weight)
    else:
        made = torch.baddbmm(bias.view(count, 1, -1)[..., queries:], given, weight)
    k, v = made.unflatten(-1, (-1, shape.head_dim)).chunk(2, 2)
    if shape.qk_norm:
        k = torch.stack([layer.k_norm(part) for layer, part in zip(layers, k, strict=True)])
    return k.flatten(0, 1), v.flatten(0, 1)


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
        return kernels.silu_mul(F.linear(x, self._joined.weight))

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
