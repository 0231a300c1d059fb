"""The tables of a trace bundle and the in-memory form that the simulator replays.

Positions: a response y_0 .. y_{L-1} has one anchor per position t = 0 .. L-2 (nothing is left to
draft after y_{L-1}). The block drafted at anchor t proposes y_{t+1}, y_{t+2}, ...; its accepted
length A_t counts the leading draft tokens that agree and never exceeds L-1-t, so a policy that
verifies l at t gains min(min(A_t, l) + 1, L-1-t) tokens and goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1

OriginKind = Literal["measured", "published", "synthetic"]


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
    """[A, gamma] analytic acceptance 1 - TV(p_d, p_t) per position (T = 0: 1 or 0, argmax match)."""
    max_prob: npt.NDArray[np.float32]
    """[A, gamma] largest draft probability per position."""

    @property
    def responses(self) -> int:
        return int(self.request_id.size)

    def of_domain(self, domain: int) -> npt.NDArray[np.int64]:
        """Indices of the responses of one domain."""
        return np.flatnonzero(self.domain == domain)
