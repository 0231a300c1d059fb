"""What a run leaves behind: tables of requests, steps and stalls, and the counts of outcomes.

Every metric is a function of these; nothing is accumulated on the side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim import state
from sim.replica import Replica
from sim.workload import Workload
from sim.world import World

Ints = npt.NDArray[np.int64]

REQUEST_COLUMNS = {
    "prompt_tokens": state.PROMPT,
    "output_tokens": state.OUTPUT,
    "generated_tokens": state.GENERATED,
    "rounds": state.ROUNDS,
    "verified_tokens": state.VERIFIED,
    "accepted_tokens": state.ACCEPTED,
    "domain": state.DOMAIN,
    "slo_class": state.SLO_CLASS,
    "replica": state.REPLICA,
    "preemptions": state.PREEMPTIONS,
    "retries": state.RETRIES,
    "status": state.STATUS,
}
REQUEST_TIMES = {
    "arrival_s": state.ARRIVAL,
    "admitted_s": state.ADMITTED,
    "first_token_s": state.FIRST_TOKEN,
    "finish_s": state.FINISH,
    "max_gap_s": state.MAX_GAP,
}
STEP_COLUMNS = {
    "replica": state.S_REPLICA,
    "decode_requests": state.S_DECODE,
    "prefill_tokens": state.S_PREFILL_TOKENS,
    "drafted_tokens": state.S_DRAFTED,
    "budget_tokens": state.S_BUDGET,
    "accepted_tokens": state.S_ACCEPTED,
    "output_tokens": state.S_OUTPUT,
    "queue_length": state.S_QUEUE,
    "context_tokens": state.S_CONTEXT,
    "kv_blocks": state.S_KV_BLOCKS,
    "ended_requests": state.S_ENDED,
}


@dataclass(frozen=True)
class Records:
    """Tables of one run of one policy."""

    requests: pd.DataFrame
    """One row per request of the workload, in its order; times in seconds; ``status`` as coded in
    ``sim.state.STATUS_NAMES``; NaN where something never happened."""
    steps: pd.DataFrame
    """One row per engine step, by replica, then time."""
    stalls: pd.DataFrame
    """Gaps between output chunks that are not simply the step they ended in (first chunk after a
    separate prefill, preemption): request, step, replica, gap_s."""
    outcomes: Ints
    """[domains, gamma + 1, gamma + 1] rounds by domain, verified length and accepted length."""
    first_token_elsewhere: bool = False
    """True when another pool prefills: a one-token answer then belongs to no step."""
    beyond_context: int = 0
    """Most cached tokens read in a step, where that is more than the latency profile covers."""
    unstable: str = ""
    """What to print about a queue that grew without end; empty for a stable run."""

    @property
    def rounds(self) -> int:
        """Verification calls, one per request and step."""
        return int(self.outcomes.sum())

    def tables(self) -> dict[str, pd.DataFrame]:
        """Everything as tables by name: requests, steps, stalls, outcomes."""
        domain, verified, accepted = np.nonzero(self.outcomes)
        outcomes = pd.DataFrame({"domain": domain, "verified": verified, "accepted": accepted})
        outcomes["rounds"] = self.outcomes[domain, verified, accepted]
        return {
            "requests": self.requests,
            "steps": self.steps,
            "stalls": self.stalls,
            "outcomes": outcomes,
        }


def collect(world: World, workload: Workload, replicas: list[Replica], unstable: str) -> Records:
    """Tables from the final state of a run; requests still on a replica are read from its rows."""
    for replica in replicas:
        running = int(replica.counts[state.ROWS])
        where = replica.rows_i[state.REQUEST, :running]
        world.lines_i[where] = replica.rows_i[:, :running].T
        world.lines_f[where] = replica.rows_f[:, :running].T
    steps = _steps(replicas)
    return Records(
        requests=_requests(world, workload),
        steps=steps,
        stalls=_stalls(replicas),
        outcomes=np.sum([replica.outcomes for replica in replicas], axis=0),
        first_token_elsewhere=world.config.prefill != "chunked",
        beyond_context=_beyond(world, steps),
        unstable=unstable,
    )


def _beyond(world: World, steps: pd.DataFrame) -> int:
    most = int(steps["context_tokens"].max()) if len(steps) else 0
    return most if most > world.latency.max_context_tokens else 0


def _requests(world: World, workload: Workload) -> pd.DataFrame:
    columns: dict[str, npt.NDArray[np.generic]] = {
        name: world.lines_f[:, field].copy() for name, field in REQUEST_TIMES.items()
    }
    for name, field in REQUEST_COLUMNS.items():
        columns[name] = world.lines_i[:, field].astype(np.int32)
    gave_up = columns["status"] == state.CANCELLED
    late = world.lines_f[:, state.DEADLINE] < world.lines_f[:, state.ARRIVAL] + workload.patience_s
    columns["status"] = np.where(gave_up & late, state.TIMED_OUT, columns["status"]).astype(np.int8)
    return pd.DataFrame(columns, copy=False)


def _steps(replicas: list[Replica]) -> pd.DataFrame:
    done = [int(replica.counts[state.STEP]) for replica in replicas]
    times = np.concatenate([r.steps_f[:n] for r, n in zip(replicas, done, strict=True)])
    ints = np.concatenate([r.steps_i[:n] for r, n in zip(replicas, done, strict=True)])
    columns: dict[str, npt.NDArray[np.generic]] = {"start_s": times[:, 0], "end_s": times[:, 1]}
    columns |= {name: ints[:, field] for name, field in STEP_COLUMNS.items()}
    return pd.DataFrame(columns)


def _stalls(replicas: list[Replica]) -> pd.DataFrame:
    parts = []
    for replica in replicas:
        n = int(replica.counts[state.STALLS])
        part = pd.DataFrame(replica.stalls_i[:n].copy(), columns=["request", "step"])
        part["replica"], part["gap_s"] = replica.index, replica.stalls_f[:n]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
