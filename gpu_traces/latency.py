"""The world's step time: what a step really costs, as opposed to what an engine believes it costs.

    step = overhead_s
         + draft_s[k, R_d] + draft_context_s * (cached tokens the drafter reads)     if it drafts
         + verify_s[T]     + context_s       * (cached tokens the target pass reads)
         + adaptive_s      + adaptive_token_s * (T - prefill)         if the ragged path was taken
         + refill_s * (tokens whose drafter cache must be refilled)

T counts anchors, draft tokens and prefill tokens. The CUDA-graph staircase is inside ``verify_s``:
T is the number of tokens asked for, and the entry is the time of the captured size it is padded to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gpu_traces.schema import Origin
from policies.cost import CostTable, densify

Floats = npt.NDArray[np.float64]

SYNTHETIC = Origin("synthetic", "closed-form step time")
NO_CONTEXT_LIMIT = 1 << 40
"""``max_context_tokens`` of a model whose times do not depend on context."""


@dataclass(frozen=True)
class LatencyModel:
    """Dense tables of the median step time, seconds; arrays are read-only and numba-ready."""

    name: str
    origin: Origin
    draft_s: Floats
    """[gamma + 1, R_max + 1] seconds to draft k tokens for each of R requests; row 0 is zero."""
    verify_s: Floats
    """[T_max + 1] seconds of a target pass over T tokens at empty context."""
    context_s: float = 0.0
    """Seconds per cached token that the target pass reads (all requests together)."""
    draft_context_s: float = 0.0
    """Seconds per cached token that the drafter reads."""
    overhead_s: float = 0.0
    """Host time per step that nothing hides."""
    adaptive_s: float = 0.0
    """Extra time of a step with ragged verification lengths."""
    adaptive_token_s: float = 0.0
    """Extra time of such a step for each of its tokens that is not prefilled."""
    refill_s: float = 0.0
    """Seconds per token of drafter cache to refill when a request resumes drafting."""
    spread: float = 0.0
    """Log standard deviation of step noise: a step takes its median times exp(spread * N(0, 1))."""
    captured_sizes: tuple[int, ...] = ()
    """Token counts with a captured graph, ascending; empty when every pass is eager."""
    max_context_tokens: int = NO_CONTEXT_LIMIT
    """Most cached tokens (all requests together) that were profiled in one pass."""

    def __post_init__(self) -> None:
        for label in ("draft_s", "verify_s"):
            table = np.ascontiguousarray(getattr(self, label), dtype=np.float64)
            if table.ndim != (2 if label == "draft_s" else 1) or table.size < 2:
                raise ValueError(f"{label} has shape {table.shape}; see LatencyModel")
            if not (np.isfinite(table).all() and (table >= 0).all()):
                raise ValueError(f"{label} must hold finite seconds >= 0")
            table.setflags(write=False)
            object.__setattr__(self, label, table)

    @property
    def gamma(self) -> int:
        return int(self.draft_s.shape[0]) - 1

    @property
    def max_requests(self) -> int:
        return int(self.draft_s.shape[1]) - 1

    @property
    def max_tokens(self) -> int:
        return int(self.verify_s.size) - 1

    def step_time_s(
        self,
        draft_requests: int,
        draft_length: int,
        tokens: int,
        context_tokens: int = 0,
        adaptive: bool = False,
        draft_context_tokens: int | None = None,
        prefill_tokens: int = 0,
    ) -> float:
        """Median seconds of one step.

        ``context_tokens``: cached tokens that the target pass reads, summed over requests;
        ``draft_context_tokens``: the same of the drafting requests (None: the same number);
        ``prefill_tokens``: those among ``tokens``.
        """
        seconds = self.overhead_s + float(self.verify_s[tokens]) + self.context_s * context_tokens
        if draft_requests and draft_length:
            read = context_tokens if draft_context_tokens is None else draft_context_tokens
            seconds += float(self.draft_s[draft_length, draft_requests])
            seconds += self.draft_context_s * read
        if adaptive:
            seconds += self.adaptive_s + self.adaptive_token_s * (tokens - prefill_tokens)
        return seconds

    def check_range(
        self, requests: int, tokens: int, context_tokens: int = 0, extrapolate: bool = False
    ) -> bool:
        """Whether a step lies outside the profile; then ValueError unless ``extrapolate``."""
        asked = {"requests": requests, "tokens": tokens, "cached tokens": context_tokens}
        limits = (self.max_requests, self.max_tokens, self.max_context_tokens)
        beyond = [
            f"{value} {what} (profiled to {limit})"
            for (what, value), limit in zip(asked.items(), limits, strict=True)
            if value > limit
        ]
        if beyond and not extrapolate:
            raise ValueError(
                f"latency {self.name}: a step may need {', '.join(beyond)};"
                " lower the load's limits (--max-requests, --max-step-tokens, --kv-tokens)"
                " or ask for extrapolation (--extrapolate)"
            )
        return bool(beyond)

    def extrapolated(self, requests: int, tokens: int) -> LatencyModel:
        """The same, continued (last slope) to these sizes and marked so in its origin."""
        if requests <= self.max_requests and tokens <= self.max_tokens:
            return self
        sizes = np.arange(self.max_requests + 1)
        draft = [densify(sizes, row, "linear", max(requests, sizes[-1])) for row in self.draft_s]
        points = self.profile_sizes()
        tail = densify(points, self.verify_s[points], "linear", max(tokens, self.max_tokens))
        tail[: self.verify_s.size] = self.verify_s
        note = (
            f"{self.origin.detail}; extrapolated from R={self.max_requests}, T={self.max_tokens}"
            f" to R={requests}, T={tokens}"
        )
        return replace(
            self,
            draft_s=np.array(draft),
            verify_s=tail,
            origin=Origin(self.origin.kind, note),
        )

    def profile_sizes(self) -> npt.NDArray[np.int64]:
        """Token counts that an engine would profile.

        Captured sizes, then 1.5, 2, 3, 4, 6, ... times the largest (vLLM); without graphs 1, 2, 3,
        4, 6, 8, ... The largest size in the table always closes the list.
        """
        sizes = set(self.captured_sizes)
        last = max(sizes, default=1)
        while last <= self.max_tokens:
            sizes |= {last, last + last // 2}
            last *= 2
        inside = {size for size in sizes if 1 <= size <= self.max_tokens}
        return np.array(sorted(inside | {self.max_tokens}), dtype=np.int64)

    def cost_table(
        self,
        rule: str = "ceil",
        *,
        context_tokens: float = 0.0,
        draft: bool = True,
        context_aware: bool = False,
    ) -> CostTable:
        """What an engine believes after profiling this world by its own lookup rule.

        ``rule``: ceil (vLLM), floor (SGLang 1-D), linear (TensorRT-LLM, ATOM). ``context_tokens``:
        cached tokens per request while profiling; a pass over T tokens is profiled with
        T / (gamma + 1) requests, each verifying a full block. ``draft=False`` forgets drafting.
        ``context_aware`` hands the policy the slope too. Host overhead is part of a pass.
        """
        sizes = self.profile_sizes()
        read = context_tokens * np.ceil(sizes / (self.gamma + 1))
        seconds = self.verify_s[sizes] + self.context_s * read + self.overhead_s
        draft_s = self.draft_s + self.draft_context_s * context_tokens * self._request_grid()
        return CostTable(
            draft_s if draft else np.zeros_like(self.draft_s),
            self._lookup(sizes, seconds, rule),
            self.context_s if context_aware else 0.0,
            self.adaptive_s,
            adaptive_token_s=self.adaptive_token_s,
        )

    def _request_grid(self) -> Floats:
        grid = np.tile(np.arange(self.max_requests + 1, dtype=np.float64), (self.gamma + 1, 1))
        grid[0] = 0.0
        return grid

    def _lookup(self, sizes: npt.NDArray[np.int64], seconds: Floats, rule: str) -> Floats:
        """Dense seconds by rule; ceil is linear beyond the capture limit and jumps there (vLLM).

        Without captured graphs no size is padded, and stairs are linear.
        """
        if rule == "stairs" and not self.captured_sizes:
            rule = "linear"
        dense = densify(sizes, seconds, rule, self.max_tokens)
        limit = max(self.captured_sizes, default=self.max_tokens)
        outside = sizes > limit
        if rule in ("ceil", "stairs") and outside.any():
            steps = np.maximum.accumulate(seconds) if rule == "ceil" else seconds
            tail = densify(sizes[outside], steps[outside], "linear", self.max_tokens)
            dense[limit + 1 :] = tail[limit + 1 :]
        return dense

    def scaled(self, draft: float = 1.0, verify: float = 1.0) -> LatencyModel:
        """A slower or faster world: drafting and target pass, contexts included, by a factor."""
        return replace(
            self,
            draft_s=self.draft_s * draft,
            draft_context_s=self.draft_context_s * draft,
            verify_s=self.verify_s * verify,
            context_s=self.context_s * verify,
        )


def constant(
    step_s: float, gamma: int = 7, max_requests: int = 512, max_tokens: int = 8192
) -> LatencyModel:
    """A world where every step takes ``step_s``: verifying and drafting are free."""
    draft_s = np.zeros((gamma + 1, max_requests + 1))
    return LatencyModel("constant", SYNTHETIC, draft_s, np.full(max_tokens + 1, float(step_s)))


def linear(
    base_s: float,
    token_s: float,
    draft_base_s: float = 0.0,
    draft_request_s: float = 0.0,
    *,
    gamma: int = 7,
    max_requests: int = 512,
    max_tokens: int = 8192,
) -> LatencyModel:
    """verify = base + token_s * T; drafting any length = draft_base + draft_request_s * R."""
    draft_s = np.tile(
        draft_base_s + draft_request_s * np.arange(max_requests + 1.0), (gamma + 1, 1)
    )
    draft_s[0] = 0.0
    draft_s[:, 0] = 0.0
    verify_s = base_s + token_s * np.arange(max_tokens + 1.0)
    return LatencyModel("linear", SYNTHETIC, draft_s, verify_s)
