"""The world's step time, the beliefs profiled from it, and recovering a world from samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gpu_traces.fit import FitReport, fit_latency, staircase
from gpu_traces.latency import LatencyModel, constant, linear
from gpu_traces.schema import Origin
from gpu_traces.synthetic import synthetic_steps

CAPTURED = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


def stairs_world(spread: float = 0.0) -> LatencyModel:
    """Graphs up to 128 tokens (a dip at 96), a cliff beyond, and every other cost non-zero."""
    seconds = [5, 5, 5.2, 5.4, 6, 6.3, 7, 8, 9.5, 9.1, 12]
    graph = staircase(CAPTURED, np.array(seconds) * 1e-3, 128)
    eager = 30e-3 + 1e-5 * np.arange(129, 1025)
    draft = np.outer([0, 1, 1.2, 1.4, 1.6], 0.4e-3 + 1e-5 * np.arange(65.0))
    draft[:, 0] = 0.0
    return LatencyModel(
        "stairs",
        Origin("synthetic", "test"),
        draft,
        np.concatenate((graph, eager)),
        context_s=2e-8,
        draft_context_s=1e-9,
        overhead_s=3e-4,
        spread=spread,
        captured_sizes=CAPTURED,
        max_context_tokens=64 * 4096,
    )


def test_a_step_is_the_sum_of_its_parts() -> None:
    world = replace(stairs_world(), adaptive_s=1e-4)
    plain = world.step_time_s(0, 0, 20, context_tokens=1000)
    assert plain == pytest.approx(3e-4 + 6.3e-3 + 1000 * 2e-8)
    drafted = world.step_time_s(8, 2, 20, context_tokens=1000, adaptive=True)
    extra = 1.2 * (0.4e-3 + 8e-5) + 1000 * 1e-9 + 1e-4
    assert drafted - plain == pytest.approx(extra)
    half = world.step_time_s(8, 2, 20, 1000, adaptive=True, draft_context_tokens=500)
    assert drafted - half == pytest.approx(500 * 1e-9)


def test_tables_are_read_only_and_refused_when_wrong() -> None:
    world = constant(1e-3)
    with pytest.raises(ValueError, match="read-only"):
        world.verify_s[0] = 1.0
    with pytest.raises(ValueError, match="finite seconds"):
        replace(world, verify_s=np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="shape"):
        replace(world, draft_s=np.zeros(3))


def test_range_is_refused_with_the_numbers_or_marked() -> None:
    world = stairs_world()
    assert world.check_range(64, 1024, 64 * 4096) is False
    with pytest.raises(ValueError, match=r"65 requests \(profiled to 64\), 2000 tokens"):
        world.check_range(65, 2000)
    assert world.check_range(65, 2000, extrapolate=True) is True
    wide = world.extrapolated(128, 2048)
    assert (wide.max_requests, wide.max_tokens) == (128, 2048)
    assert np.array_equal(wide.verify_s[:1025], world.verify_s)
    assert wide.verify_s[2048] == pytest.approx(30e-3 + 1e-5 * 2048)
    assert wide.draft_s[1, 128] == pytest.approx(0.4e-3 + 1e-5 * 128)
    assert "extrapolated from R=64, T=1024 to R=128, T=2048" in wide.origin.detail
    assert world.extrapolated(10, 10) is world


def test_stairs_belief_is_the_world_at_captured_sizes() -> None:
    """Every size up to the capture limit costs what it does, the dip at 96 tokens included."""
    world = stairs_world()
    belief = world.cost_table("stairs")
    np.testing.assert_allclose(belief.verify_s[1:129], world.verify_s[1:129] + world.overhead_s)
    assert belief.verify_s[96] < belief.verify_s[64]
    eager = replace(world, captured_sizes=())
    np.testing.assert_array_equal(
        eager.cost_table("stairs").verify_s, eager.cost_table("linear").verify_s
    )


def test_ceil_belief_is_the_running_maximum_of_the_world() -> None:
    """vLLM rounds up: inside the captured sizes it holds the world, dips filled in."""
    world = stairs_world()
    belief = world.cost_table("ceil")
    inside = np.maximum.accumulate(world.verify_s[:129]) + world.overhead_s
    assert np.allclose(belief.verify_s[:129], inside)
    assert belief.verify_s[129] - belief.verify_s[128] > 0.01


def test_lookup_rules_are_ordered_between_captured_sizes() -> None:
    """Just behind a captured size floor believes the cheap shelf, ceil the next, linear between."""
    world = stairs_world()
    floor, line, ceil = (
        world.cost_table(rule).verify_s[17] for rule in ("floor", "linear", "ceil")
    )
    assert floor < line < ceil
    assert ceil == pytest.approx(world.verify_s[17] + world.overhead_s)


def test_belief_can_forget_drafting_or_know_the_context() -> None:
    world = stairs_world()
    assert world.cost_table(draft=False).draft_time_s(8) == 0.0
    assert world.cost_table(context_aware=True).context_s == world.context_s
    far = world.cost_table(context_tokens=4096)
    near = world.cost_table()
    assert far.context_s == 0.0
    extra = far.verify_s[64] - near.verify_s[64]
    assert extra == pytest.approx(world.context_s * 4096 * np.ceil(64 / 5))
    assert far.draft_time_s(8) - near.draft_time_s(8) == pytest.approx(8 * 4096 * 1e-9)


def test_profile_sizes_follow_vllm_beyond_the_capture_limit() -> None:
    sizes = stairs_world().profile_sizes().tolist()
    assert sizes == [*CAPTURED, 192, 256, 384, 512, 768, 1024]
    assert linear(1e-3, 1e-6, max_tokens=10).profile_sizes().tolist() == [1, 2, 3, 4, 6, 8, 10]


def test_scaling_time_scales_every_table_of_its_kind() -> None:
    world = stairs_world()
    slow = world.scaled(draft=2.0, verify=3.0)
    assert np.allclose(slow.draft_s, 2 * world.draft_s)
    assert np.allclose(slow.verify_s, 3 * world.verify_s)
    assert slow.context_s == 3 * world.context_s
    assert slow.overhead_s == world.overhead_s


def test_constant_world_charges_nothing_at_the_margin() -> None:
    world = constant(5e-3, gamma=3)
    assert world.step_time_s(100, 3, 4000, 10**6, adaptive=True) == world.step_time_s(0, 0, 1)


def fitted(world: LatencyModel, **options: int) -> tuple[LatencyModel, FitReport]:
    return fit_latency(pd.DataFrame(synthetic_steps(world, **options)), gamma=world.gamma)


def test_fit_recovers_a_noiseless_world_exactly() -> None:
    world = stairs_world()
    model, report = fitted(world)
    assert np.allclose(model.verify_s[1:129], world.verify_s[1:129], rtol=1e-9)
    assert np.allclose(model.verify_s[192:], world.verify_s[192:], rtol=1e-9)
    assert model.context_s == pytest.approx(world.context_s)
    assert model.draft_context_s == pytest.approx(world.draft_context_s)
    assert model.overhead_s == pytest.approx(world.overhead_s)
    assert np.allclose(model.draft_s, world.draft_s, rtol=1e-9)
    assert model.captured_sizes == CAPTURED
    assert model.max_context_tokens == 64 * 4096
    assert report.held_out > 20
    assert report.spread == pytest.approx(0.0, abs=1e-9)


def test_fit_recovers_a_noisy_world_within_the_noise() -> None:
    """3 % noise, medians of 9: a level's error is about 0.03 * 1.25 / 3 / sqrt(3) = 0.7 %; the
    bound of 4.5 such errors on 11 levels is crossed by chance about once in 10,000 seeds.
    """
    world = stairs_world(spread=0.03)
    model, report = fitted(world, repetitions=9, seed=3)
    sizes = np.array(CAPTURED)
    assert np.abs(model.verify_s[sizes] / world.verify_s[sizes] - 1).max() < 0.032
    assert model.context_s == pytest.approx(world.context_s, rel=0.1)
    assert report.spread == pytest.approx(0.03, rel=0.3)
    assert report.median_error < 0.05


def test_held_out_error_is_of_shapes_the_fit_never_saw() -> None:
    """A world whose cost depends on what the model has no term for must show a large error."""
    steps = pd.DataFrame(synthetic_steps(stairs_world()))
    odd = steps["context_tokens"] == 1024
    wrong = steps.assign(microseconds=steps["microseconds"].where(~odd, steps["microseconds"] * 2))
    _, good = fit_latency(steps, gamma=4)
    _, bad = fit_latency(wrong, gamma=4)
    assert bad.median_error > 0.1 > good.median_error


def test_eager_samples_interpolate_and_never_fall() -> None:
    sizes = [1, 4, 16, 64]
    rows = pd.DataFrame(
        {
            "mode": "verify",
            "requests": 1,
            "tokens": sizes,
            "context_tokens": 0,
            "draft_length": 0,
            "graph": False,
            "repetition": 0,
            "microseconds": [100.0, 90.0, 200.0, 600.0],
        }
    )
    model, _ = fit_latency(rows, gamma=2)
    assert np.all(np.diff(model.verify_s) >= 0)
    assert model.verify_s[1] == pytest.approx(95e-6)
    assert model.verify_s[40] == pytest.approx(400e-6)
    assert model.captured_sizes == ()
    assert not model.draft_s.any()


def test_ragged_refill_and_missing_target_passes() -> None:
    steps = pd.DataFrame(synthetic_steps(stairs_world()))
    verify = steps[steps["mode"] == "verify"]
    ragged = verify.assign(ragged=True, microseconds=verify["microseconds"] + 150.0)
    refill = verify.head(1).assign(mode="refill", tokens=100, microseconds=500.0)
    every = pd.concat([steps.assign(ragged=False), ragged, refill.assign(ragged=False)])
    model, _ = fit_latency(every, gamma=4)
    assert model.adaptive_s == pytest.approx(150e-6)
    assert model.adaptive_token_s == pytest.approx(0, abs=1e-12)
    assert model.refill_s == pytest.approx(5e-6)
    ragged["microseconds"] = verify["microseconds"] + 50.0 + 2.0 * verify["tokens"]
    model, _ = fit_latency(pd.concat([steps.assign(ragged=False), ragged]), gamma=4)
    assert model.adaptive_s == pytest.approx(50e-6)
    assert model.adaptive_token_s == pytest.approx(2e-6)
    seconds = (model.step_time_s(0, 0, 12, adaptive=a, prefill_tokens=5) for a in (True, False))
    assert next(seconds) - next(seconds) == pytest.approx(64e-6)
    table = model.cost_table("clamp")
    extra = table.ragged_curve_s(12, 3, rows=7) - table.verify_curve_s(12, 3)
    np.testing.assert_allclose(extra, [64e-6, 66e-6, 68e-6])
    with pytest.raises(ValueError, match="no target pass"):
        fit_latency(steps[steps["mode"] == "draft"])


def test_a_ragged_extra_below_the_noise_is_none() -> None:
    steps = pd.DataFrame(synthetic_steps(stairs_world()))
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal((6, len(steps))))
    noisy = pd.concat([steps.assign(microseconds=steps["microseconds"] * n) for n in noise])
    ragged = steps[steps["mode"] == "verify"].assign(ragged=True)
    ragged["microseconds"] *= 1.01
    model, _ = fit_latency(pd.concat([noisy.assign(ragged=False), ragged]), gamma=4)
    assert model.spread > 0.03
    assert (model.adaptive_s, model.adaptive_token_s) == (0.0, 0.0)
