"""How things look and are called: display names, units, one style per policy, origin badges.

Colours are Okabe and Ito's, which stay apart for colour-blind readers. There are more policies than
colours that anyone can tell apart, so a style is a colour, a marker and a dash together.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

INK = "#5b6573"
GRID = "rgba(128, 136, 150, 0.25)"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D1F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")

SALT = "i"
"""Chosen so that this repository's policies differ in colour or marker, all of them."""

TITLES = {
    "output_tok_s": "Output tokens (tok/s)",
    "tok_s_per_user": "Interactivity, median (tok/s/user)",
    "ttft_ms": "Time to first token, TTFT (ms)",
    "tpot_ms": "Time per output token, TPOT (ms)",
    "e2e_ms": "End to end, E2E (ms)",
    "position": "Draft position",
    "conditional": "Accepted, given that all before were",
    "survival": "Prefix accepted through this position",
    "predicted": "Predicted survival",
    "observed": "Observed survival",
    "tokens": "Target tokens in the step, T",
    "requests": "Requests in the step, R",
    "pass_ms": "Target pass (ms)",
    "draft_ms": "Draft (ms)",
    "time_s": "Time since the start (s)",
}
"""Axis and column titles, units included."""


class Style(NamedTuple):
    """How one policy is drawn, in every chart."""

    colour: str
    symbol: str
    dash: str


NEUTRAL = Style("#7f8794", "circle", "solid")
"""The yardstick: no speculation."""

_CORE = {
    "none": NEUTRAL,
    "fixed-k": Style(PALETTE[1], "square", "solid"),
    "mtp-1": Style(PALETTE[4], "diamond", "solid"),
    "threshold": Style(PALETTE[5], "triangle-up", "solid"),
    "confidence": Style(PALETTE[2], "circle", "solid"),
    "hardware-aware": Style(PALETTE[0], "circle", "solid"),
}

_DOMAINS = {"math": PALETTE[0], "code": PALETTE[1], "chat": PALETTE[2]}


def policy_style(label: str) -> Style:
    """The style of a policy, from its name alone: the same in every chart, run and session.

    A variant such as ``fixed-k:k=3`` keeps its policy's colour and takes a marker of its own.
    """
    name, colon, parameters = label.partition(":")
    base = _CORE.get(name) or _hashed(name)
    if not colon:
        return base
    variant = _hashed(parameters)
    return Style(base.colour, variant.symbol, variant.dash)


def domain_colour(domain: str) -> str:
    """The colour of a traffic domain, from its name alone."""
    return _DOMAINS.get(domain) or _hashed(domain).colour


def _hashed(name: str) -> Style:
    number, colour = divmod(crc32((SALT + name).encode()), len(PALETTE))
    number, symbol = divmod(number, len(SYMBOLS))
    return Style(PALETTE[colour], SYMBOLS[symbol], DASHES[number % len(DASHES)])


_BADGES = {"measured": "green", "published": "blue", "synthetic": "orange"}


def badge(origin: str) -> str:
    """``measured (machine)`` as markdown: the kind as a coloured badge, then where from."""
    kind, _, detail = origin.partition(" ")
    return f":{_BADGES.get(kind, 'gray')}-badge[{kind}] {detail}"


def difference(mean_s: float, low_s: float | None = None, high_s: float | None = None) -> str:
    """A signed difference of times, with its interval if there is one, in a unit that suits it."""
    factor, unit, digits = (1.0, "s", 2) if abs(mean_s) >= 1 else (1e3, "ms", 2)
    if 0.1 <= abs(mean_s) < 1:
        digits = 0
    mean, *ends = (
        f"{factor * value:+.{digits}f}" for value in (mean_s, low_s, high_s) if value is not None
    )
    return f"{mean} {unit} ({' to '.join(ends)})" if ends else f"{mean} {unit}"
