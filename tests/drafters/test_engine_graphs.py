"""Captured steps: the same text, rounds and confidences as eager ones.

Off CUDA the same functions run on the same static buffers, padded to the same sizes, without the
capture; with ``--device cuda`` they are CUDA graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drafters import kernels
from drafters.base import CONFIDENCE_DTYPE, Proposal
from drafters.beliefs import heard
from drafters.beliefs import told as tell
from drafters.engine import Engine, EngineConfig, make_runner
from drafters.graphs import Inputs, captured_sizes, next_size, powers_of_two, wanted
from drafters.kernels.noise import host_uniforms
from drafters.ngram import NgramDrafter
from drafters.request import Request
from drafters.runner import Runner
from drafters.target import Target, load_target
from policies.registry import create, get, names
from tests.drafters.fake_device import emulated
from tests.drafters.families import tiny_drafter
from tests.drafters.live import (
    GAMMA,
    NEW,
    VOCAB,
    block_drafter,
    cost_table,
    informed,
    prompts,
    run,
    save_model,
    transformers_greedy,
)
from tests.drafters.test_engine import Pausing


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def served(request, tmp_path_factory: pytest.TempPathFactory, device: str):
    """(target, prompts, greedy outputs of transformers)."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = save_model(folder, request.param)
    asked = prompts(8, seed=3)
    outputs = [transformers_greedy(model, p, NEW) for p in asked]
    return load_target(str(folder), device=device), asked, outputs


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, device: str):
    folder: Path = tmp_path_factory.mktemp("llama")
    model = save_model(folder)
    asked = prompts(10, seed=4)
    outputs = [transformers_greedy(model, p, NEW) for p in asked]
    return load_target(str(folder), device=device), asked, outputs


def drafter_of(family: str, target: Target, device: str) -> object:
    if family == "none":
        return None
    if family == "ngram":
        return NgramDrafter(VOCAB, GAMMA, shortest=1, device=device)
    if family == "dspark":
        return block_drafter(target)
    return tiny_drafter(family, target, GAMMA).to(device)


def told(engine: Engine) -> list[tuple[int, int, int, int]]:
    return [(r.rounds, r.verified, r.accepted, r.generated) for r in engine.ended]


@pytest.mark.parametrize("family", ["none", "ngram", "dspark", "rnn", "dflash", "eagle3", "mtp"])
def test_greedy_text_and_rounds_are_those_of_the_eager_loop(served, family: str, device: str):
    target, asked, outputs = served
    policy = lambda: create("none" if family == "none" else "threshold", GAMMA)  # noqa: E731
    make = lambda: drafter_of(family, target, device)  # noqa: E731
    eager = run(target, make(), policy(), asked)
    graph = run(target, make(), policy(), asked, graphs=True)
    assert [row.output for row in graph.ended] == outputs
    assert told(graph) == told(eager)
    if family != "none":
        assert sum(row.verified for row in graph.ended) > 0


@pytest.mark.parametrize("family", ["dspark", "rnn", "dflash", "eagle3", "mtp"])
def test_sampled_text_is_that_of_the_eager_loop(llama, family: str, device: str):
    """Mixed temperatures; the law of a kernel's draw and complete logits judge alike."""
    target, asked, outputs = llama
    heat = [0.0, 1.0, 0.7, 1.0, 0.0] * 2
    runs = [
        run(
            target, drafter_of(family, target, device), create("fixed-k", GAMMA), asked,
            temperature=heat, graphs=graphs,
        )
        for graphs in (False, True)
    ]  # fmt: skip
    assert [row.output for row in runs[0].ended] == [row.output for row in runs[1].ended]
    assert told(runs[0]) == told(runs[1])
    for row, output in zip(runs[1].ended, outputs, strict=True):
        assert row.output == output or row.request.temperature > 0


@pytest.mark.parametrize("name", ["fixed-k", "sglang-adaptive", "none"])
@pytest.mark.parametrize("limits", [{}, {"max_step_tokens": 30}, {"max_requests": 1}], ids=str)
def test_passes_that_do_not_wait_for_the_drafts(
    llama, name: str, limits: dict, device: str, monkeypatch: pytest.MonkeyPatch
):
    """A policy that reads no confidences gets its pass before the host has the drafts; texts and
    rounds are those of a loop that waits."""
    target, asked, outputs = llama
    begun = []
    begin = Runner.begin

    def spied(*args: Any) -> Any:
        begun.append(begin(*args))
        return begun[-1]

    monkeypatch.setattr(Runner, "begin", spied)
    heat = [0.0, 1.0, 0.7, 1.0, 0.0] * 2
    given = {"temperature": heat, "graphs": True, **limits}
    drafter = block_drafter(target)
    early = run(target, drafter, create(name, GAMMA), asked, **given)
    assert sum(b is not None for b in begun) > (0 if name != "none" else -1)
    waiting = create(name, GAMMA)
    monkeypatch.setattr(type(waiting), "needs_confidences", True)
    begun.clear()
    late = run(target, drafter, waiting, asked, **given)
    assert not begun
    assert [row.output for row in early.ended] == [row.output for row in late.ended]
    assert told(early) == told(late)
    if name != "none":
        assert sum(row.verified for row in early.ended) > 0


@pytest.mark.parametrize(
    "limits",
    [{"max_requests": 1}, {"max_step_tokens": 30}, {"kv_tokens": 160}, {"max_requests": 10}],
    ids=str,
)
def test_batches_chunks_and_preemption_change_nothing(llama, limits: dict, device: str):
    target, asked, outputs = llama
    drafter = block_drafter(target)
    policy = lambda: create("threshold", GAMMA, tau=0.5)  # noqa: E731
    eager = run(target, drafter, policy(), asked)
    graph = run(target, drafter, policy(), asked, graphs=True, **limits)
    assert [row.output for row in graph.ended] == outputs
    if "kv_tokens" in limits:
        assert sum(row.preemptions for row in graph.ended) > 0
    else:
        assert told(graph) == told(eager)


@pytest.mark.parametrize("family", ["dspark", "eagle3"])
def test_a_drafter_that_paused_catches_up(llama, family: str, device: str):
    """Rows that pause keep their features while others' passes reuse the buffer."""
    target, asked, _ = llama
    runs = [
        run(
            target, drafter_of(family, target, device), Pausing(create("none", GAMMA)), asked,
            graphs=graphs,
        )
        for graphs in (False, True)
    ]  # fmt: skip
    assert [row.output for row in runs[0].ended] == [row.output for row in runs[1].ended]
    assert told(runs[0]) == told(runs[1])


def test_a_step_tells_what_it_was_padded_to(llama):
    target, asked, outputs = llama
    engine = run(
        target, informed(asked, outputs), create("fixed-k", GAMMA), asked, graphs=True,
        max_step_tokens=40,
    )  # fmt: skip
    log = engine.log.columns
    sizes = engine.runner.sizes
    for planned, padded in zip(log["tokens_planned"], log["tokens_padded"], strict=True):
        assert padded == next_size(sizes, planned)
    assert any(p > q for p, q in zip(log["tokens_padded"], log["tokens_planned"], strict=True))


def test_engines_share_what_was_captured_ahead(llama, monkeypatch: pytest.MonkeyPatch):
    """All sizes captured before anything runs; a second engine uses the first one's graphs."""
    monkeypatch.setattr("drafters.runner.LEAST_CAPTURED_TOKENS", 32)
    target, asked, outputs = llama
    drafter = block_drafter(target)
    config = EngineConfig(max_requests=4, max_context=80, graphs=True)
    runner = make_runner(target, drafter, GAMMA, config)
    runner.capture(hot=False, lengths=[GAMMA])
    assert set(runner._passes) == set(runner.sizes)
    for _ in range(2):
        engine = Engine(
            target, drafter, create("fixed-k", GAMMA), cost_table(), config, runner=runner
        )
        for i, prompt in enumerate(asked):
            engine.submit(Request(request_id=i, name=str(i), prompt=prompt, max_new=NEW))
        while engine.busy:
            engine.step()
        engine.ended.sort(key=lambda row: row.request.request_id)
        assert [row.output for row in engine.ended] == outputs


@pytest.mark.parametrize("policy", [n for n in names() if not get(n).analysis_only])
def test_nothing_is_captured_once_the_clock_runs(
    llama, policy: str, monkeypatch: pytest.MonkeyPatch
):
    """Whatever lengths a policy drafts, they were captured by ``start``."""
    monkeypatch.setattr("drafters.runner.LEAST_CAPTURED_TOKENS", 32)
    target, asked, _ = llama
    config = EngineConfig(max_requests=3, max_context=80, graphs=True)
    made = create(policy, GAMMA)
    drafter = tiny_drafter("eagle3", target, GAMMA).to(target.norm.weight.device)
    engine = Engine(target, drafter, made, cost_table(), config)
    for i, prompt in enumerate(asked):
        heat = 0.8 * (i % 2)
        engine.submit(
            Request(request_id=i, name=str(i), prompt=prompt, max_new=NEW, temperature=heat)
        )
    engine.start()
    drafts, passes = engine.runner.drafts, engine.runner._passes
    assert (drafts is None) == (made.draft_lengths == ())
    captured = set(drafts._captured) if drafts else set(), set(passes)
    assert captured[1]
    while engine.busy:
        engine.step()
    assert (set(drafts._captured) if drafts else set(), set(passes)) == captured


def test_padding_writes_only_where_nobody_reads(llama):
    """A pass of 5 tokens, padded to 6: all other rows of the cache stay as they were."""
    target, asked, _ = llama
    engine = Engine(
        target, None, create("none", GAMMA), cost_table(),
        EngineConfig(max_requests=3, max_context=80, graphs=True),
    )  # fmt: skip
    engine.submit(Request(request_id=0, name="0", prompt=asked[0][:1] * 5, max_new=4))
    engine.runner.cache.keys.fill_(7.0)
    engine.step()
    assert engine.log.columns["tokens_padded"] == [6]
    row = engine.line.rows[0]
    keys = engine.runner.cache.keys.flatten(1, 2)
    first = row.blocks[0] * 16
    touched = (keys != 7.0).flatten(2).any(-1).any(0).nonzero().squeeze(1).tolist()
    assert set(touched) == {*range(first, first + 5), engine.runner.cache.spare_row}


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("policy", ["threshold", "fixed-k"])
def test_the_loop_on_an_emulated_device(policy: str, graphs: bool, device: str, tmp_path: Path):
    """Greedy and sampled text as on the CPU; a captured greedy step waits for the device twice."""
    if device == "cuda":
        pytest.skip("the device is real")
    save_model(tmp_path)
    asked, heat = prompts(5, seed=4), [0.0, 1.0, 0.7, 1.0, 0.0]

    def serve(target: Target, temperature: float | list[float]) -> Engine:
        return run(
            target, block_drafter(target), create(policy, GAMMA), asked, temperature=temperature,
            graphs=graphs,
        )  # fmt: skip

    plain = load_target(str(tmp_path))
    expected = [[row.output for row in serve(plain, t).ended] for t in (heat, 0.0)]
    with emulated() as there:
        target = load_target(str(tmp_path), device="cuda")
        for temperature, outputs in zip((heat, 0.0), expected, strict=True):
            there.waits.clear()
            engine = serve(target, temperature)
            assert [row.output for row in engine.ended] == outputs
    if graphs:  # the last run was greedy
        waits = [n for at, n in there.waits.items() if "tolist" in at or "to host" in at]
        assert sum(waits) <= 2 * len(engine.log)


@pytest.mark.parametrize(
    ("asked", "device", "kernels_by", "graphs"),
    [
        (None, "cuda", "triton", True),
        (None, "cuda:1", "triton", True),
        (False, "cuda", "triton", False),
        (None, "cuda", "reference", False),
        (True, "cuda", "reference", False),
        (True, "cpu", "reference", False),
    ],
)
def test_graphs_are_wanted_where_they_can_be(
    asked: bool | None,
    device: str,
    kernels_by: str,
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("drafters.graphs.backend", lambda _: kernels_by)
    assert wanted(asked, device) == graphs


def test_sizes():
    assert captured_sizes(24) == (1, 2, 3, 4, 6, 8, 12, 16, 24)
    assert captured_sizes(25)[-1] == 32
    assert powers_of_two(1) == (1,)
    assert powers_of_two(5) == (1, 2, 4, 8)
    assert next_size((1, 2, 4), 3) == 4
    assert next_size((1, 2, 4), 5) == 0


def test_inputs_arrive(device: str):
    inputs = Inputs({"a": (3,), "b": (2, 2), "c": (1,)}, torch.device(device))
    inputs.host["a"][:] = [1, 2, 3]
    inputs.host["b"].view(np.float64)[:] = [[0.5, 1.5], [2.5, -3.5]]
    inputs.host["c"][:] = 9
    inputs.send()
    assert inputs.at["a"].tolist() == [1, 2, 3]
    assert inputs.at["b"].view(torch.float64).tolist() == [[0.5, 1.5], [2.5, -3.5]]
    assert inputs.at["c"].tolist() == [9]
    assert all(part.data_ptr() % 16 == 0 for part in inputs.at.values())


def test_what_is_told_is_heard(device: str):
    g = torch.Generator().manual_seed(0)
    tokens, sure = torch.randint(2**40, (3, GAMMA), generator=g), torch.rand(3, GAMMA, generator=g)
    block = Proposal(tokens.to(device), None, sure.to(device))
    ours, raw = heard(tell(block, torch.zeros(3, device=device))[:2].cpu())
    assert ours == tokens[:2].tolist()
    assert raw.tolist() == sure[:2].to(CONFIDENCE_DTYPE).tolist()


def test_uniforms_of_the_host_are_those_of_the_device(device: str):
    rng = np.random.default_rng(0)
    seeds, rounds = rng.integers(-(2**63), 2**63 - 1, (2, 50))
    ours = host_uniforms(seeds, rounds, 15)
    theirs = kernels.uniforms(
        torch.from_numpy(seeds).to(device), torch.from_numpy(rounds).to(device), 15
    )
    assert np.array_equal(ours, theirs.cpu().numpy())
