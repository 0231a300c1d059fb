"""A run folder as a Chrome trace: open it in https://ui.perfetto.dev or chrome://tracing.

    python -m sim trace-out runs/first --out trace.json --policy hardware-aware

One process per replica, with its engine steps (batch, budget, prefill tokens as arguments) and a
counter of the queue; one track per request that was running at the time, from arrival to end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gpu_traces.files import read_frame
from sim import options
from sim.show import origins

Event = dict[str, Any]

REQUESTS_PID = 1_000_000
MICRO = 1e6


def events(requests: pd.DataFrame, steps: pd.DataFrame, limit: int) -> Iterator[Event]:
    """Trace events of the first ``limit`` steps of each replica and the requests they saw."""
    shown = steps.groupby("replica").head(limit)
    last_s = float(shown["end_s"].max()) if len(shown) else 0.0
    for replica in sorted(shown["replica"].unique().tolist()):
        yield _name(replica, f"replica {replica}")
    for row in _rows(shown):
        yield from _step(row)
    seen = requests[requests["admitted_s"] <= last_s]
    yield _name(REQUESTS_PID, "requests")
    for index, row in zip(seen.index.tolist(), _rows(seen), strict=True):
        yield from _request(int(index), row, last_s)


def _rows(table: pd.DataFrame) -> list[Event]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _name(pid: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}


def _step(row: dict[str, Any]) -> Iterator[Event]:
    kind = "step" if row["decode_requests"] else "prefill"
    at, pid = row["start_s"] * MICRO, row["replica"]
    shown = ("decode_requests", "budget_tokens", "accepted_tokens", "prefill_tokens")
    yield {
        "ph": "X", "name": kind, "pid": pid, "tid": 0, "ts": at,
        "dur": (row["end_s"] - row["start_s"]) * MICRO, "args": {key: row[key] for key in shown},
    }  # fmt: skip
    waiting = {"waiting": row["queue_length"]}
    yield {"ph": "C", "name": "queue", "pid": pid, "ts": at, "args": waiting}


def _request(index: int, row: dict[str, Any], last_s: float) -> Iterator[Event]:
    times = [row["arrival_s"], row["admitted_s"], row["first_token_s"], row["finish_s"]]
    for name, start, end in zip(("wait", "prefill", "decode"), times, times[1:], strict=False):
        if pd.isna(start):
            return
        until = last_s if pd.isna(end) else end
        yield {
            "ph": "X", "name": name, "pid": REQUESTS_PID, "tid": index, "ts": start * MICRO,
            "dur": max(0.0, until - start) * MICRO, "args": {"rounds": row["rounds"]},
        }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace; exit code 2 after one line for a user's error."""
    made = options.Parser("python -m sim trace-out", (__doc__ or "").split("\n\n")[0])
    made.add_argument("run", type=Path, help="run folder of python -m sim.run")
    made.add_argument("--out", type=Path, default=Path("trace.json"), help="file to write")
    made.add_argument("--policy", default="", help="which policy of the run; unset: the first")
    made.add_argument(
        "--steps", type=options.whole(1), default=2000, help="steps per replica to show"
    )
    args = made.parse_args(argv)

    def job() -> None:
        count = write(args.run, args.out, args.policy, args.steps)
        print(f"{count} events: {args.out}")

    return made.answer(job)


def write(run: Path, out: Path, policy: str, limit: int) -> int:
    """Write the trace of one policy of a run folder; returns the number of events."""
    if not (run / "summary.json").is_file():
        raise ValueError(f"{run}: not a run folder, it has no summary.json")
    document = json.loads((run / "summary.json").read_text())
    known = list(document["policies"])
    if policy and policy not in known:
        raise ValueError(f"{run} has no policy {policy!r}; it has: {', '.join(known)}")
    chosen = [("policy", "==", policy or known[0])]
    requests = read_frame(run / "requests.parquet", filters=chosen)
    steps = read_frame(run / "steps.parquet", filters=chosen)
    found = list(events(requests, steps, limit))
    part = out.with_name(out.name + ".part")
    about = {"policy": policy or known[0], "origins": origins(document).splitlines()}
    trace = {"traceEvents": found, "displayTimeUnit": "ms", "otherData": about}
    part.write_text(json.dumps(trace, default=float))
    part.replace(out)
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
