"""Where the live tests run (``--device``), and what their commands are given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from policies.export import PolicyFile, write_policy
from tests.drafters.live import (
    GAMMA,
    WORDS,
    cost_table,
    save_models,
)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with target, drafter, prompts and a policy file."""
    folder = tmp_path_factory.mktemp("home")
    save_models(folder)
    rng = np.random.default_rng(0)
    lines = [
        {"prompt": " ".join(rng.choice(WORDS.split(), 6)), "domain": ("a", "b")[i % 2]}
        for i in range(6)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "prompts.jsonl").write_text(text)
    stored = PolicyFile("confidence", {}, GAMMA, cost_table())
    write_policy(folder / "policy.json", stored)
    return folder
