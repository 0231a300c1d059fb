"""Is a policy lossless? Exact output law of speculative sampling under it, over a tiny vocabulary.

A toy world gives every prefix a target and a drafter distribution over two tokens. ``output_law``
enumerates everything that can happen - drafted tokens, acceptances, residual and bonus draws, over
several steps with the policy's memory and lag - and adds up the probability of each output. Its
total-variation distance from the target's own law is the bias; 0 up to rounding is lossless.

Golden case, DSpark (arXiv 2607.05147) appendix A: p_t = (0.7, 0.3), p_d = (0.5, 0.5), one request,
two drafts, SPS = (1, 0.5, 0.45) for 0, 1, 2 of them. c_1 = 0.8, and c_2 is 1 after token 0 but 0
after token 1. Searching the whole curve verifies both drafts after token 0 (rate 1.17 against 1)
and none after token 1 (0.81), where the target then draws freely: token 0 comes out with
0.5 + 0.5 * 0.7 = 0.85. The early stop sees 0.9 < 1 at the first draft and never verifies: 0.7.

``python -m policies.audit`` writes the table of all policies to docs/lossless.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.base import Floats, Ints, Policy, StepOutcome, VerifyState
from policies.harness import ConfidenceLag
from policies.registry import create, names, parse
from policies.toys import VOCABULARY, Tokens, Toy, toys

TOLERANCE = 1e-12


def verified(toy: Toy, row: int, prefix: Tokens, draft: Tokens) -> Iterator[tuple[float, Tokens]]:
    """Every way that verifying ``draft`` can end: its probability and the tokens that come out."""
    alive, out = 1.0, prefix
    for token in draft:
        p_t, p_d = toy.target(row, out), toy.drafter(row, out)
        accept = min(1.0, p_t[token] / p_d[token])
        if accept < 1.0:
            residual = np.maximum(p_t - p_d, 0.0)
            for other in np.flatnonzero(residual):
                share = float(residual[other] / residual.sum())
                yield alive * (1.0 - accept) * share, (*out, int(other))
        alive *= accept
        out = (*out, token)
    for token, share in enumerate(toy.target(row, out)):
        yield alive * float(share), (*out, token)


def chain_law(toy: Toy, row: int, prefix: Tokens) -> Floats:
    """The target's law of the first ``horizon`` tokens, given that they start with ``prefix``."""
    law = np.zeros((VOCABULARY,) * toy.horizon)
    for tail in itertools.product(range(VOCABULARY), repeat=max(0, toy.horizon - len(prefix))):
        tokens, probability = prefix, 1.0
        for token in tail:
            probability *= float(toy.target(row, tokens)[token])
            tokens = (*tokens, token)
        law[tokens[: toy.horizon]] += probability
    return law.ravel()


def joint(laws: list[Floats]) -> Floats:
    """Joint law of independent rows, flat."""
    product = np.ones(1)
    for law in laws:
        product = np.multiply.outer(product, law).ravel()
    return product


@dataclass
class Audit:
    """One enumeration: what came out, and whether anything was ever verified."""

    law: Floats
    verified_tokens: int = 0

    def walk(
        self, toy: Toy, policy: Policy, lag: ConfidenceLag, past: list[Tokens], drafted: Ints,
        probability: float, step: int,
    ) -> None:  # fmt: skip
        """Add every continuation of ``past`` (the output of each row so far) to the law."""
        if step == toy.steps:
            rows = enumerate(past)
            self.law += probability * joint([chain_law(toy, row, out) for row, out in rows])
            return
        choices = [itertools.product(range(VOCABULARY), repeat=int(k)) for k in drafted]
        for drafts in itertools.product(*choices):
            self._step(toy, policy, lag, past, drafts, probability, step)

    def _step(
        self, toy: Toy, policy: Policy, lag: ConfidenceLag, past: list[Tokens],
        drafts: tuple[Tokens, ...], probability: float, step: int,
    ) -> None:  # fmt: skip
        policy, lag = copy.deepcopy(policy), copy.deepcopy(lag)
        current, chance = drawn_blocks(toy, policy, past, drafts)
        probability *= chance
        if probability == 0.0:
            return
        state = toy_state(toy, lag, current, drafts, step)
        plan = policy.plan(state)
        self.verified_tokens += int(plan.lengths.sum())
        following = np.full(toy.rows, toy.gamma) if plan.draft is None else plan.draft
        cut = [draft[: plan.lengths[row]] for row, draft in enumerate(drafts)]
        ways = [list(verified(toy, row, past[row], draft)) for row, draft in enumerate(cut)]
        for ends in itertools.product(*ways):
            after, accepted = copy.deepcopy(policy), [len(out) - 1 for _, out in ends]
            accepted = [n - len(past[row]) for row, n in enumerate(accepted)]
            after.observe(
                StepOutcome(
                    step, state.slots, plan.lengths, np.array(accepted), current,
                    np.zeros(toy.rows, dtype=bool), 1.0,
                )
            )  # fmt: skip
            share = probability * float(np.prod([part for part, _ in ends]))
            self.walk(toy, after, lag, [out for _, out in ends], following, share, step + 1)


def drawn_blocks(
    toy: Toy, policy: Policy, past: list[Tokens], drafts: tuple[Tokens, ...]
) -> tuple[Floats, float]:
    """What the policy sees of ``drafts`` [rows, gamma], and how likely the drafter draws them."""
    current, probability = np.zeros((toy.rows, toy.gamma)), 1.0
    for row, draft in enumerate(drafts):
        for j, token in enumerate(draft):
            prefix = past[row] + draft[:j]
            probability *= (drawn := float(toy.drafter(row, prefix)[token]))
            head = policy.signal == "confidence"
            current[row, j] = toy.confidence(row, prefix) if head else drawn
    return current, probability


def toy_state(
    toy: Toy, lag: ConfidenceLag, current: Floats, drafts: tuple[Tokens, ...], step: int
) -> VerifyState:
    """The engine state of one enumerated step."""
    rows, nothing = np.arange(toy.rows), np.zeros(toy.rows, dtype=np.int64)
    return VerifyState(
        step=step,
        time_s=float(step),
        current=current,
        lagged=lag.push(rows, current),
        drafted=np.array([len(draft) for draft in drafts], dtype=np.int64),
        slots=rows,
        fresh=np.full(toy.rows, step == 0),
        context_tokens=nothing,
        generated_tokens=nothing + 1,
        domain=nothing,
        slo_class=nothing,
        slack_s=np.full(toy.rows, np.inf),
        other_tokens=toy.rows,
        sampling_requests=toy.rows,
        queue_length=0,
        cost=toy.cost,
    )


def output_law(policy: Policy, toy: Toy) -> Audit:
    """Joint law of the first ``horizon`` tokens of every row, flat, under ``policy``."""
    audit = Audit(np.zeros(VOCABULARY ** (toy.horizon * toy.rows)))
    first = toy.gamma if policy.first_draft is None else policy.first_draft
    lag = ConfidenceLag(toy.rows, toy.gamma, policy.lag)
    start: list[Tokens] = [()] * toy.rows
    audit.walk(toy, policy, lag, start, np.full(toy.rows, first), 1.0, 0)
    return audit


def target_law(toy: Toy) -> Floats:
    """The target's own joint law, flat."""
    return joint([chain_law(toy, row, ()) for row in range(toy.rows)])


def bias(policy: Policy, toy: Toy) -> tuple[float, int]:
    """Total variation between output and target, and draft tokens verified over all branches."""
    audit = output_law(policy, toy)
    return float(np.abs(audit.law - target_law(toy)).sum()) / 2, audit.verified_tokens


FITTED = {
    "fixed-k": {"k": 2},
    "oracle-static": {"k": 2},
    "tetris": {"k": 1, "extra": 1, "min_batch": 1},
}
"""Parameters where a default does not fit gamma = 2."""
VARIANTS = ["hardware-aware:lag=0", "goodput:plain_path=false"]
"""Rows beside the defaults: a scheduler without its lag, and ours when it always trims."""


def audit_row(spec: str) -> str:
    """One line of the table; ValueError when a policy's claim does not match what was found."""
    name, parameters = parse(spec)
    if name == "oracle":
        return f"| `{name}` | knows the labels | - | - | no, by construction |"
    parameters = FITTED.get(name, {}) | parameters
    found = [bias(create(name, toy.gamma, **parameters), toy) for toy in toys()]
    worst, ran = max(tv for tv, _ in found), sum(count for _, count in found)
    claims = create(name, 2, **parameters).anticipating
    if (worst > TOLERANCE) != claims:
        raise ValueError(f"policy {spec!r} claims anticipating={claims}; its bias is {worst:.3g}")
    verdict = "no" if worst > TOLERANCE else "yes" if ran else "yes (it verifies nothing)"
    claim = "anticipating" if claims else "non-anticipating"
    return f"| `{spec}` | {claim} | {found[0][0]:.4f} | {worst:.4f} | {verdict} |"


HEADER = """# Which policies are lossless?

Generated by `python -m policies.audit`; the method is that module's docstring.

Speculative sampling gives the target's own distribution only if a draft token's verification never
depends on its own value or a later one. Each policy below decided for every possible draft of 13
toy worlds of two tokens (one or two requests, gamma = 2, one or two steps), every outcome was
enumerated, and the law of the output was compared with the target's. The numbers are
total-variation distances, exact up to rounding.
At temperature 0 every policy is lossless, since a draft is then right or wrong whoever looks.

| policy | says of itself | bias in appendix A | largest bias | lossless at T > 0 |
|---|---|---|---|---|
"""

FOOTER = """
Appendix A is the DSpark paper's counterexample: the target's law is (0.7, 0.3), and a scheduler
that searches the whole curve on current confidences turns it into (0.85, 0.15), a bias of 0.15.
`tetris` is audited with the probability of the drawn token as its score, as it is published. Lagged
schedulers are lossless at a lag of 1 or more; at lag 0 they call themselves anticipating, and are.
The same worlds drawn at random, through the live acceptance code:
[lossless-live.md](lossless-live.md).
"""


def write_table(path: Path) -> None:
    """Audit every registered policy and write the page."""
    rows = "\n".join(audit_row(spec) for spec in sorted(names() + VARIANTS))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{HEADER}{rows}\n{FOOTER}")
    temporary.rename(path)


def main(argv: list[str] | None = None) -> int:
    """Command line: write the table."""
    parser = argparse.ArgumentParser(prog="python -m policies.audit", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/lossless.md"), help="page to write")
    arguments = parser.parse_args(argv)
    write_table(arguments.out)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
