"""Each request of a table tied to a recorded response, before any policy runs.

A request replays a response of its own domain, drawn evenly. If its output is no longer than the
response it begins at the beginning; a longer one begins at a random anchor and walks on through
further responses of the domain (block bootstrap; see ``sim.workload``). Of a prompt that a cache
holds whole, the last token is still computed. Two uniform numbers a
request, from their own children of the seed, decide: request i is bound alike whatever arrivals,
lengths and domains the others have.
"""

from __future__ import annotations

import numpy as np

from gpu_traces.schema import AcceptanceTraces
from sim.arrivals import generator
from sim.lengths import Tokens
from sim.request_table import RequestTable
from sim.workload import Ints, Workload

ANY = "any"
ALIASES = {
    "math_reasoning": "math",
    "conversation": "chat",
    "qa": "chat",
    "rag": "instruction",
    "summarization": "instruction",
    "translation": "instruction",
}
"""Near relatives, tried both ways when a bundle lacks a domain."""


def recorded_domain(wanted: str, recorded: tuple[str, ...]) -> str:
    """The bundle's domain that stands in for ``wanted``: itself, a near relative, or ``any``.

    ``any`` means that responses of all domains are drawn, each as often as it was recorded.
    """
    if wanted in recorded:
        return wanted
    family = ALIASES.get(wanted, wanted)
    near = [name for name in recorded if ALIASES.get(name, name) == family]
    return near[0] if near else ANY


def stand_ins(table: RequestTable, traces: AcceptanceTraces) -> dict[str, str]:
    """For each domain of the table, the recorded one that is replayed; to print with results."""
    recorded = _recorded(traces)
    return {name: recorded_domain(name, recorded) for name in table.domains or (ANY,)}


def bind(table: RequestTable, traces: AcceptanceTraces, seed: np.random.SeedSequence) -> Workload:
    """The table's requests with their recorded responses; a table without domains draws from all.

    Raises ValueError when no response of the bundle has an anchor.
    """
    which = generator(seed, 0).random(table.requests)
    where = generator(seed, 1).random(table.requests)
    response = np.empty(table.requests, np.int64)
    stands = stand_ins(table, traces)
    for code, stand_in in enumerate(stands.values()):
        rows = np.arange(table.requests) if table.domain is None else table.domain == code
        pool = _pool(traces, stand_in)
        response[rows] = pool[(which[rows] * pool.size).astype(np.int64)]
    anchors = np.diff(traces.first_anchor)[response]
    longer = table.output_tokens > traces.response_tokens[response]
    none = np.zeros(table.requests, np.int64)
    prefix = table.prefix_tokens
    return Workload(
        name=table.source,
        origin=str(table.origin),
        notes=(*table.notes, *_stood_in(stands)),
        arrival_s=table.arrival_s,
        prompt_tokens=_wide(table.prompt_tokens),
        output_tokens=_wide(table.output_tokens),
        response=response,
        start=np.where(longer, (where * anchors).astype(np.int64), 0),
        domain=traces.domain[response].astype(np.int64),
        slo_class=none if table.slo_class is None else table.slo_class.astype(np.int64),
        session=none - 1 if table.think_s is None else _session(table),
        prefix_tokens=none if prefix is None else np.minimum(prefix, table.prompt_tokens - 1),
        think_s=none.astype(np.float64) if table.think_s is None else table.think_s.astype(float),
        patience_s=np.full(table.requests, np.inf),
    )


def _stood_in(stands: dict[str, str]) -> list[str]:
    """What to tell about domains that the bundle lacks."""
    return [
        f"domain {name}: responses of {'all domains' if other == ANY else other}"
        for name, other in stands.items()
        if name != other
    ]


def _recorded(traces: AcceptanceTraces) -> tuple[str, ...]:
    """Domains with at least one response that has an anchor."""
    usable = np.unique(traces.domain[np.diff(traces.first_anchor) > 0])
    return tuple(traces.domains[int(code)] for code in usable)


def _pool(traces: AcceptanceTraces, domain: str) -> Ints:
    """Responses to draw from: those of the domain that have an anchor."""
    fit = np.diff(traces.first_anchor) > 0
    if domain != ANY:
        fit &= traces.domain == traces.domains.index(domain)
    pool = np.flatnonzero(fit)
    if not pool.size:
        raise ValueError(f"bundle {traces.name} has no response of two tokens or more to replay")
    return pool


def _wide(tokens: Tokens) -> Ints:
    return tokens.astype(np.int64)


def _session(table: RequestTable) -> Ints:
    return np.full(table.requests, -1) if table.session is None else table.session.astype(np.int64)
