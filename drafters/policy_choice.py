"""From the words of ``--policy`` and ``--bundle`` to what the engine needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drafters import profile
from drafters.base import Drafter
from drafters.errors import UserError
from drafters.grids import grid, up_to
from drafters.prompts import Prompt
from drafters.target import Target
from gpu_traces.bundle import Bundle, list_bundles, read_bundle
from gpu_traces.fit import fit_latency
from gpu_traces.manifest import Calibration
from policies import registry
from policies.base import Policy
from policies.cost import CostTable, no_cost
from policies.export import PolicyFile, policy_file

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

    def names_of(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        """``domains``, or what stands in for them."""
        return self.domains or tuple(sorted({prompt.domain for prompt in prompts}))


def gamma_of(drafter: Drafter | None) -> int:
    """Draft positions of a run."""
    return drafter.gamma if drafter else DEFAULT_GAMMA


def named(text: str, gamma: int) -> Policy:
    """The policy that ``text`` names: a file of ``sim.run --export``, or name and parameters."""
    stored = _stored(text)
    try:
        if stored is not None:
            return stored.make()
        name, parameters = registry.parse(text)
        return registry.create(name, gamma, **parameters)
    except ValueError as error:
        raise UserError(str(error)) from None


def choose(
    text: str,
    target: Target,
    drafter: Drafter | None,
    bundle_name: str,
    graphs: bool = False,
    requests: int = 1,
) -> Choice:
    """The policy ``named`` by ``text``, and what it believes.

    Cost table and calibration come from the policy file; with a bundle (given, or the shipped one
    that the policy was chosen on) calibration and domain codes are the bundle's, and so is the cost
    table of a policy given by name. Where none is given, and the policy reads it, the engine
    profiles itself, with ``graphs`` or without, for up to so many ``requests`` at once. Raises
    UserError with one line for anything unknown or unfit.
    """
    gamma = gamma_of(drafter)
    stored = _stored(text)
    bundle_name = bundle_name or _origin(stored)
    bundle = read_bundle(bundle_name) if bundle_name else None
    if bundle is not None and drafter is not None and bundle.manifest.gamma != gamma:
        raise UserError(
            f"bundle {bundle.name} has gamma {bundle.manifest.gamma}, the drafter {gamma}"
        )
    policy = named(text, gamma)
    try:
        if stored is not None:
            choice = _from_file(policy, stored, text, drafter)
        elif bundle is not None and bundle.manifest.has_steps:
            choice = Choice(policy, *_bundled_cost(policy, bundle))
        elif policy.needs_cost:
            choice = Choice(policy, *measured_cost(policy, target, drafter, graphs, requests))
        else:
            choice = Choice(policy, no_cost(gamma), f"none, which {policy.name} does not read")
    except ValueError as error:
        raise UserError(str(error)) from None
    if bundle is None:
        return choice
    manifest = bundle.manifest
    return replace(choice, calibration=manifest.calibration, domains=manifest.domains)


def _stored(text: str) -> PolicyFile | None:
    try:
        return policy_file(text)
    except ValueError as error:
        raise UserError(str(error)) from None


def _origin(stored: PolicyFile | None) -> str:
    """Name of the shipped bundle that a policy file comes from; empty if it is not at hand."""
    name = stored.provenance.get("bundle", "") if stored else ""
    return name if name in list_bundles() else ""


def _from_file(policy: Policy, stored: PolicyFile, path: str, drafter: Drafter | None) -> Choice:
    if drafter is not None and stored.gamma != drafter.gamma:
        raise UserError(f"{path} is for gamma {stored.gamma}, the drafter has {drafter.gamma}")
    calibration = tuple(
        Calibration(e.temperature, "sts+bias", e.scales, e.bias) for e in stored.calibration
    )
    return Choice(policy, stored.cost, f"policy file {path}", calibration)


def _bundled_cost(policy: Policy, bundle: Bundle) -> tuple[CostTable, str]:
    manifest = bundle.manifest
    model, _ = fit_latency(bundle.steps, origin=manifest.origin, gamma=manifest.gamma)
    return model.cost_table(policy.cost_rule), str(manifest.origin)


def measured_cost(
    policy: Policy,
    target: Target,
    drafter: Drafter | None,
    graphs: bool = False,
    requests: int = 1,
) -> tuple[CostTable, str]:
    """What the engine finds when it profiles itself at the start, as vLLM does."""
    steps = profile.measure(target, drafter, up_to(grid("quick"), requests), graphs)
    model, _ = fit_latency(steps, name="start-up", gamma=gamma_of(drafter))
    return model.cost_table(policy.cost_rule), "measured at start-up on this machine"
