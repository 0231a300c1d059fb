"""The named traffic scenarios: ``generate("azure-conv", 100_000, seed)`` gives a request table.

All numbers are in ``data/scenarios.json``, written by ``sim.refit`` from the public traces
(``docs/traffic.md`` shows how close generated traffic comes). Assumed, since no public trace states
them: domains and service classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sim.arrivals import ArrivalProcess, Modulated, OnOff, Renewal
from sim.curves import Client, Diurnal
from sim.lengths import QuantileCurve
from sim.request_table import RequestTable
from sim.scaling import Method
from sim.sessions import AgentSessions, ConversationKind, Resets
from sim.streams import (
    DEFAULT_USERS,
    INTERACTIVE,
    ClosedScenario,
    Mix,
    PrefixReuse,
    Scenario,
    Stream,
)

HOUR_S = 3600.0
ON_OFF = ("on_s", "on_cv", "off_s", "off_cv")
CHAT: Mix = {"chat": 0.6, "instruction": 0.3, "math": 0.05, "code": 0.05}
CODE: Mix = {"code": 1.0}
AGENT: Mix = {"code": 0.8, "instruction": 0.2}
MAIN_DOMAINS = ("math", "code", "instruction", "chat")
"""What the clients of ``reasoning`` mostly ask about, in turn."""
SOME_BATCH: Mix = {"interactive": 0.8, "batch": 0.2}
SPLITWISE = "the Azure LLM inference trace 2023 (CC-BY-4.0; Splitwise, ISCA 2024)"


def azure_conv() -> Scenario:
    """Chat, near Poisson inside a minute, drifting over the hour; answers in two humps."""
    arrivals = _modulated("azure-conv")
    return _single("azure-conv", azure_conv.__doc__, SPLITWISE, arrivals, CHAT, "azure-conv")


def azure_code() -> Scenario:
    """Code completion in bursts with long silences; half the answers have 13 tokens or fewer."""
    lasting = {key: _fits()["azure-code"]["arrivals"][key] for key in ON_OFF}
    arrivals = OnOff(_modulated("azure-code"), **lasting)
    return _single("azure-code", azure_code.__doc__, SPLITWISE, arrivals, CODE, "azure-code")


def mooncake_conv() -> Scenario:
    """Long-context chat, near Poisson, a third of the input reusable from a prefix cache."""
    arrivals = _modulated("mooncake-conv")
    source = "the Mooncake conversation trace (Apache-2.0; FAST 2025)"
    return _single("mooncake-conv", mooncake_conv.__doc__, source, arrivals, CHAT, "mooncake-conv")


def azure_week() -> Scenario:
    """A week from Monday 00:00 UTC: chat in three humps a day, code in office hours of weekdays."""
    streams = tuple(
        Stream(
            name=name,
            arrivals=Diurnal(np.array(fit["hourly_rps"]), HOUR_S),
            prompt=_curve(fit["prompt"]),
            output=_curve(fit["output"]),
            domains=domains,
            classes=SOME_BATCH if name == "conv" else INTERACTIVE,
        )
        for (name, fit), domains in zip(_fits()["azure-week"].items(), (CODE, CHAT), strict=True)
    )
    source = "curves digitised from the Azure trace 2024 (CC-BY-4.0; DynamoLLM, HPCA 2025)"
    return Scenario("azure-week", _first_line(azure_week.__doc__), source, streams)


def reasoning() -> Scenario:
    """Reasoning with long answers over a day: ten large clients of their own habits, and others."""
    streams = tuple(
        Stream(
            name=name,
            arrivals=Client(np.array(fit["hourly_rps"]), HOUR_S, fit["cv"]),
            prompt=_curve(fit["prompt"]),
            output=_curve(fit["output"]),
            domains=_mostly(MAIN_DOMAINS[i % len(MAIN_DOMAINS)]),
            classes=SOME_BATCH,
        )
        for i, (name, fit) in enumerate(_fits()["reasoning"].items())
    )
    source = "ServeGen's deepseek-r1 pool (Apache-2.0; NSDI 2026)"
    return Scenario("reasoning", _first_line(reasoning.__doc__), source, streams)


def agentic() -> ClosedScenario:
    """Coding agents in a closed loop: contexts of 100 k tokens, 97 % of them seen before."""
    fit = _fits()["agentic"]
    levels, reset, resumed = fit["levels"], fit["reset"], fit["resumed_share"]
    kinds = tuple(
        ConversationKind(
            share, _curve(fit[kind]["first_prompt"], levels), _curve(fit[kind]["turns"], levels)
        )
        for kind, share in (("fresh", 1 - resumed), ("resumed", resumed))
    )
    resets = Resets(
        from_context_tokens=tuple(reset["from_context_tokens"]),
        probability=tuple(tuple(reset["probability"][kind]) for kind in ("fresh", "resumed")),
        size_ratio=tuple(_curve(ratios, levels) for ratios in reset["size_ratio"]),
        kept_tokens=_curve(reset["kept_tokens"], levels),
    )
    return ClosedScenario(
        name="agentic",
        summary=_first_line(agentic.__doc__),
        fitted_to="710 coding-agent sessions of kv-cache-tester (Apache-2.0)",
        sessions=AgentSessions(
            kinds, _curve(fit["new_tokens"]), resets, _curve(fit["think_s"], fit["think_levels"])
        ),
        output=_curve(fit["output"]),
        domains=AGENT,
        classes={"agent": 1.0},
    )


def poisson() -> Scenario:
    """Control: the lengths of azure-conv with Poisson arrivals."""
    arrivals = Renewal(_modulated("azure-conv").rate_rps)
    return _single("poisson", poisson.__doc__, SPLITWISE, arrivals, CHAT, "azure-conv")


def gamma() -> Scenario:
    """Control: the lengths of azure-conv with Gamma gaps of CV 3."""
    arrivals = Renewal(_modulated("azure-conv").rate_rps, cv=3.0)
    return _single("gamma", gamma.__doc__, SPLITWISE, arrivals, CHAT, "azure-conv")


SCENARIOS: dict[str, Callable[[], Scenario | ClosedScenario]] = {
    "azure-conv": azure_conv,
    "azure-code": azure_code,
    "mooncake-conv": mooncake_conv,
    "azure-week": azure_week,
    "reasoning": reasoning,
    "agentic": agentic,
    "poisson": poisson,
    "gamma": gamma,
}


def scenario(name: str) -> Scenario | ClosedScenario:
    """The scenario of that name; ValueError lists the known ones."""
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; known: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]()


def generate(
    name: str,
    requests: int,
    seed: np.random.SeedSequence,
    rate_rps: float | None = None,
    method: Method = "time_scale",
    users: int | None = None,
    start_s: float = 0.0,
) -> RequestTable:
    """``requests`` requests of a named scenario, at a mean rate or, closed loop, for some users.

    ``start_s`` begins that far into the day or week of a diurnal scenario. Raises ValueError for
    an unknown name, and for a rate or start given to a closed loop or users to an open one.
    """
    chosen = scenario(name)
    if requests < 1:
        raise ValueError(f"requests={requests}; at least 1 is needed")
    if isinstance(chosen, ClosedScenario):
        if rate_rps is not None or start_s:
            raise ValueError(
                f"{name} is a closed loop: give a number of users, not a rate or start"
            )
        return chosen.generate(requests, seed, DEFAULT_USERS if users is None else users)
    if users is not None:
        raise ValueError(f"{name} is an open loop: give a rate, not a number of users")
    return chosen.generate(requests, seed, rate_rps, method, start_s)


def _single(
    name: str, summary: str | None, source: str, arrivals: ArrivalProcess, domains: Mix, fit: str
) -> Scenario:
    numbers = _fits()[fit]
    reuse = _reuse(numbers["reuse"]) if "reuse" in numbers else None
    prompt, output = _curve(numbers["prompt"]), _curve(numbers["output"])
    stream = Stream(name, arrivals, prompt, output, domains, reuse=reuse)
    return Scenario(name, _first_line(summary), source, (stream,))


def _modulated(fit: str) -> Modulated:
    found = _fits()[fit]["arrivals"]
    components = tuple((sigma, tau_s) for sigma, tau_s in found["components"])
    return Modulated(found["rate_rps"], components, found["gap_cv"])


def _mostly(domain: str) -> Mix:
    return {name: 0.7 if name == domain else 0.1 for name in MAIN_DOMAINS}


def _reuse(fit: dict[str, Any]) -> PrefixReuse:
    return PrefixReuse(
        first_block_tokens=fit["first_block_tokens"],
        from_prompt_tokens=tuple(fit["from_prompt_tokens"]),
        probability=tuple(fit["probability"]),
        share=tuple(_curve(share, fit["levels"]) for share in fit["share"]),
    )


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


@cache
def _fits() -> dict[str, Any]:
    path = Path(__file__).parent / "data" / "scenarios.json"
    fits: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fits


def _curve(values: list[float], levels: list[float] | None = None) -> QuantileCurve:
    return QuantileCurve(tuple(values), tuple(levels)) if levels else QuantileCurve(tuple(values))
