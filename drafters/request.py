"""A request of the live loop, and what the engine knows of it while it runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks for."""

    request_id: int
    name: str
    """Decides, with the engine's seed, every random draw of the request."""
    prompt: tuple[int, ...]
    """Token ids."""
    max_new: int
    """Output tokens at most."""
    temperature: float = 0.0
    domain: int = 0
    """Domain code that policies see."""
    arrival_s: float | None = 0.0
    """Seconds on the engine's clock; None: as soon as there is room for it (a closed loop)."""


@dataclass(eq=False)
class Running:
    """The state of one request; positions count from the prompt's first token.

    The *anchor* is the last token, whose keys are not cached yet: a decoding sequence has
    ``cached == len(tokens) - 1``.
    """

    request: Request
    tokens: list[int]
    """Prompt and output."""
    stream: int = 0
    """Seed of its own uniforms, a signed 64-bit number."""
    number: int = -1
    """Admissions before its own: policies see rows in this order."""
    slot: int = -1
    """Slot that policies see, stable while it runs."""
    cached: int = 0
    """Leading tokens in the target's cache."""
    extended: int = 0
    """Leading tokens in the drafter's state."""
    pending: list[Tensor] = field(default_factory=list)
    """Features [q, m * d] of the tokens after ``extended`` that the drafter has not taken in."""
    kept: tuple[int, int] = (0, 0)
    """First row and count of those that still lie in the last pass's buffer (captured steps)."""
    blocks: list[int] = field(default_factory=list)
    """KV blocks that it holds (``drafters.paging``)."""
    drafted: int = 0
    """Draft tokens of this step."""
    fresh: bool = True
    """True until its first decoding step is over."""
    done: bool = False
    """Whether its output is complete."""
    rounds: int = 0
    verified: int = 0
    accepted: int = 0
    preemptions: int = 0
    arrived_s: float = float("nan")
    """When it arrives: as its request says, or when there was room for it."""
    first_token_s: float = float("nan")
    finish_s: float = float("nan")
    reason: str = ""
    """Why it failed; empty for a request that did not."""

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def to_prefill(self) -> int:
        """Tokens to compute before the next token can be: the prompt, or after a preemption all
        but the anchor; 0 or less while decoding."""
        return len(self.tokens) - self.cached - (1 if self.generated else 0)

    def ends_prefill(self, chunk: int) -> bool:
        """Whether a prompt chunk of this size gives the first output token."""
        return chunk == self.to_prefill and not self.generated

    def fail(self, reason: str) -> None:
        """End it here, with what it has."""
        self.reason, self.done = reason, True

    def forget(self) -> None:
        """Drop what is cached; all but the anchor must then be computed again."""
        self.cached = self.extended = 0
        self.pending, self.kept = [], (0, 0)

    def take(self, tokens: list[int], stops: frozenset[int]) -> int:
        """Append new tokens up to the first stop token or ``max_new``, which end it; returns how
        many."""
        room = self.request.max_new - self.generated
        if not stops.isdisjoint(tokens):
            room = min(room, 1 + next(i for i, token in enumerate(tokens) if token in stops))
        if len(tokens) >= room:
            tokens, self.done = tokens[:room], True
        self.tokens += tokens
        return len(tokens)


def stream_of(seed: int, name: str) -> int:
    """The seed of a request's uniforms: fixed by (seed, name) alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
