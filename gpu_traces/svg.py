"""Small line charts as SVG text, for the pages in docs/: no plotting library, readable diffs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 320, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 26, 40
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
    """Panels side by side, as an SVG document."""
    body = "".join(
        f'<g transform="translate({i * WIDTH},0)">{_panel(panel)}</g>'
        for i, panel in enumerate(panels)
    )
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="10" fill="#1f2937"'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{white}{body}</svg>\n'


def _panel(panel: Panel) -> str:
    every = [float(x) for line in panel.lines for x in np.asarray(line.x)]
    low, high = min(every), max(every)

    def x_px(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y_px(value: float) -> float:
        bottom, top = panel.y_range
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(WIDTH / 2, 14, panel.title, "middle", "bold")]
    parts.append(_text(WIDTH / 2, HEIGHT - 6, panel.x_label, "middle"))
    parts.append(_text(6, 24, panel.y_label))
    for tick in np.linspace(*panel.y_range, 5):
        y = y_px(float(tick))
        parts.append(f'<path d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 4, y + 3, f"{tick:.3g}", "end"))
    for tick in np.linspace(low, high, 5):
        parts.append(_text(x_px(float(tick)), HEIGHT - BOTTOM + 14, f"{tick:.3g}", "middle"))
    for line in panel.lines:
        pairs = zip(np.asarray(line.x), np.asarray(line.y), strict=True)
        at = [(x_px(float(across)), y_px(float(up))) for across, up in pairs]
        parts.append(_draw(line, at))
    labels = dict.fromkeys((line.label, line.colour) for line in panel.lines if line.label)
    for row, (label, colour) in enumerate(labels):
        y = TOP + 10 + 12 * row
        parts.append(_text(WIDTH - RIGHT - 2, y, label, "end", colour=COLOURS[colour]))
    return "".join(parts)


def _draw(line: Line, at: Sequence[tuple[float, float]]) -> str:
    colour = COLOURS[line.colour % len(COLOURS)]
    if line.points:
        return "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at
        )
    path = "L".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "", colour: str = ""
) -> str:
    extra = (f' font-weight="{weight}"' if weight else "") + (f' fill="{colour}"' if colour else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
