"""How far generated traffic may be from a published figure, and why.

One rule per kind of figure, from what limits figures of that kind; none is for a single figure.
"""

from __future__ import annotations

from dataclasses import dataclass

Z = 3.0
"""Standard deviations of sampling that are allowed: a true generator fails one figure in 370."""


@dataclass(frozen=True)
class Rule:
    """Allowed = ``Z`` standard deviations of sampling + ``share`` of the figure + ``error``."""

    why: str
    share: float = 0.0
    """Stated model error, relative."""
    sampling: str = ""
    """``hour``: one hour of the generator; ``hours``: the mean over all of them; ``error``: the
    figure's own, in the table; empty: none to speak of."""


RULES = {
    "hour": Rule("one published hour is one draw: Z sd over generated hours", sampling="hour"),
    "theory": Rule("known exactly: Z standard errors of the mean over hours", sampling="hours"),
    "curve": Rule("29 quantiles, log-linear in between: 2 %", share=0.02),
    "pixel": Rule("read off a plot: one pixel, and 2 % as curve", share=0.02),
    "reading": Rule("rates read off a plot, 0-4 % from known counts: 4 %", share=0.04),
    "peak": Rule("hourly rates joined by lines or steps cut peaks and troughs: 20 %", share=0.2),
    "day": Rule("73 clients as 11 streams of fixed habits through the day: 5 %", share=0.05),
    "reuse": Rule("prefix reuse by seven prompt sizes: 15 %", share=0.15),
    "session": Rule(
        "710 sessions: Z bootstrap sd; contexts follow from openings, growth and resets: 10 %",
        share=0.1,
        sampling="error",
    ),  # fmt: skip
    "independent": Rule("lengths are independent in the generator; up to 0.1 counts as none"),
}


def allowed(rule: str, published: float, error: float, spread: float, hours: int) -> float:
    """Largest absolute difference; ``spread``: standard deviation over the generated ``hours``."""
    found = RULES[rule]
    sampling = {"hour": spread, "hours": spread / max(hours, 1) ** 0.5, "error": error}
    chance = Z * sampling[found.sampling] if found.sampling else error
    return chance + found.share * abs(published)
