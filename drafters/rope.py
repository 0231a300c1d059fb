"""Rotary positions: how fast each pair of channels turns, plainly or stretched to longer contexts.

linear  every frequency / factor.
llama3  Llama 3.1: waves longer than context / low are slowed by the factor, those shorter than
        context / high are not, with a smooth passage between.
yarn    YaRN (arXiv 2309.00071, section 3.2): pairs that turn fewer than ``low`` times over the
        original context are slowed, those above ``high`` are not; cosine and sine grow by ``gain``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LARGEST = 1e30
"""Of any number in a configuration; fp32 holds it."""
KINDS = ("default", "linear", "llama3", "yarn")
NAMES = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_slow", "beta_fast"),
}
"""What a configuration calls ``low`` and ``high``."""
YARN_TURNS = {"beta_slow": 1.0, "beta_fast": 32.0}


@dataclass(frozen=True)
class Rope:
    """Frequencies theta^(-2 i / head_dim), stretched as ``kind`` says."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 1.0
    original_context: float = 0.0
    """Positions that the model had learned before it was stretched."""
    gain: float = 1.0
    """Factor on cosine and sine."""
    truncate: bool = True
    """yarn: the passage between slowed and plain pairs begins and ends at whole pairs."""

    def table(self, positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles, each [..., head_dim] fp32, at absolute ``positions``."""
        angles = positions.float().unsqueeze(-1) * _frequencies(self, head_dim, positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.gain == 1.0 else (cos * self.gain, sin * self.gain)

    def config(self) -> dict[str, Any]:
        """The ``rope_parameters`` that ``rope_of`` reads back."""
        made: dict[str, Any] = {"rope_theta": self.theta, "rope_type": self.kind}
        if self.kind == "default":
            return made
        made["factor"] = self.factor
        if self.kind in NAMES:
            made |= dict(zip(NAMES[self.kind], (self.low, self.high), strict=True))
            made["original_max_position_embeddings"] = self.original_context
        if self.kind == "yarn":
            made |= {"attention_factor": self.gain, "truncate": self.truncate}
        return made


@lru_cache(maxsize=64)
def _frequencies(rope: Rope, head_dim: int, device: torch.device) -> Tensor:
    """[head_dim / 2] radians per position; kept, so that a captured graph can refer to them."""
    index = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    plain = rope.theta ** (-index / head_dim)
    if rope.kind == "default":
        return plain
    slow = plain / rope.factor
    if rope.kind == "linear":
        return slow
    if rope.kind == "llama3":
        turns = rope.original_context * plain / (2 * math.pi)
        kept = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
    else:
        first, last = _passage(rope, head_dim)
        kept = 1 - ((index / 2 - first) / max(last - first, 1e-3)).clamp(0, 1)
    return slow + kept * (plain - slow)


def _passage(rope: Rope, head_dim: int) -> tuple[float, float]:
    """Pairs between which YaRN passes from plain to slowed: those that turn ``high`` and ``low``
    times over the original context."""

    def pair(turns: float) -> float:
        wave = rope.original_context / (2 * math.pi * turns)
        return head_dim * math.log(wave) / (2 * math.log(rope.theta))

    first, last = pair(rope.high), pair(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    return max(first, 0), min(last, head_dim - 1)


def rope_of(config: dict[str, Any]) -> Rope:
    """The rotary positions of a Hugging Face configuration; ``rope_scaling`` is the older name of
    ``rope_parameters``. ValueError names a kind or value that cannot be used."""
    given = [_object(config, key) for key in ("rope_parameters", "rope_scaling")]
    theta = next((g["rope_theta"] for g in given if g.get("rope_theta") is not None), None)
    if theta is None:
        theta = config.get("rope_theta")
    theta = number("rope_theta", 10000.0 if theta is None else theta, above=1.0)
    for place in (config, *given):
        share = place.get("partial_rotary_factor")
        if share not in (None, 1):
            raise ValueError(f"partial_rotary_factor is {share!r}; supported: 1")
    kinds = [_kind(scaling) for scaling in given]
    made = [
        _scaled(theta, kind, scaling, config)
        for kind, scaling in zip(kinds, given, strict=True)
        if kind != "default"
    ]
    if len(set(made)) > 1:
        raise ValueError("rope_parameters and rope_scaling stretch differently; give one of them")
    return made[0] if made else Rope(theta)


def _kind(scaling: dict[str, Any]) -> str:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in KINDS:
        raise ValueError(f"rope_type {kind!r} is not supported; supported: {', '.join(KINDS)}")
    return str(kind)


def _scaled(theta: float, kind: str, scaling: dict[str, Any], config: dict[str, Any]) -> Rope:
    factor = number("factor", scaling.get("factor"))
    if kind == "linear":
        return Rope(theta, kind, factor)
    fallback = YARN_TURNS if kind == "yarn" else {}
    low, high = (number(n, scaling.get(n) or fallback.get(n)) for n in NAMES[kind])
    if low >= high:
        raise ValueError(f"{' is not below '.join(NAMES[kind])}: {low:g}, {high:g}")
    original = "original_max_position_embeddings"
    context = scaling.get(original) or config.get(original) or config.get("max_position_embeddings")
    gain = _gain(factor, scaling) if kind == "yarn" else 1.0
    truncate = scaling.get("truncate", True) is not False
    return Rope(theta, kind, factor, low, high, number(original, context), gain, truncate)


def _gain(factor: float, scaling: dict[str, Any]) -> float:
    """YaRN's factor on cosine and sine: as given, else 0.1 ln(factor) + 1 (or a ratio of two)."""
    if scaling.get("attention_factor") is not None:
        return number("attention_factor", scaling["attention_factor"])
    log = math.log(max(factor, 1.0))
    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if above and below:
        return (0.1 * number("mscale", above) * log + 1) / (
            0.1 * number("mscale_all_dim", below) * log + 1
        )
    return 0.1 * log + 1


def _object(config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{key} is {found!r}; it must be an object or null")
    nested = [name for name, value in found.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(f"{key} differs by layer ({', '.join(nested)}); supported: one for all")
    return found


def number(name: str, value: Any, above: float = 0.0) -> float:
    """A finite number ``above`` 0 of a configuration, or ValueError."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not above < value < LARGEST:
        allowed = f"a number above {above:g}" if above else "a positive number"
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    return float(value)
