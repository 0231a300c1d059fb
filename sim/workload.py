"""Requests of a run as structure of arrays: when each arrives and which recorded text it replays.

Everything about a request is fixed here, before any policy runs, so that two policies see the
same requests and can be compared in pairs (common random numbers).

Chain of anchors: a request with ``output_tokens`` n walks n - 1 anchors. It begins at anchor
``start`` of ``response`` and, at the end of a recorded response, goes on at anchor 0 of the next
response of the same domain (in a cycle), so any length can be replayed from recorded blocks and the
v-th anchor of a request is the same whatever the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from gpu_traces.schema import AcceptanceTraces

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FLOAT_FIELDS = ("arrival_s", "think_s", "patience_s")
SLO_CLASSES = ("interactive", "batch", "agent")


@dataclass(frozen=True)
class Workload:
    """n requests sorted by ``arrival_s``; row i is request i; arrays are [n] and read-only.

    Raises ValueError for unsorted, negative or NaN arrivals and for lengths below 1.
    """

    name: str
    origin: str
    """Where arrivals and lengths come from."""
    notes: tuple[str, ...]
    """What was done to them: rate scaling and its method, clipping, stand-ins for domains."""
    arrival_s: Floats
    """Seconds from the start of the run; of a later turn of a session only a sort key."""
    prompt_tokens: Ints
    output_tokens: Ints
    """Output tokens, the one that ends prefill included; at least 1."""
    response: Ints
    """Index of the first recorded response that the request replays."""
    start: Ints
    """Anchor within ``response`` at which the replay begins."""
    domain: Ints
    slo_class: Ints
    """Index into ``SLO_CLASSES``."""
    session: Ints
    """Session number, -1 for none. Turns of a session are rows in order: the first arrives at
    ``arrival_s``, each later one ``think_s`` after the turn before it has ended."""
    prefix_tokens: Ints
    """Leading prompt tokens that a prefix cache would already hold."""
    think_s: Floats
    """Seconds between the end of the session's previous turn and this request."""
    patience_s: Floats
    """Seconds after arrival at which the client gives up and cancels; inf for never."""

    def __post_init__(self) -> None:
        n = self.arrival_s.size
        for name in self._columns():
            kind = np.float64 if name in FLOAT_FIELDS else np.int64
            array = np.ascontiguousarray(getattr(self, name), dtype=kind)
            if array.shape != (n,):
                raise ValueError(f"workload: {name} has shape {array.shape}, expected ({n},)")
            array = array.copy()
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check()

    @classmethod
    def _columns(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name not in ("name", "origin", "notes")]

    def _check(self) -> None:
        if not self.arrival_s.size:
            raise ValueError("workload: no requests; at least 1 is needed")
        if not np.all(np.isfinite(self.arrival_s)) or self.arrival_s.min() < 0:
            raise ValueError("workload: arrival_s must be finite and at least 0")
        late = np.flatnonzero(np.diff(self.arrival_s) < 0)
        if late.size:
            raise ValueError(f"workload: arrival_s falls after row {late[0]}; sort by arrival")
        for name in ("prompt_tokens", "output_tokens"):
            low = np.flatnonzero(getattr(self, name) < 1)
            if low.size:
                value = getattr(self, name)[low[0]]
                raise ValueError(f"workload: {name} of row {low[0]} is {value}; it must be >= 1")

    @property
    def requests(self) -> int:
        return int(self.arrival_s.size)

    def head(self, requests: int) -> Workload:
        """The first ``requests`` rows."""
        return self.take(np.arange(min(requests, self.requests)))

    def take(self, rows: Ints) -> Workload:
        """These rows, in this order (arrivals must not fall)."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self._columns()})


def children(seed: np.random.SeedSequence, count: int) -> list[np.random.SeedSequence]:
    """What ``seed.spawn(count)`` first gives, without counting the spawn: callers stay pure."""
    keys = (*seed.spawn_key,)
    return [
        np.random.SeedSequence(seed.entropy, spawn_key=(*keys, k), pool_size=seed.pool_size)
        for k in range(count)
    ]


def from_bundle(
    traces: AcceptanceTraces, arrival_s: Floats, rng: np.random.Generator, name: str
) -> Workload:
    """Requests that replay whole recorded responses, drawn evenly with replacement."""
    response = rng.integers(traces.responses, size=arrival_s.size)
    prompt, output = traces.prompt_tokens[response], traces.response_tokens[response]
    origin = "synthetic arrivals, prompts and answers of the bundle"
    return from_responses(traces, response, arrival_s, prompt, output, name, origin)


def from_responses(
    traces: AcceptanceTraces,
    response: Ints,
    arrival_s: Floats,
    prompt_tokens: npt.NDArray[np.integer],
    output_tokens: npt.NDArray[np.integer],
    name: str,
    origin: str,
) -> Workload:
    """Requests that replay these recorded responses from their start; no sessions, no prefixes."""
    n = arrival_s.size
    zeros = np.zeros(n, dtype=np.int64)
    return Workload(
        name=name,
        origin=origin,
        notes=(),
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens.astype(np.int64),
        output_tokens=output_tokens.astype(np.int64),
        response=response,
        start=zeros,
        domain=traces.domain[response].astype(np.int64),
        slo_class=zeros,
        session=zeros - 1,
        prefix_tokens=zeros,
        think_s=np.zeros(n),
        patience_s=np.full(n, np.inf),
    )


def poisson(
    traces: AcceptanceTraces, rate_rps: float, requests: int, seed: np.random.SeedSequence
) -> Workload:
    """Open-loop Poisson arrivals at ``rate_rps`` over the bundle's own responses.

    Arrivals and responses come from separate streams of ``seed``: another rate gives the same
    requests at arrival times that are scaled alike, and more requests begin with the same ones.
    """
    arrivals, bodies = (np.random.default_rng(s) for s in children(seed, 2))
    gaps_s = arrivals.exponential(size=requests) / rate_rps
    return from_bundle(traces, np.cumsum(gaps_s), bodies, f"poisson {rate_rps:g}/s")


def at_once(workload: Workload) -> Workload:
    """The same requests, all at time 0, without sessions or impatience: fuel for a closed loop."""
    n = workload.requests
    return replace(
        workload,
        name=f"{workload.name}, closed loop",
        notes=(*workload.notes, "own arrival times replaced by a closed loop"),
        arrival_s=np.zeros(n),
        session=np.full(n, -1),
        patience_s=np.full(n, np.inf),
    )
