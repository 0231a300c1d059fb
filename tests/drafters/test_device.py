"""Everything that a campaign does on a GPU, on an emulated one: devices are never mixed. With
``--device cuda`` the campaign runs on the real one."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drafters import campaign_latency, campaign_stages
from drafters.campaign_check import check
from drafters.campaign_stages import SHARES, Plan, tasks
from drafters.kernels.measure import captured
from gpu_traces.bundle import read_bundle
from tests.drafters.fake_device import NAME, emulated
from tests.drafters.test_campaign import inputs, run_here  # noqa: F401


def test_mixing_devices_is_refused() -> None:
    with emulated():
        here, there = torch.ones(2, 3), torch.ones(2, 3, device="cuda")
        assert (there + torch.tensor(1.0)).device == torch.device("cuda:0")
        assert there[torch.arange(2)].is_cuda
        assert there.cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            there + here
        with pytest.raises(RuntimeError, match="indexed"):
            here[torch.arange(2, device="cuda")]
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)


def test_a_captured_graph_replays_on_new_contents_and_may_not_wait() -> None:
    with emulated():
        given, kept = torch.zeros(3, device="cuda"), {}

        def double() -> None:
            kept["out"] = 2 * given

        replay = captured(double)
        given.copy_(torch.arange(3.0))
        replay()
        assert kept["out"].tolist() == [0, 2, 4]
        with pytest.raises(RuntimeError, match="capturing"):
            captured(lambda: given.max().item())


@pytest.mark.slow
def test_a_small_campaign_runs_on_the_device(
    inputs: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    real = request.config.getoption("--device") == "cuda"
    small = replace(campaign_stages.SIZES["small", "any"], steps=3)
    monkeypatch.setitem(campaign_stages.SIZES, ("small", "any"), small)
    monkeypatch.setattr(campaign_latency, "MOST_REPETITIONS", 3)
    stages = tuple(stage for stage in SHARES if stage != "kernels")
    prompts = (str(inputs / "prompts.jsonl"),)
    plan = Plan(tmp_path, str(inputs / "tiny"), prompts, "cuda", "bfloat16", "small", stages)
    with contextlib.nullcontext() if real else emulated():
        for task in tasks(plan):
            assert task.not_here or run_here(task) == 0, task.name
    assert check(tmp_path)[1] == []
    graphs = read_bundle(tmp_path / "bundles" / "tiny-dspark")
    assert graphs.manifest.hardware == (torch.cuda.get_device_name() if real else NAME)
    assert graphs.steps["graph"].any()
    eager = read_bundle(tmp_path / "bundles" / "tiny-dspark-eager")
    assert not eager.steps["graph"].any()
