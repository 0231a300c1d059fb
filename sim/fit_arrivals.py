"""Arrival parameters of ``Modulated`` and ``OnOff`` from the times of a trace, by moments.

For counts in windows of w seconds the ratio of variance to mean (IoD) of ``Modulated`` is

    IoD(w) = gap_cv^2 + mean count * (X(w) - X(span)),
    X(w) = 2 / w^2 * integral_0^w (w - u) (exp(C(u)) - 1) du,
    C(u) = sum over components of sigma^2 exp(-u / tau):

X is the squared CV of the rate averaged over w, and what varies more slowly than the trace is long
does not show in it. Fitted to the IoD at several windows by least squares, each weighted by its
sampling error IoD * sqrt(2 / windows). The slow correlation time is fixed (``SLOW_S``), since an
hour of counts can't tell it from a longer one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import least_squares

from sim.arrivals import Floats
from sim.traffic_stats import window_counts

SLOW_S = 800.0
SILENCE_S = 8.0
"""Gaps from here on count as silences between bursts."""
WINDOWS_S = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
LEAST_WINDOWS = 10
POINTS = 400

Components = list[tuple[float, float]]


def excess(window_s: float, components: Components) -> float:
    """X(w), the squared CV of the rate averaged over windows of ``window_s``."""
    u = (np.arange(POINTS) + 0.5) / POINTS * window_s
    covariance = sum(sigma**2 * np.exp(-u / tau_s) for sigma, tau_s in components)
    inside = (window_s - u) * np.expm1(covariance)
    return float(2 / window_s**2 * inside.sum() * window_s / POINTS)


def modulated(
    arrival_s: Floats, start: Components, least_window_s: float = 0.0, gap_cv: float | None = 1.0
) -> dict[str, Any]:
    """Parameters of ``Modulated``, with the misfit (chi-squared, and over how many windows).

    ``start``: components to begin at; one with ``SLOW_S`` keeps that time. ``gap_cv`` None: fitted.
    ``least_window_s``: shorter windows say nothing (a trace stamped on a grid).
    """
    span_s = float(arrival_s[-1] - arrival_s[0])
    windows = [w for w in WINDOWS_S if w >= least_window_s and span_s / w >= LEAST_WINDOWS]
    counts = [window_counts(arrival_s, w) for w in windows]
    mean = np.array([c.mean() for c in counts])
    iod = np.array([c.var() for c in counts]) / mean
    error = iod * np.sqrt(2 / np.array([c.size for c in counts]))

    def unpacked(logs: Floats) -> tuple[Components, float]:
        values = iter(np.exp(logs))
        found = [(next(values), tau if tau == SLOW_S else next(values)) for _, tau in start]
        return found, next(values) if gap_cv is None else gap_cv

    def misfit(logs: Floats) -> Floats:
        components, cv = unpacked(logs)
        beyond = excess(span_s, components)
        expected = np.array([excess(w, components) for w in windows]) - beyond
        difference: Floats = (cv**2 + mean * expected - iod) / error
        return difference

    first = [x for sigma, tau in start for x in ((sigma,) if tau == SLOW_S else (sigma, tau))]
    first += [1.5] if gap_cv is None else []
    solved = least_squares(misfit, np.log(first))
    components, cv = unpacked(solved.x)
    return {
        "components": [[_two(sigma), _two(tau_s)] for sigma, tau_s in components],
        "gap_cv": _two(cv),
        "chi_squared": _two(2 * solved.cost),
        "windows": len(windows),
    }


def on_off(arrival_s: Floats, start: Components) -> dict[str, Any]:
    """Bursts and silences, and what happens on a clock that stands still in silences."""
    gaps = np.diff(arrival_s)
    silent = np.flatnonzero(gaps >= SILENCE_S)
    first, last = np.append(0, silent + 1), np.append(silent, gaps.size)
    on_s, off_s = arrival_s[last] - arrival_s[first], gaps[silent]
    inside = gaps.copy()
    inside[silent] = np.median(gaps[gaps < SILENCE_S])
    clock_s = np.append(0.0, np.cumsum(inside))
    found = modulated(clock_s, start, gap_cv=None)
    return found | {
        "rate_rps": _three(arrival_s.size / on_s.sum()),
        "on_s": _three(on_s.mean()),
        "on_cv": _two(on_s.std() / on_s.mean()),
        "off_s": _three(off_s.mean()),
        "off_cv": _two(off_s.std() / off_s.mean()),
    }


def _two(value: float) -> float:
    return float(f"{value:.2g}")


def _three(value: float) -> float:
    return float(f"{value:.3g}")
