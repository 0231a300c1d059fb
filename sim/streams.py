"""What a traffic scenario is made of: streams of requests, or closed-loop sessions.

Arrivals, prompt lengths, output lengths, domains, service classes and prefix reuse each draw from
their own child of the seed: changing one leaves the others as they were, and asking for more
requests only appends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gpu_traces.schema import Origin
from sim.arrivals import ArrivalProcess, Floats, child, generator
from sim.curves import Client, Diurnal
from sim.lengths import QuantileCurve, Tokens
from sim.request_table import Codes, RequestTable
from sim.scaling import Method, Scaled, merged
from sim.sessions import AgentSessions
from sim.workload import SLO_CLASSES

Mix = Mapping[str, float]
"""Shares by name, summing to 1."""
INTERACTIVE: Mix = {"interactive": 1.0}
DEFAULT_USERS = 32
ARRIVALS, PROMPTS, OUTPUTS, DOMAINS, CLASSES, FOLLOWS, SHARES = range(7)
"""Children of a scenario's seed."""


@dataclass(frozen=True)
class PrefixReuse:
    """What an unlimited prefix cache holds: a common first block, or part of an earlier chat.

    By prompt length: how often a request follows an earlier one and which share it repeats.
    """

    first_block_tokens: int
    from_prompt_tokens: tuple[int, ...]
    probability: tuple[float, ...]
    share: tuple[QuantileCurve, ...]

    def tokens(self, prompts: Tokens, follow_u: Floats, share_u: Floats) -> Tokens:
        """Reusable leading tokens of each prompt, from two uniform numbers a request."""
        size = np.searchsorted(self.from_prompt_tokens, prompts, side="right") - 1
        reused = np.minimum(prompts, self.first_block_tokens)
        follows = follow_u < np.take(self.probability, size)
        for i, curve in enumerate(self.share):
            rows = np.flatnonzero(follows & (size == i))
            reused[rows] = np.minimum(curve.at(share_u[rows]) * prompts[rows], prompts[rows])
        return reused


@dataclass(frozen=True)
class Stream:
    """One kind of traffic inside a scenario."""

    name: str
    arrivals: ArrivalProcess
    prompt: QuantileCurve
    output: QuantileCurve
    domains: Mix
    classes: Mix = field(default_factory=lambda: INTERACTIVE)
    reuse: PrefixReuse | None = None


@dataclass(frozen=True)
class Scenario:
    """Open-loop traffic: independent streams, each with its arrivals and lengths."""

    name: str
    summary: str
    fitted_to: str
    streams: tuple[Stream, ...]

    @property
    def rate_rps(self) -> float:
        """Mean rate as fitted, requests per second."""
        return sum(stream.arrivals.rate_rps for stream in self.streams)

    @property
    def longest_request_tokens(self) -> int:
        """Most tokens, prompt and output, that a request can have."""
        return int(max(s.prompt.values[-1] + s.output.values[-1] for s in self.streams))

    def generate(
        self,
        requests: int,
        seed: np.random.SeedSequence,
        rate_rps: float | None = None,
        method: Method = "time_scale",
        start_s: float = 0.0,
    ) -> RequestTable:
        """The first ``requests`` requests, at another mean rate if ``rate_rps`` is given.

        ``method`` says how the rate is changed (see ``sim.scaling``) and is named in the notes.
        ``start_s`` begins that far into the day or week of a diurnal scenario (before scaling).
        """
        factor = 1.0 if rate_rps is None else rate_rps / self.rate_rps
        parts = [_process(stream.arrivals, factor, method, start_s) for stream in self.streams]
        arrival_s, stream = merged(parts, requests, child(seed, ARRIVALS))
        prompt_u, output_u, follow_u, share_u = (
            generator(seed, source).random(requests)
            for source in (PROMPTS, OUTPUTS, FOLLOWS, SHARES)
        )
        prompts, outputs = np.empty(requests, np.int32), np.empty(requests, np.int32)
        prefixes = np.zeros(requests, np.int32)
        for i, kind in enumerate(self.streams):
            rows = np.flatnonzero(stream == i)
            prompts[rows] = kind.prompt.tokens(prompt_u[rows])
            outputs[rows] = kind.output.tokens(output_u[rows])
            if kind.reuse:
                tokens = kind.reuse.tokens(prompts[rows], follow_u[rows], share_u[rows])
                prefixes[rows] = tokens
        domains = _names(kind.domains for kind in self.streams)
        return RequestTable(
            source=self.name,
            origin=Origin("synthetic", f"{self.name} generator fitted to {self.fitted_to}"),
            arrival_s=arrival_s,
            prompt_tokens=prompts,
            output_tokens=outputs,
            prefix_tokens=prefixes if any(kind.reuse for kind in self.streams) else None,
            client=stream,
            domain=_mixed(
                [k.domains for k in self.streams], stream, domains, generator(seed, DOMAINS)
            ),
            slo_class=_mixed(
                [k.classes for k in self.streams], stream, SLO_CLASSES, generator(seed, CLASSES)
            ),
            clients=tuple(kind.name for kind in self.streams),
            domains=domains,
            notes=() if rate_rps is None else (f"{method} {factor:.4g}",),
        )


@dataclass(frozen=True)
class ClosedScenario:
    """Closed-loop sessions: load is a number of users, not a rate."""

    name: str
    summary: str
    fitted_to: str
    sessions: AgentSessions
    output: QuantileCurve
    domains: Mix
    classes: Mix

    def generate(
        self, requests: int, seed: np.random.SeedSequence, users: int = DEFAULT_USERS
    ) -> RequestTable:
        """The first ``requests`` requests of ``users`` concurrent users; one domain a conversation.

        Raises ValueError for fewer than one user.
        """
        drawn = self.sessions.draw(requests, users, child(seed, ARRIVALS))
        domains = _names([self.domains])
        conversations = int(drawn.conversation.max()) + 1
        one_stream = np.zeros(conversations, np.int16)
        of_conversation = _mixed([self.domains], one_stream, domains, generator(seed, DOMAINS))
        return RequestTable(
            source=self.name,
            origin=Origin("synthetic", f"{self.name} generator fitted to {self.fitted_to}"),
            arrival_s=drawn.arrival_s,
            prompt_tokens=drawn.prompt_tokens,
            output_tokens=self.output.tokens(generator(seed, OUTPUTS).random(requests)),
            prefix_tokens=drawn.prefix_tokens,
            session=drawn.user.astype(np.int32),
            think_s=drawn.think_s.astype(np.float32),
            domain=of_conversation[drawn.conversation],
            slo_class=_mixed(
                [self.classes], np.zeros(requests, np.int16), SLO_CLASSES, generator(seed, CLASSES)
            ),
            domains=domains,
            notes=(f"closed loop of {users} users",),
        )


def _process(
    process: ArrivalProcess, factor: float, method: Method, start_s: float
) -> ArrivalProcess:
    if start_s and isinstance(process, Diurnal | Client):
        process = replace(process, start_s=start_s)
    return process if factor == 1.0 else Scaled(process, factor, method)


def _names(mixes: Iterable[Mix]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for mix in mixes for name in mix))


def _mixed(
    mixes: list[Mix], stream: Codes, names: tuple[str, ...], rng: np.random.Generator
) -> Codes:
    """A code into ``names`` for each row, drawn from its stream's mix."""
    uniform = rng.random(stream.size)
    codes = np.empty(stream.size, np.int16)
    for i, mix in enumerate(mixes):
        rows = np.flatnonzero(stream == i)
        bounds = np.cumsum(list(mix.values()))[:-1]
        of_mix = np.array([names.index(name) for name in mix], np.int16)
        codes[rows] = of_mix[np.searchsorted(bounds, uniform[rows], side="right")]
    return codes
