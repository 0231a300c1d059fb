"""Latency samples: the right shapes, as often as asked, in a table that a model fits."""

from pathlib import Path

import pytest
import torch

from drafters.errors import UserError
from drafters.graphs import captured_sizes
from drafters.grids import GRIDS, Grid, cells, grid, lengths_of
from drafters.profile import Profiler, main, measure
from drafters.shapes import SHAPES, random_drafter, random_target
from gpu_traces.bundle import read_bundle
from gpu_traces.fit import fit_latency

GAMMA = 7
SMALL = Grid((1, 3), (1, 4), (8,), (6,), 24, repetitions=2)


@pytest.mark.parametrize("graphs", [False, True])
def test_every_cell_is_sampled_once_per_repetition(graphs: bool, device: str) -> None:
    target = random_target("tiny", torch.float32, device)
    steps = measure(target, random_drafter("dspark-1L", target), SMALL, graphs)
    captured = steps[steps["graph"]]
    assert set(captured["mode"]) == ({"draft", "verify", "prefill"} if graphs else set())
    timed = steps[steps["mode"] != "overhead"]
    assert len(timed) == 2 * len(cells(SMALL, GAMMA))
    assert set(timed["repetition"]) == {0, 1}
    assert set(steps["mode"]) == {"draft", "verify", "prefill", "refill", "overhead"}
    assert (steps["microseconds"] > 0).all()
    model, report = fit_latency(steps, gamma=GAMMA)
    assert model.max_requests == 3
    assert report.cells > 0


@pytest.mark.parametrize("name", GRIDS)
def test_grids_stay_within_their_limits(name: str) -> None:
    shapes = grid(name)
    made = cells(shapes, GAMMA)
    assert len(made) == len(set(made))
    assert all(c.requests * c.context_tokens <= shapes.most_cached for c in made)
    for cell in made:
        if cell.mode == "verify":
            lengths = lengths_of(cell)
            assert sum(lengths) + cell.requests == cell.tokens
            assert max(lengths) <= GAMMA
            assert cell.ragged == (len(set(lengths)) > 1)


def test_without_a_drafter_only_the_target_is_measured() -> None:
    modes = {cell.mode for cell in cells(SMALL, 0)}
    assert modes == {"verify", "prefill"}
    assert {c.tokens // c.requests for c in cells(SMALL, 0) if c.mode == "verify"} == {1}


@pytest.mark.parametrize("family", ["dspark-2L", "dflash-1L", "eagle3-1L", "mtp-1L"])
def test_random_drafters_of_every_family_draft(family: str) -> None:
    target = random_target("tiny", torch.float32, "cpu")
    steps = measure(target, random_drafter(family, target), SMALL)
    assert (steps["mode"] == "draft").any()


def test_weights_that_do_not_fit_are_refused_before_they_are_filled(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafters.shapes.available_bytes", lambda: 1000.0)
    assert main(["--shape", "tiny", "--out", str(tmp_path / "out")]) == 2
    assert "the models do not fit into the memory of cpu" in capsys.readouterr().err


def test_shapes_count_the_parameters_of_their_models() -> None:
    """Against the published parameter counts, within 2 %."""
    published = {
        "smollm2-135m": 134.5e6,
        "qwen3-4b": 4.02e9,
        "qwen3-8b": 8.19e9,
        "qwen3-14b": 14.8e9,
    }
    tied = {"smollm2-135m", "qwen3-4b"}
    for name, count in published.items():
        shape, layers, vocab = SHAPES[name]
        attention = shape.head_dim * shape.hidden_size * 2 * (shape.num_heads + shape.num_kv_heads)
        block = attention + 3 * shape.hidden_size * shape.intermediate_size
        embeddings = vocab * shape.hidden_size * (1 if name in tied else 2)
        assert layers * block + embeddings == pytest.approx(count, rel=0.02)


def test_the_command_writes_a_latency_only_bundle(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(GRIDS, "tiny", SMALL)
    command = ["--shape", "tiny", "--drafter-shape", "dspark-1L", "--grid", "tiny"]
    out = tmp_path / "made"
    assert main([*command, "--out", str(out)]) == 0
    bundle = read_bundle(out)
    assert not bundle.manifest.has_traces
    assert "random weights" in bundle.manifest.notes
    assert bundle.manifest.kind == "measured"
    assert main([*command, "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_captured_pass_is_one_over_what_it_is_padded_to() -> None:
    """Blocks of 5 tokens for one request run as passes of 6."""
    target = random_target("tiny", torch.float32, "cpu")
    shapes = Grid((1,), (5,), (8,), (6,), 24, repetitions=1)
    steps = measure(target, random_drafter("dspark-1L", target), shapes, graphs=True)
    eager = measure(target, random_drafter("dspark-1L", target), shapes)
    assert sorted(steps[steps["mode"] == "verify"]["tokens"]) == [6, 8]
    assert sorted(eager[eager["mode"] == "verify"]["tokens"]) == [5, 8]


def test_every_size_that_is_captured_is_measured() -> None:
    for name in ("quick", "short", "cuda"):
        shapes = grid(name)
        made = {c.tokens for c in cells(shapes, GAMMA) if c.mode == "verify"}
        most = max(shapes.requests) * (GAMMA + 1)
        wanted = {s for s in captured_sizes(most) if s <= most}
        assert wanted <= made or name == "quick" and wanted & set(range(1, 9)) <= made


def test_a_grid_that_memory_cannot_hold_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(GRIDS, "tiny", SMALL)
    monkeypatch.setattr(Profiler, "run", _no_memory)
    command = ["--shape", "tiny", "--grid", "tiny", "--out", str(tmp_path / "made")]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: 3 requests, contexts of 8 and prompts of 6")


def _no_memory(self: Profiler) -> None:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="known: tiny"):
        random_target("qwen9", torch.float32, "cpu")
    with pytest.raises(UserError, match="dspark-5L"):
        random_drafter("dspark", random_target("tiny", torch.float32, "cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--shape", "tiny", "--target", "smollm2-135m"],
            "--shape tiny and --target smollm2-135m both name the target; give one of them",
        ),
        (
            ["--shape", "tiny", "--drafter-shape", "dspark-1L", "--drafter", "ngram"],
            "--drafter-shape dspark-1L and --drafter ngram both name the drafter; give one of them",
        ),
        (
            ["--shape", "tiny", "--drafter-shape", "dspark-0L"],
            "drafter shape 'dspark-0L' must have 1 layer or more",
        ),
    ],
)
def test_contradictory_models_are_refused(
    options: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(GRIDS, "tiny", SMALL)
    assert main([*options, "--grid", "tiny", "--out", str(tmp_path / "made")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "made").exists()
