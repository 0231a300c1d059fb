"""Arrival processes against closed forms.

Means are compared at 4.5 standard errors (normal: false alarm about 1 in 150,000 per assertion);
where no error formula is at hand, 20 replications give it (t, 19 d.f.: about 1 in 4,000). Seeds are
fixed, so a test that passes stays passing.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.arrivals import ArrivalProcess, Modulated, OnOff, Renewal, check_times, child
from sim.curves import Client, Diurnal
from sim.scaling import Scaled, merged

SIGMAS = 4.5
DAY_CURVE = 1.0 + 0.8 * np.sin(2 * np.pi * np.arange(24) / 24)
PROCESSES: dict[str, ArrivalProcess] = {
    "poisson": Renewal(5.0),
    "gamma": Renewal(5.0, cv=3.0),
    "even": Renewal(5.0, cv=0.3),
    "on-off": OnOff(Renewal(9.0, cv=1.5), on_s=17.0, on_cv=0.6, off_s=43.0, off_cv=1.1),
    "diurnal": Diurnal(DAY_CURVE, 3600.0, start_s=5000.0),
    "modulated": Modulated(5.5, ((0.2, 600.0), (0.2, 2.0)), gap_cv=1.3),
    "client": Client(DAY_CURVE, 3600.0, cv=2.5, start_s=5000.0),
}
SCALED = {
    f"{name}-{method}": Scaled(process, factor, method)
    for name, process in PROCESSES.items()
    for method, factor in (("time_scale", 2.0), ("thin", 0.3), ("superpose", 2.5))
}


def seed(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def replicated(process: ArrivalProcess, count: int, statistic) -> np.ndarray:
    return np.array([statistic(process.first(count, seed(i))) for i in range(20)])


def assert_mean(samples: np.ndarray, theory: float) -> None:
    """The mean of replications lies within 4.5 of its own standard errors of theory."""
    error = samples.std(ddof=1) / np.sqrt(samples.size)
    assert abs(samples.mean() - theory) < SIGMAS * error, (samples.mean(), theory, error)


def gap_cv(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("name", [*PROCESSES, *SCALED])
@given(counts=st.tuples(st.integers(1, 400), st.integers(1, 400)), number=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_more_arrivals_only_append(name, counts, number):
    process = (PROCESSES | SCALED)[name]
    few, many = sorted(counts)
    short, long = process.first(few, seed(number)), process.first(many, seed(number))
    assert short.size == few
    assert long.size == many
    check_times(long, name)
    assert np.array_equal(short, long[:few])


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_renewal_has_the_rate_and_cv_asked_for(cv):
    samples = replicated(Renewal(4.0, cv), 20_000, lambda t: t[-1] / t.size)
    assert_mean(samples, 1 / 4.0)
    gaps = np.diff(Renewal(4.0, cv).first(400_000, seed()))
    assert gap_cv(Renewal(4.0, cv).first(400_000, seed())) == pytest.approx(cv, rel=0.02)
    assert gaps.min() >= 0


def test_poisson_counts_are_as_spread_as_they_are_many():
    """IoD of n windows of a Poisson process has mean 1 and standard deviation sqrt(2 / (n - 1))."""
    times = Renewal(3.0).first(300_000, seed())
    counts = np.bincount((times // 10).astype(int))[:-1]
    iod = counts.var(ddof=1) / counts.mean()
    assert abs(iod - 1) < SIGMAS * np.sqrt(2 / (counts.size - 1))


def test_diurnal_follows_its_curve_hour_by_hour():
    """Counts per hour of day are Poisson with the integral of the curve as mean."""
    curve = Diurnal(DAY_CURVE, 3600.0)
    times = curve.first(800_000, seed())
    days = int(times[-1] // 86_400)
    times = times[times < days * 86_400]
    counts = np.bincount((times // 3600 % 24).astype(int), minlength=24)
    fine = np.arange(24 * 60) * 60.0 + 30.0
    expected = days * curve.rate_at(fine).reshape(24, 60).mean(axis=1) * 3600
    assert np.all(np.abs(counts - expected) < SIGMAS * np.sqrt(expected))


def test_diurnal_start_shifts_the_clock():
    late = Diurnal(DAY_CURVE, 3600.0, start_s=7 * 3600.0)
    early = Diurnal(DAY_CURVE, 3600.0)
    times = np.arange(0.0, 86_400.0, 777.0)
    assert late.rate_at(times) == pytest.approx(early.rate_at(times + 7 * 3600.0))


def test_client_keeps_its_cv_under_a_curve_and_follows_it():
    curve = np.repeat([0.5, 4.0], 12)
    times = Client(curve, 3600.0, cv=2.5).first(600_000, seed())
    times = times[times < 2 * 86_400]
    busy = (times // 3600 % 24) >= 12
    assert np.count_nonzero(busy) / (2 * 12 * 3600) == pytest.approx(4.0, rel=0.05)
    runs = np.split(times[busy], np.flatnonzero(np.diff(times[busy]) > 6 * 3600) + 1)
    assert np.median([gap_cv(run) for run in runs]) == pytest.approx(2.5, rel=0.05)


def test_client_starting_inside_the_period_meets_that_hours_rate():
    curve = np.repeat([1.0, 9.0], 12)
    samples = replicated(
        Client(curve, 3600.0, cv=1.0, start_s=14 * 3600.0), 3_000, lambda t: t.size / t[-1]
    )
    assert samples.mean() == pytest.approx(9.0, rel=0.02)


def test_on_off_is_silent_and_busy_in_the_shares_asked_for():
    process = OnOff(Renewal(50.0), on_s=20.0, on_cv=0.7, off_s=60.0, off_cv=0.8)

    def silent_share(times):
        gaps = np.diff(times)
        return gaps[gaps > 2.0].sum() / times[-1]

    assert_mean(replicated(process, 50_000, lambda t: t[-1] / t.size), 1 / process.rate_rps)
    assert replicated(process, 50_000, silent_share).mean() == pytest.approx(0.75, rel=0.04)


def test_on_off_without_silence_is_the_process_within():
    within = Renewal(9.0, cv=2.0)
    process = OnOff(within, on_s=1e9, on_cv=0.1, off_s=1e-9, off_cv=0.1)
    expected = within.first(1_000, child(seed(), 0))
    assert process.first(1_000, seed()) == pytest.approx(expected, abs=1e-8)


def test_slowly_modulated_gaps_have_the_cv_of_the_mixture():
    """Gaps of a Cox process far shorter than tau: exponential given a rate, seen rate-weighted.

    The gap's moments are E[r/r]/E[r] and 2 E[r/r^2]/E[r], so CV^2 = 2 E[r] E[1/r] - 1, with
    E[r] E[1/r] = exp(sigma^2) for a log-normal rate.
    """
    sigma = 0.5
    process = Modulated(50.0, ((sigma, 20.0),))
    squared = replicated(process, 100_000, lambda t: gap_cv(t) ** 2)
    assert squared.mean() == pytest.approx(2 * np.exp(sigma**2) - 1, rel=0.05)
    assert_mean(replicated(process, 100_000, lambda t: t.size / t[-1]), 50.0)


@pytest.mark.parametrize(("cv", "keep"), [(3.0, 0.1), (0.3, 0.5)])
def test_thinning_a_renewal_process_pulls_its_cv_towards_one(cv, keep):
    """A geometric number of gaps is kept as one: CV'^2 = keep * CV^2 + 1 - keep."""
    thinned = Scaled(Renewal(5.0, cv), keep, "thin").first(100_000, seed())
    assert gap_cv(thinned) ** 2 == pytest.approx(keep * cv**2 + 1 - keep, rel=0.03)
    assert thinned.size / thinned[-1] == pytest.approx(5.0 * keep, rel=0.03)


def test_thinning_a_curve_equals_thinning_its_arrivals_in_law():
    process = Diurnal(DAY_CURVE, 3600.0)
    direct = Scaled(process, 0.25, "thin")
    assert direct.rate_rps == pytest.approx(0.25)
    assert_mean(
        replicated(direct, 21_600, lambda t: np.count_nonzero(t < 43_200)),
        0.25 * process.rate_at(np.arange(43_200) + 0.5).sum(),
    )


def test_time_scale_divides_every_arrival():
    process = PROCESSES["on-off"]
    faster = Scaled(process, 4.0, "time_scale").first(500, seed(3))
    assert np.array_equal(faster * 4.0, process.first(500, seed(3)))


@pytest.mark.parametrize("cv", [0.3, 3.0])
def test_renewal_is_stationary_from_the_start(cv):
    """E[N(t)] = rate t for all t: no burst, and no lull, at time 0."""
    counts = [np.count_nonzero(Renewal(1.0, cv).first(200, seed(i)) < 2.0) for i in range(1_500)]
    assert_mean(np.array(counts), 2.0)


def test_superposing_many_clients_tends_to_poisson():
    many = Scaled(Renewal(0.1, cv=0.3), 200.0, "superpose").first(50_000, seed())
    assert gap_cv(many) == pytest.approx(1.0, abs=0.05)
    assert many.size / many[-1] == pytest.approx(20.0, rel=0.05)


def test_merging_names_the_part_of_each_arrival():
    parts = [Renewal(1.0), Renewal(3.0, cv=2.0)]
    times, part = merged(parts, 2_000, seed(1))
    for i, process in enumerate(parts):
        own = times[part == i]
        assert np.array_equal(own, process.first(own.size, child(seed(1), i)))


def test_children_do_not_depend_on_how_often_they_are_asked_for():
    parent = seed(9)
    first = child(parent, 2).generate_state(2)
    assert np.array_equal(first, child(parent, 2).generate_state(2))
    assert parent.n_children_spawned == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Renewal(0.0), "rate_rps=0 must be above 0"),
        (lambda: Renewal(1.0, cv=float("nan")), "cv=nan must be above 0"),
        (lambda: Diurnal(np.zeros(3), 60.0), "must rise above 0"),
        (lambda: Diurnal(np.array([1.0, -1.0]), 60.0), "finite rates of at least 0"),
        (lambda: Client(np.array([1.0, 0.0]), 60.0, 1.0), "must stay above 0"),
        (lambda: Modulated(1.0, ()), "pairs"),
        (lambda: Scaled(Renewal(1.0), 2.0, "thin"), r"thin factor is 2; it must be in \(0, 1\]"),
        (lambda: Scaled(Renewal(1.0), 0.5, "superpose"), "must be 1 or more"),
        (lambda: Scaled(Renewal(1.0), 2.0, "stretch"), "known: time_scale, thin, superpose"),
    ],
)
def test_impossible_parameters_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([], "no arrivals"),
        ([0.0, np.nan], "nan s in row 1 is not a finite number"),
        ([0.0, 1.0, -2.0], "-2 s in row 2 is negative"),
        ([0.0, 5.0, 4.0], "4 s in row 2 comes before the row above"),
    ],
)
def test_bad_arrival_times_are_named(times, said):
    with pytest.raises(ValueError, match=said):
        check_times(np.array(times), "x.csv")
