"""Small line charts as SVG text, for the pages in docs/: no plotting library, readable diffs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 96, 36, 40
COLUMNS = 4
LETTER = 6.0  # width of one in a label, about
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#475569")


@dataclass(frozen=True, slots=True)
class Line:
    """One series: a solid line, or markers alone where ``points`` is set."""

    label: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    colour: int = 0
    points: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes; the x range is the data's, the y range is given."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_range: tuple[float, float]


def figure(panels: Sequence[Panel]) -> str:
    """Panels in rows of ``COLUMNS``, as an SVG document."""
    body = "".join(
        f'<g transform="translate({i % COLUMNS * WIDTH},{i // COLUMNS * HEIGHT})">{_panel(p)}</g>'
        for i, p in enumerate(panels)
    )
    rows = -(-len(panels) // COLUMNS)
    size = f'width="{WIDTH * min(len(panels), COLUMNS)}" height="{HEIGHT * rows}"'
    style = 'font-family="sans-serif" font-size="10" fill="#1f2937"'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{white}{body}</svg>\n'


def _panel(panel: Panel) -> str:
    every = [float(x) for line in panel.lines for x in np.asarray(line.x)]
    low, high = min(every), max(every)
    longest = max(len(line.label) for line in panel.lines)
    right = WIDTH - max(RIGHT, 10 + LETTER * longest)

    def x_px(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (right - LEFT)

    def y_px(value: float) -> float:
        bottom, top = panel.y_range
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    middle = (LEFT + right) / 2
    parts = [_text(middle, 14, panel.title, "middle", "bold")]
    parts.append(_text(middle, HEIGHT - 6, panel.x_label, "middle"))
    parts.append(_text(6, 26, panel.y_label))
    for tick in ticks(*panel.y_range):
        y = y_px(tick)
        parts.append(f'<path d="M{LEFT},{y:.1f}H{right:.0f}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 4, y + 3, _number(tick), "end"))
    counts = all(x == round(x) for x in every)
    for tick in ticks(low, high, 1.0 if counts else 0.0):
        parts.append(_text(x_px(tick), HEIGHT - BOTTOM + 14, _number(tick), "middle"))
    for line in panel.lines:
        pairs = zip(np.asarray(line.x), np.asarray(line.y), strict=True)
        at = [(x_px(float(across)), y_px(float(up))) for across, up in pairs]
        parts.append(_draw(line, at))
    labels = dict.fromkeys((line.label, line.colour) for line in panel.lines if line.label)
    for row, (label, colour) in enumerate(labels):
        y = TOP + 10 + 12 * row
        parts.append(_text(right + 6, y, label, colour=COLOURS[colour]))
    return "".join(parts)


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """At most seven round numbers in [low, high], evenly apart by at least ``least``."""
    raw = max((high - low) / 6, least)
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = int(np.ceil(low / step - 1e-9))
    return [float(i * step) for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def _draw(line: Line, at: Sequence[tuple[float, float]]) -> str:
    colour = COLOURS[line.colour % len(COLOURS)]
    if line.points:
        return "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at
        )
    path = "L".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _number(tick: float) -> str:
    """``0.25``, ``2,000``; an exponent only where a label would be long."""
    return f"{tick:,.0f}" if 1000 <= abs(tick) < 1e6 else f"{tick:.3g}"


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "", colour: str = ""
) -> str:
    extra = (f' font-weight="{weight}"' if weight else "") + (f' fill="{colour}"' if colour else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
