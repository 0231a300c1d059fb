"""Products of several projections at once: as those one by one, of the weights as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from drafters.layers import Attention, keys_values_of_all
from tests.drafters.families import SHAPE

LAYERS, TOKENS = 3, 5


def made(qk_norm: bool, bias: bool) -> nn.ModuleList:
    torch.manual_seed(0)
    shape = replace(SHAPE, qk_norm=qk_norm, attention_bias=bias)
    layers = nn.ModuleList(Attention(shape) for _ in range(LAYERS))
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    return layers.requires_grad_(False)


def one_by_one(layer: Attention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values of one layer by its plain modules."""
    q, k, v = (
        linear(x).unflatten(-1, (-1, SHAPE.head_dim))
        for linear in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    return [layer.q_norm(q), layer.k_norm(k), v] if layer.shape.qk_norm else [q, k, v]


def check(layers: nn.ModuleList, x: Tensor) -> None:
    """All layers' context from one product, and each layer's projections."""
    each = [one_by_one(layer, x) for layer in layers]
    for i, ours in enumerate(keys_values_of_all(list(layers), x), 1):
        theirs = torch.cat([heads[i] for heads in each])
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for layer, expected in zip(layers, each, strict=True):
        torch.testing.assert_close(list(layer.project(x)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("alone_first", [False, True])
def test_joined_products_follow_their_weights(qk_norm: bool, bias: bool, alone_first: bool):
    layers, x = made(qk_norm, bias), torch.randn(TOKENS, SHAPE.hidden_size)
    if alone_first:
        layers[1].project(x)
    check(layers, x)
    layers.load_state_dict({k: torch.randn_like(v) for k, v in layers.state_dict().items()})
    check(layers, x)
    for linear in (layers[0].v_proj, layers[2].k_proj):
        linear.weight.data = torch.randn_like(linear.weight)
        check(layers, x)
    check(layers.double(), x.double())


def test_joined_weights_are_stored_once_and_stay():
    layers, x = made(qk_norm=True, bias=True), torch.randn(TOKENS, SHAPE.hidden_size)
    places = []
    for _ in range(2):
        check(layers, x)
        linears = [m for layer in layers for m in (layer.q_proj, layer.k_proj, layer.v_proj)]
        places.append([p.data_ptr() for linear in linears for p in linear.parameters()])
        for name in ("weight", "bias"):
            memory = {getattr(m, name).untyped_storage().data_ptr() for m in linears}
            assert len(memory) == 1
            kept = getattr(layers[0]._joined, name).untyped_storage()
            assert kept.data_ptr() in memory
            assert kept.nbytes() == sum(getattr(m, name).nbytes for m in linears)
    assert places[0] == places[1]
