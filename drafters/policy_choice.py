"""From the words of ``--policy`` and ``--bundle`` to what the engine needs of them."""

from __future__ import annotations

from dataclasses import dataclass

from drafters import profile
from drafters.base import Drafter
from drafters.errors import UserError
from drafters.target import Target
from gpu_traces.bundle import Bundle, read_bundle
from gpu_traces.fit import fit_latency
from gpu_traces.manifest import Calibration
from policies import registry
from policies.base import Policy
from policies.cost import CostTable

DEFAULT_GAMMA = 7  # of a run without a drafter, where no policy drafts


@dataclass(frozen=True)
class Choice:
    """A policy with the beliefs it decides by."""

    policy: Policy
    cost: CostTable
    cost_origin: str
    calibration: tuple[Calibration, ...] = ()
    domains: tuple[str, ...] = ()
    """Names behind the domain codes; empty: the prompts' own, sorted."""


def choose(text: str, target: Target, drafter: Drafter | None, bundle_name: str) -> Choice:
    """The policy that ``text`` names, with calibration and cost table of a bundle if one is given.

    Raises UserError with one line for anything unknown or unfit.
    """
    gamma = drafter.gamma if drafter else DEFAULT_GAMMA
    try:
        name, parameters = registry.parse(text)
        policy = registry.create(name, gamma, **parameters)
    except ValueError as error:
        raise UserError(str(error)) from None
    if bundle_name:
        return _from_bundle(policy, read_bundle(bundle_name), gamma)
    return Choice(policy, *measured_cost(policy, target, drafter))


def _from_bundle(policy: Policy, bundle: Bundle, gamma: int) -> Choice:
    manifest = bundle.manifest
    if manifest.gamma != gamma:
        raise UserError(f"bundle {bundle.name} has gamma {manifest.gamma}, the drafter {gamma}")
    model, _ = fit_latency(bundle.steps, name=bundle.name, origin=manifest.origin, gamma=gamma)
    cost = model.cost_table(policy.cost_rule)
    return Choice(policy, cost, str(manifest.origin), manifest.calibration, manifest.domains)


def measured_cost(policy: Policy, target: Target, drafter: Drafter | None) -> tuple[CostTable, str]:
    """What the engine finds when it profiles itself at the start, as vLLM does."""
    steps = profile.measure(target, drafter, profile.grid("quick"))
    model, _ = fit_latency(
        steps, name="start-up", gamma=drafter.gamma if drafter else DEFAULT_GAMMA
    )
    return model.cost_table(policy.cost_rule), "measured at start-up on this machine"
