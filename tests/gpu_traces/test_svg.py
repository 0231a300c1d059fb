"""Charts as SVG: labels stay inside their panel, counts have whole ticks."""

from __future__ import annotations

import re

import pytest

from gpu_traces.svg import LETTER, WIDTH, Line, Panel, figure, ticks


@pytest.mark.parametrize("label", ["short", "a label of thirty-two letters!!!"])
def test_labels_stay_inside_their_panel(label: str) -> None:
    line = Line(label, [1, 2, 4], [0.2, 0.4, 0.3])
    text = figure([Panel("title", "position", "accepted", [line], (0.0, 1.0))])
    found = re.search(rf'<text x="([\d.]+)"[^>]*>{label}</text>', text)
    assert found is not None
    assert float(found[1]) + LETTER * len(label) <= WIDTH
    ends = [float(x) for x in re.findall(r"[ML]([\d.]+),", text)]
    assert max(ends) < float(found[1])


def test_counts_have_whole_ticks() -> None:
    assert ticks(1, 4) == [1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert ticks(1, 4, least=1.0) == [1, 2, 3, 4]
    assert ticks(0, 512, least=1.0) == [0, 100, 200, 300, 400, 500]
