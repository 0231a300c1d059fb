"""Time of one decision per policy and batch size: ``python -m tests.bench_policies``.

Best of many repetitions, microseconds, of ``plan`` alone on continuous random confidences at
gamma = 7, with warm kernels. On a shared machine read the ratios, not the digits.
"""

from __future__ import annotations

import timeit

import numpy as np

from policies.base import StepOutcome, VerifyState
from policies.cost import CostTable
from policies.registry import create, names
from policies.select import warm_up

GAMMA = 7
BATCHES = (1, 8, 64, 256)
REPEATS, CALLS = 40, 20


def batch(rows: int) -> VerifyState:
    """A decode-only step of ``rows`` requests with read-only float32 confidences, as replayed."""
    rng = np.random.default_rng(rows)
    current = rng.uniform(0.3, 1.0, (rows, GAMMA)).astype(np.float32)
    current.setflags(write=False)
    zeros, requests = np.zeros(rows, dtype=np.int64), np.arange(513.0)
    draft_s = np.outer(np.arange(GAMMA + 1) > 0, 1e-3 + 1e-5 * requests)
    cost = CostTable(draft_s, 5e-3 + 1e-5 * np.arange(8193.0), adaptive_s=1e-4)
    return VerifyState(
        step=1,
        time_s=0.0,
        current=current,
        lagged=current,
        drafted=zeros + GAMMA,
        slots=np.arange(rows),
        fresh=zeros > 0,
        context_tokens=zeros + 1000,
        generated_tokens=zeros + 1,
        domain=zeros,
        slo_class=zeros,
        slack_s=zeros + np.inf,
        other_tokens=rows,
        sampling_requests=rows,
        queue_length=0,
        cost=cost,
        true_accepted=zeros + 3,
    )


def decision_us(name: str, rows: int) -> float:
    """Best time of one decision, microseconds; the step number moves on as in a run."""
    policy, state = create(name, GAMMA), batch(rows)
    states = [state._replace(step=step) for step in range(CALLS)]
    plan = policy.plan(state)
    accepted = np.minimum(plan.lengths, 3)
    finished = np.zeros(rows, dtype=bool)
    outcome = StepOutcome(
        1, state.slots, plan.lengths, accepted, np.asarray(state.current), finished, 0.01
    )
    policy.observe(outcome)

    def decide() -> None:
        for step in states:
            policy.plan(step)

    decide()
    return min(timeit.repeat(decide, number=1, repeat=REPEATS)) / CALLS * 1e6


def main() -> None:
    """Print the table."""
    warm_up()
    print(f"{'policy':18}" + "".join(f"  R={rows:<6}" for rows in BATCHES) + "  (us, best)")
    for name in names():
        times = "".join(f"  {decision_us(name, rows):8.1f}" for rows in BATCHES)
        print(f"{name:18}{times}")


if __name__ == "__main__":
    main()
