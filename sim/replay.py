"""Does the loop close? A live run's policy, run again over recorded anchors in the same batches.

    python -m sim.replay --live FOLDER --bundle NAME --policy hardware-aware

Per engine step of the live run the same requests form the batch, in the same order; everything
else (confidences, lags, lengths, acceptance) comes from the trace bundle and the policy. At
temperature 0 rounds, verified and accepted tokens of each request must then equal the live run's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gpu_traces.bundle import Bundle, read_bundle
from gpu_traces.files import read_frame
from gpu_traces.schema import AcceptanceTraces
from policies import registry
from policies.base import Policy, StepOutcome, VerifyState
from policies.cost import CostTable
from policies.export import policy_file
from policies.harness import ConfidenceLag, check_plan
from sim import options, setup

Ints = npt.NDArray[np.int64]

COUNTS = ("rounds", "verified", "accepted")


@dataclass(frozen=True)
class Comparison:
    """What a replay found."""

    requests: pd.DataFrame
    """Per comparable request: request_id, and ``live_`` and ``sim_`` rounds, verified, accepted."""
    left_out: int
    """Live requests that the bundle can't tell about: unknown prompt, or a text it cut earlier."""

    @property
    def equal(self) -> int:
        """Requests whose three counts agree."""
        return int(self._same().sum())

    @property
    def different(self) -> int:
        """Requests where any count differs."""
        return len(self.requests) - self.equal

    def _same(self) -> npt.NDArray[np.bool_]:
        table = self.requests
        live, sim = (table[[f"{side}_{c}" for c in COUNTS]].to_numpy() for side in ("live", "sim"))
        same: npt.NDArray[np.bool_] = (live == sim).all(axis=1)
        return same

    def document(self) -> dict[str, Any]:
        """Counts as JSON, with the requests that differ."""
        return {
            "requests": len(self.requests),
            "equal": self.equal,
            "different": self.different,
            "left_out": self.left_out,
            "differing": self.requests[~self._same()].to_dict("records"),
        }


class Walker:
    """Live requests on their recorded chains; arrays are by position in ``ids``."""

    def __init__(self, traces: AcceptanceTraces, ids: Ints, response: Ints, output: Ints) -> None:
        self.traces = traces
        self.row = {int(request): i for i, request in enumerate(ids)}
        self.anchor = traces.first_anchor[response].copy()
        self.end = traces.first_anchor[response + 1]
        self.domain = traces.domain[response].astype(np.int64)
        self.prompt = traces.prompt_tokens[response].astype(np.int64)
        self.output = output
        self.generated = np.ones(ids.size, dtype=np.int64)
        self.counts = np.zeros((len(COUNTS), ids.size), dtype=np.int64)

    def live(self, at: Ints) -> npt.NDArray[np.bool_]:
        """Which of these requests still have tokens to win."""
        alive: npt.NDArray[np.bool_] = (self.generated[at] < self.output[at]) & (
            self.anchor[at] < self.end[at]
        )
        return alive

    def verify(self, at: Ints, lengths: Ints) -> Ints:
        """Walk one round of each request; returns the accepted drafts."""
        anchor, wanted = self.anchor[at], self.output[at] - self.generated[at]
        recorded = self.traces.accepted[anchor].astype(np.int64)
        accepted: Ints = np.minimum(np.minimum(recorded, lengths), wanted)
        gained = np.minimum(np.minimum(accepted + 1, self.end[at] - anchor), wanted)
        self.anchor[at] += gained
        self.generated[at] += gained
        self.counts[:, at] += np.stack([np.ones_like(lengths), lengths, accepted])
        return accepted


def replay(
    traces: AcceptanceTraces,
    live_steps: pd.DataFrame,
    live_requests: pd.DataFrame,
    response: dict[int, int],
    policy: Policy,
    cost: CostTable,
) -> Comparison:
    """Run ``policy`` again over the batches of a live run.

    ``response``: live request id -> recorded response; requests without one are left out of the
    comparison, and so is one whose live text is longer than the recorded one. Prefill tokens of a
    step are taken from ``prefill_tokens``, times from ``step_time_s``, where the run logged them.
    """
    length = live_requests.set_index("request_id")["output_tokens"]
    known = [r for r, i in response.items() if length[r] <= traces.response_tokens[i]]
    ids = np.array(known, dtype=np.int64)
    walker = Walker(
        traces,
        ids,
        np.array([response[r] for r in known], dtype=np.int64),
        length[known].to_numpy(dtype=np.int64),
    )
    _run(walker, live_steps.sort_values("step"), policy, cost)
    live = live_requests.set_index("request_id").loc[known]
    table = pd.DataFrame({"request_id": ids})
    for name, counts in zip(COUNTS, walker.counts, strict=True):
        table[f"live_{name}"], table[f"sim_{name}"] = live[name].to_numpy(), counts
    return Comparison(table, len(live_requests) - len(known))


def _run(walker: Walker, live_steps: pd.DataFrame, policy: Policy, cost: CostTable) -> None:
    batches = [
        np.array([walker.row[r] for r in ids if r in walker.row], dtype=np.int64)
        for ids in live_steps["request_ids"]
    ]
    joining = _joining(batches, walker.output.size)
    gamma = walker.traces.gamma
    lag = ConfidenceLag(walker.output.size, gamma, policy.lag)
    drafted = np.full(walker.output.size, -1, dtype=np.int64)
    zeros = np.zeros(len(live_steps), dtype=np.int64)
    chunks = np.asarray(live_steps.get("prefill_tokens", zeros)).tolist()
    seconds = np.asarray(live_steps.get("step_time_s", zeros)).tolist()
    for step, (batch, chunk) in enumerate(zip(batches, chunks, strict=True)):
        batch = batch[walker.live(batch)]
        if not batch.size:
            continue
        fresh = drafted[batch] < 0
        first = gamma if policy.first_draft is None else policy.first_draft
        drafted[batch[fresh]] = first
        state = _state(walker, batch, drafted[batch], fresh, lag, step, chunk, joining[step], cost)
        plan = policy.plan(state)
        check_plan(policy, state, plan)
        accepted = walker.verify(batch, plan.lengths)
        done = ~walker.live(batch)
        policy.observe(
            StepOutcome(
                step, batch, plan.lengths, accepted, state.current, done, float(seconds[step])
            )
        )
        drafted[batch] = gamma if plan.draft is None else plan.draft


def _joining(batches: list[Ints], requests: int) -> list[int]:
    """Per step, how many requests decode for the first time in the next: their prefill ended."""
    seen = np.zeros(requests, dtype=bool)
    new = []
    for batch in batches:
        new.append(int(np.count_nonzero(~seen[batch])))
        seen[batch] = True
    return [*new[1:], 0]


def _state(
    walker: Walker,
    batch: Ints,
    drafted: Ints,
    fresh: npt.NDArray[np.bool_],
    lag: ConfidenceLag,
    step: int,
    prefill_tokens: int,
    joining: int,
    cost: CostTable,
) -> VerifyState:
    current = walker.traces.confidence[walker.anchor[batch]].astype(np.float64)
    current[np.arange(current.shape[1]) >= drafted[:, None]] = 0.0
    generated, size = walker.generated[batch], batch.size
    return VerifyState(
        step=step,
        time_s=0.0,
        current=current,
        lagged=lag.push(batch, current),
        drafted=drafted,
        slots=batch,
        fresh=fresh,
        context_tokens=walker.prompt[batch] + generated - 1,
        generated_tokens=generated,
        domain=walker.domain[batch],
        slo_class=np.zeros(size, dtype=np.int64),
        slack_s=np.full(size, np.inf),
        other_tokens=size + prefill_tokens,
        sampling_requests=size + joining,
        queue_length=0,
        cost=cost,
    )


def match_responses(live_requests: pd.DataFrame, bundle: Bundle) -> dict[int, int]:
    """Live request id -> row of the bundle's responses with its prompt and temperature.

    Live runs name requests ``prompt_key/T<temperature>/<turn>``; a run without names is matched by
    request id.
    """
    responses = bundle.responses
    if "name" not in live_requests:
        at = {int(r): i for i, r in enumerate(responses["request_id"])}
        return {int(r): at[int(r)] for r in live_requests["request_id"] if int(r) in at}
    keys = zip(responses["prompt_key"], responses["temperature"].round(4), strict=True)
    rows = {(str(key), float(heat)): i for i, (key, heat) in enumerate(keys)}
    found = {}
    for request, name in zip(live_requests["request_id"], live_requests["name"], strict=True):
        key, heat, _ = str(name).rsplit("/", 2)
        row = rows.get((key, round(float(heat.removeprefix("T")), 4)))
        if row is not None:
            found[int(request)] = row
    return found


def parser() -> options.Parser:
    """Options of ``python -m sim.replay``."""
    made = options.Parser("python -m sim.replay", (__doc__ or "").split("\n\n")[0])
    made.add_argument("--live", required=True, help="folder that drafters.decode wrote")
    made.add_argument("--bundle", required=True, help="trace bundle of the same prompts")
    made.add_argument("--policy", required=True, help="policy or policy.json of the live run")
    made.add_argument("--json", action="store_true", help="end with one JSON document")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; exit code 0, 1 when over 1 % of the requests differ, 2 for a user's error."""
    made = parser()
    args = made.parse_args(argv)
    try:
        document = compare_live(Path(args.live), args.bundle, args.policy).document()
    except (ValueError, OSError) as error:
        print(f"{made.prog}: error: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.policy}: {document['equal']} of {document['requests']} requests equal the live run"
        f" in {', '.join(COUNTS)}; {document['left_out']} left out"
    )
    if args.json:
        print(json.dumps(document))
    return int(document["different"] > 0.01 * document["requests"])


def compare_live(live: Path, bundle_name: str, policy: str) -> Comparison:
    """Read a live folder and a bundle and replay the one over the other.

    ``policy``: what the live run was told, a policy file (its cost table is used) or a policy with
    parameters (the cost table is the bundle's).
    """
    steps, requests = live / "live_steps.parquet", live / "live_requests.parquet"
    for path in (steps, requests):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; --live is a folder of drafters.decode")
    bundle = read_bundle(bundle_name)
    live_requests = read_frame(requests)
    greedy = live_requests
    if "temperature" in live_requests:
        greedy = live_requests[live_requests["temperature"] == 0]
    response = match_responses(greedy, bundle)
    if not response:
        raise ValueError(f"{live}: none of its prompts is in bundle {bundle.name} at temperature 0")
    made, cost = _policy(policy, bundle)
    found = replay(bundle.traces, read_frame(steps), live_requests, response, made, cost)
    if found.requests.empty:
        raise ValueError(f"{live}: its texts are all longer than those in bundle {bundle.name}")
    return found


def _policy(text: str, bundle: Bundle) -> tuple[Policy, CostTable]:
    gamma = bundle.traces.gamma
    if (file := policy_file(text)) is not None:
        if file.gamma != gamma:
            raise ValueError(f"{text}: gamma {file.gamma}, but bundle {bundle.name} has {gamma}")
        return file.make(), file.cost
    name, parameters = registry.parse(text)
    policy = registry.create(name, gamma, **parameters)
    latency = setup.load_latency("", bundle, gamma)
    return policy, latency.cost_table(policy.cost_rule)


if __name__ == "__main__":
    sys.exit(main())
