"""A small made-up bundle, a run folder made from it, and pages under AppTest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from gpu_traces.latency import LatencyModel
from gpu_traces.schema import Origin
from gpu_traces.synthetic import synthetic_bundle, synthetic_traces
from sim import run

GAMMA, REQUESTS, TOKENS = 4, 32, 256
MAIN = str(Path(__file__).parents[2] / "app" / "main.py")

OpenPage = Callable[..., AppTest]


def staircase_model() -> LatencyModel:
    """Captured sizes 1, 2, 4, ... 256: 4 ms + 20 us a token, a slope for cached tokens, noise."""
    sizes = 2 ** np.arange(9)
    padded = sizes[np.searchsorted(sizes, np.arange(TOKENS + 1))]
    draft_s = 3e-4 * np.arange(GAMMA + 1)[:, None] + 1e-6 * np.arange(REQUESTS + 1)
    draft_s[0] = 0.0
    return LatencyModel(
        "staircase",
        Origin("synthetic", "closed form"),
        draft_s,
        4e-3 + 2e-5 * padded,
        context_s=1e-8,
        draft_context_s=1e-9,
        overhead_s=5e-4,
        spread=0.01,
        captured_sizes=tuple(int(size) for size in sizes),
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small synthetic bundle."""
    traces = synthetic_traces(gamma=GAMMA, responses=12, response_tokens=40)
    return str(
        synthetic_bundle(tmp_path_factory.mktemp("data") / "small", traces, staircase_model())
    )


@pytest.fixture(scope="session")
def folder(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder with two policies."""
    out = str(tmp_path_factory.mktemp("runs") / "first")
    words = ["--bundle", bundle, "--policy", "none,confidence", "--requests", "60", "--out", out]
    assert run.main(words) == 0
    return out


@pytest.fixture
def open_page(caplog: pytest.LogCaptureFixture) -> Iterator[OpenPage]:
    """``open_page(name, **url)``: a page as a browser would open it with that query.

    Fails when Streamlit logged a deprecation (they don't come as Python warnings).
    """

    def opened(name: str, **query: str | list[str]) -> AppTest:
        app = AppTest.from_file(MAIN, default_timeout=60)
        if name != "which_policy_wins":
            app.switch_page(f"pages/{name}.py")
        for key, value in query.items():
            app.query_params[key] = value
        return app.run()

    yield opened
    logged = [record.getMessage() for record in caplog.get_records("call")]
    assert not [text for text in logged if re.search("deprecat|will be removed", text.lower())]
