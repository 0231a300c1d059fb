"""Random weights of real architectures: their step time is real, their text is noise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from drafters.base import Drafter
from drafters.checkpoint import FAMILIES
from drafters.config import DraftConfig
from drafters.devices import available_bytes, checked
from drafters.errors import UserError
from drafters.layers import LayerShape
from drafters.rope import Rope
from drafters.target import Target

M = TypeVar("M", bound=nn.Module)
GAMMA = 7
DRAFTER_SHAPE = re.compile(r"(\w+)-(\d+)L")
MARKOV_RANK = 256


def _qwen3(hidden: int, intermediate: int, heads: int) -> LayerShape:
    return LayerShape(hidden, intermediate, heads, 8, 128, 1e-6, Rope(1e6), qk_norm=True)


# Layer sizes, layers, vocabulary; from the models' public configurations.
SHAPES = {
    "tiny": (LayerShape(32, 64, 4, 2, 8, 1e-5, Rope(1e4), qk_norm=False), 4, 97),
    "smollm2-135m": (LayerShape(576, 1536, 9, 3, 64, 1e-5, Rope(1e5), qk_norm=False), 30, 49152),
    "qwen3-4b": (_qwen3(2560, 9728, 32), 36, 151936),
    "qwen3-8b": (_qwen3(4096, 12288, 32), 36, 151936),
    "qwen3-14b": (_qwen3(5120, 17408, 40), 40, 151936),
}


def random_target(name: str, dtype: torch.dtype, device: str) -> Target:
    """A target of a named architecture; UserError lists the names, or tells of a missing device."""
    device = checked(device)
    if name not in SHAPES:
        raise UserError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    shape, layers, vocab = SHAPES[name]
    return _filled(lambda: Target(shape, layers, vocab), dtype, torch.device(device))


def parse_shape(text: str) -> tuple[str, int]:
    """``dspark-5L`` as (dspark, 5); UserError for another form, family or no layers."""
    match = DRAFTER_SHAPE.fullmatch(text)
    if not match or match[1] not in FAMILIES:
        raise UserError(
            f"drafter shape {text!r} must be family-layersL, as dspark-5L; families: "
            + ", ".join(FAMILIES)
        )
    if int(match[2]) < 1:
        raise UserError(f"drafter shape {text!r} must have 1 layer or more")
    return match[1], int(match[2])


def random_drafter(text: str, target: Target) -> Drafter:
    """A drafter from words as ``dspark-5L``: family and layers, for this target.

    It shares the target's embeddings. UserError for an unknown family.
    """
    family, layers = parse_shape(text)
    spread = torch.linspace(0, target.num_layers - 2, min(5, target.num_layers - 1)).tolist()
    dspark = family == "dspark"
    config = DraftConfig(
        family=family,
        shape=replace(target.shape, input_size=2 * target.shape.hidden_size)
        if family == "eagle3"
        else target.shape,
        vocab_size=target.vocab_size,
        num_layers=layers,
        target_layer_ids=(-1,) if family == "mtp" else tuple(int(i) for i in spread),
        gamma=GAMMA,
        markov_rank=MARKOV_RANK if dspark else 0,
        confidence_head=dspark,
        confidence_with_markov=dspark,
    )
    like = target.norm.weight
    drafter = _filled(lambda: FAMILIES[family](config), like.dtype, like.device)
    drafter.embed_tokens.weight = target.embed_tokens.weight
    drafter.lm_head.weight = target.lm_head.weight
    return drafter


def _filled(make: Callable[[], M], dtype: torch.dtype, device: torch.device) -> M:
    """A frozen module whose weights were only ever allocated in ``dtype`` on ``device``."""
    with torch.device("meta"):
        module = make().to(dtype)
    _check_memory(module, device)
    module = module.to_empty(device=device)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    return module.eval()


def _check_memory(module: nn.Module, device: torch.device) -> None:
    """MemoryError where the CPU's memory can't hold the weights: Linux hands out more than it has,
    and ends the process once the pages are written."""
    wanted = sum(p.numel() * p.element_size() for p in module.parameters())
    if device.type == "cpu" and wanted > available_bytes():
        raise MemoryError
