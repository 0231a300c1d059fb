"""What an engine *believes* a step costs: dense tables built by the engines' own lookup rules.

The truth is ``gpu_traces.latency.LatencyModel``; the two are separate objects because a table that
is wrong (floor lookup, other context, missing draft cost) is what burns users, and can be studied.

Belief about one step: ``draft_s[k, R] + verify_s[T]``, T counting anchors, draft tokens and prefill
tokens. An additive table bias + alpha(R) + theta(T) fits the same form (bias and alpha go with R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RULES = ("linear", "clamp", "rate", "ceil", "stairs", "floor")


def densify(sizes: npt.ArrayLike, seconds: npt.ArrayLike, rule: str, last: int) -> Floats:
    """Seconds for every integer size 0..last from measured points, by an engine's lookup rule.

    ``linear``: interpolate between points, constant below the first, last slope beyond the last
    (TensorRT-LLM). ``clamp``: the same, constant beyond the last (SGLang's additive table).
    ``rate``: interpolate 1 / seconds, constant outside (ATOM). ``ceil``: the value at the next
    measured size, over a running maximum (vLLM up to its capture limit). ``stairs``: the same as it
    was measured, dips kept. ``floor``: the value at the largest measured size not above (SGLang's
    1-D table). Size 0 keeps the first value. Raises ValueError on a bad table.
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise ValueError(f"cost table needs equal 1-D sizes and seconds, got {x.shape}, {y.shape}")
    if not (np.all(np.diff(x) > 0) and np.all(np.isfinite(y)) and np.all(y >= 0)):
        raise ValueError("cost table needs strictly increasing sizes and finite seconds >= 0")
    grid = np.arange(last + 1, dtype=np.float64)
    if rule == "linear":
        return _interpolate(x, y, grid)
    if rule == "clamp":
        return np.interp(grid, x, y)
    if rule == "rate":
        return 1.0 / np.interp(grid, x, 1.0 / np.maximum(y, 1e-9))
    if rule == "floor":
        return y[np.clip(np.searchsorted(x, grid, side="right") - 1, 0, x.size - 1)]
    if rule in ("ceil", "stairs"):
        steps = np.maximum.accumulate(y) if rule == "ceil" else y
        dense = steps[np.clip(np.searchsorted(x, grid, side="left"), 0, x.size - 1)]
        return np.where(grid > x[-1], _interpolate(x, steps, grid), dense)
    raise ValueError(f"unknown lookup rule {rule!r}; known: {', '.join(RULES)}")


def _interpolate(x: Floats, y: Floats, grid: Floats) -> Floats:
    dense = np.interp(grid, x, y)
    if x.size > 1:
        slope = max(0.0, float((y[-1] - y[-2]) / (x[-1] - x[-2])))
        beyond = grid > x[-1]
        dense[beyond] = y[-1] + slope * (grid[beyond] - x[-1])
    return np.asarray(dense, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Dense belief about step time.

    ``draft_s`` [gamma + 1, R_max + 1]: seconds to draft k tokens for each of R requests (row 0 is
    zero). ``verify_s`` [T_max + 1]: seconds of a target pass over T tokens. ``context_s``: seconds
    per cached token read, on top of the context the table was profiled at (0: token-only, as in
    every known engine). ``adaptive_s``, ``adaptive_token_s``: extra seconds of a step that takes
    the ragged path, and of each of its decoding tokens. ``refill_s``: seconds per token that the
    drafter's cache missed while a request skipped drafting, paid when it drafts again. ``tiers``:
    captured token counts that a step is padded up to, ascending (empty: unknown).
    """

    draft_s: Floats
    verify_s: Floats
    context_s: float = 0.0
    adaptive_s: float = 0.0
    refill_s: float = 0.0
    tiers: tuple[int, ...] = ()
    adaptive_token_s: float = 0.0

    def __post_init__(self) -> None:
        if self.draft_s.ndim != 2 or self.verify_s.ndim != 1:
            raise ValueError("draft_s must be [gamma + 1, R_max + 1] and verify_s [T_max + 1]")
        self.draft_s.setflags(write=False)
        self.verify_s.setflags(write=False)

    @property
    def gamma(self) -> int:
        return int(self.draft_s.shape[0]) - 1

    def draft_time_s(self, requests: int, length: int | None = None) -> float:
        """Seconds to draft ``length`` (default gamma) tokens for each of ``requests``."""
        row = self.draft_s[self.gamma if length is None else length]
        return float(row[min(requests, row.size - 1)])

    def verify_curve_s(self, first: int, count: int) -> Floats:
        """Seconds for the ``count`` token counts from ``first`` on (a view if in range)."""
        if first + count <= self.verify_s.size:
            return self.verify_s[first : first + count]
        sizes = np.arange(first, first + count)
        inside = self.verify_s[np.minimum(sizes, self.verify_s.size - 1)]
        slope = self.verify_s[-1] - self.verify_s[-2] if self.verify_s.size > 1 else 0.0
        return inside + slope * np.maximum(sizes - (self.verify_s.size - 1), 0)

    def ragged_curve_s(self, first: int, count: int, rows: int) -> Floats:
        """The same on the ragged path, with ``rows`` decoding requests among the ``first`` tokens;
        where that path costs nothing more, the very same."""
        plain = self.verify_curve_s(first, count)
        if not (self.adaptive_s or self.adaptive_token_s):
            return plain
        return plain + self.adaptive_s + self.adaptive_token_s * np.arange(rows, rows + count)

    def scaled(self, draft: float = 1.0, verify: float = 1.0) -> CostTable:
        """A wrong belief for sensitivity studies: every draft or verify time times a factor."""
        return replace(self, draft_s=self.draft_s * draft, verify_s=self.verify_s * verify)


def no_cost(gamma: int) -> CostTable:
    """What an engine believes that knows no costs: drafts are free, all passes cost the same."""
    return CostTable(np.zeros((gamma + 1, 2)), np.ones(2))
