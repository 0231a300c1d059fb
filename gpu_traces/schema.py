"""The tables of a trace bundle and the in-memory form that the simulator replays.

Positions: a response y_0 .. y_{L-1} has one anchor per position t = 0 .. L-2 (nothing is left to
draft after y_{L-1}). The block drafted at anchor t proposes y_{t+1}, y_{t+2}, ...; its accepted
length A_t counts the leading draft tokens that agree and never exceeds L-1-t, so a policy that
verifies l at t gains min(min(A_t, l) + 1, L-1-t) tokens and goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 1

OriginKind = Literal["measured", "published", "synthetic"]

STEP_MODES = ("draft", "verify", "prefill", "mixed", "refill", "overhead")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where numbers come from; printed beside every result made from them."""

    kind: OriginKind
    detail: str
    """measured: the machine; published: the citation; synthetic: the generator."""

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})"


@dataclass(frozen=True)
class AcceptanceTraces:
    """Dense coupled traces of n responses with A anchors in all; arrays are read-only.

    Anchors of response i are rows ``first_anchor[i]`` .. ``first_anchor[i + 1] - 1``, in position
    order (response_tokens[i] - 1 of them).
    """

    name: str
    origin: Origin
    gamma: int
    domains: tuple[str, ...]
    request_id: npt.NDArray[np.int64]
    """[n]"""
    domain: npt.NDArray[np.int16]
    """[n] index into ``domains``."""
    temperature: npt.NDArray[np.float32]
    """[n] sampling temperature of the response."""
    prompt_tokens: npt.NDArray[np.int32]
    """[n]"""
    response_tokens: npt.NDArray[np.int32]
    """[n] L, the stop token included."""
    first_anchor: npt.NDArray[np.int64]
    """[n + 1]"""
    confidence: npt.NDArray[np.float32]
    """[A, gamma] calibrated confidence per draft position, each on the float16 grid."""
    accepted: npt.NDArray[np.int8]
    """[A] accepted length of the full block, 0..gamma."""
    alpha: npt.NDArray[np.float32]
    """[A, gamma] analytic acceptance 1 - TV(p_d, p_t) by position (T = 0: 1 or 0, argmax match)."""
    max_prob: npt.NDArray[np.float32]
    """[A, gamma] largest draft probability per position."""

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def responses(self) -> int:
        return int(self.request_id.size)

    @property
    def anchors(self) -> int:
        return int(self.accepted.size)

    def of_domain(self, domain: int) -> npt.NDArray[np.int64]:
        """Indices of the responses of one domain."""
        return np.flatnonzero(self.domain == domain)


class Column(NamedTuple):
    """One column of a bundle table."""

    name: str
    type: pa.DataType | None
    """None: a vector of gamma probabilities, stored as the manifest's encoding says."""
    meaning: str
    default: Any = None
    """What a writer that leaves the column out means; None: the column must be given."""


_i8, _i32, _i64 = pa.int8(), pa.int32(), pa.int64()
_f32, _f64, _text = pa.float32(), pa.float64(), pa.string()

TABLES: dict[str, tuple[Column, ...]] = {
    "responses": (
        Column("request_id", _i64, "unique; row order is the anchors' order"),
        Column("prompt_key", _text, "names the prompt within its dataset"),
        Column("domain", _text, "one of the manifest's domains"),
        Column("dataset", _text, "where the prompt comes from"),
        Column("temperature", _f32, "sampling temperature, 0: greedy"),
        Column("prompt_tokens", _i32, "tokens before y_0"),
        Column("response_tokens", _i32, "L, the stop token included"),
    ),
    "anchors": (
        Column("request_id", _i64, "the response; its L - 1 rows are consecutive"),
        Column("position", _i32, "t = 0 .. L - 2"),
        Column("context_tokens", _i32, "cached tokens that the anchor attends to"),
        Column("confidence", None, "raw head output (sigmoid, before calibration) per position"),
        Column("accepted", _i8, "accepted length of the full block, 0..min(gamma, L - 1 - t)"),
        Column("alpha", None, "1 - TV(p_d, p_t) per position"),
        Column("max_prob", None, "largest draft probability per position"),
    ),
    "steps": (
        Column("mode", _text, "one of STEP_MODES"),
        Column("requests", _i32, "requests in the pass"),
        Column("tokens", _i32, "target tokens of the pass (refill: tokens refilled)"),
        Column("context_tokens", _i32, "mean cached tokens per request"),
        Column("draft_length", _i32, "draft tokens per request (mode draft)"),
        Column("graph", pa.bool_(), "replayed from a captured graph of exactly this size"),
        Column("repetition", _i32, "0, 1, ... within the cell"),
        Column("microseconds", _f64, "time of the pass"),
        Column("ragged", pa.bool_(), "took the adaptive (variable length) path", False),
    ),
    "live_steps": (
        Column("step", _i64, "engine step number"),
        Column("requests", _i32, "decoding requests R"),
        Column("request_ids", pa.list_(_i64), "[R] in row order"),
        Column("drafted", pa.list_(_i8), "[R] draft tokens proposed"),
        Column("lengths", pa.list_(_i8), "[R] draft tokens verified"),
        Column("accepted", pa.list_(_i8), "[R] draft tokens accepted"),
        Column("tokens_planned", _i32, "target tokens of the step"),
        Column("tokens_padded", _i32, "target tokens after padding to a captured size"),
        Column("context_tokens", _i64, "cached tokens read, all requests together"),
        Column("draft_us", _f64, "drafting time, microseconds"),
        Column("verify_us", _f64, "target pass, microseconds"),
        Column("plan_us", _f64, "policy decision, microseconds"),
        Column("overhead_us", _f64, "rest of the step, microseconds"),
    ),
    "live_requests": (
        Column("request_id", _i64, "unique"),
        Column("rounds", _i32, "verification rounds"),
        Column("verified", _i32, "draft tokens verified"),
        Column("accepted", _i32, "draft tokens accepted"),
        Column("prompt_tokens", _i32, "tokens before the first output token"),
        Column("output_tokens", _i32, "tokens generated"),
        Column("ttft_s", _f64, "seconds to the first token"),
        Column("e2e_s", _f64, "seconds from arrival to the last token"),
    ),
}
