"""Does the simulator tell the speed of a live run? The same requests, served by both.

    python -m sim.live_speed FOLDER... --bundle NAME

Each folder is a run of ``drafters.decode`` or ``drafters.campaign_live``. Its requests are served
again in the simulator: same policy, same limits, same arrivals or concurrency, prompts and answers
as long as they were. Acceptance is replayed from the bundle (the request's own recorded response,
or one of its domain and temperature where it has none) and steps take the bundle's times. Nothing
is fitted to the live run.
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
from gpu_traces.files import replacing
from gpu_traces.latency import LatencyModel
from gpu_traces.schema import AcceptanceTraces
from policies import registry
from policies.export import policy_file
from sim import options, setup
from sim.records import Records
from sim.replay import match_responses
from sim.simulate import ClusterConfig, simulate
from sim.state import COMPLETED
from sim.workload import Workload, from_responses
from sim.world import EngineConfig

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LiveRun:
    """A run as its folder tells it."""

    name: str
    policy: str
    max_requests: int
    max_step_tokens: int
    kv_tokens: int
    max_new: int
    open_loop: bool
    domains: tuple[str, ...]
    requests: pd.DataFrame
    """``live_requests`` without those that failed; ``e2e_s`` is NaN where a run was cut off."""
    wall_s: float
    """From the start to the end of the last step."""

    @property
    def cut(self) -> bool:
        """Whether the run ended before its requests did."""
        return bool(self.requests["e2e_s"].isna().any())


def read_live(folder: Path | str) -> LiveRun:
    """A live run's folder; ValueError for one that does not say under what limits it ran."""
    bundle = read_bundle(folder)
    told, steps, requests = bundle.manifest.live, bundle.live_steps, bundle.live_requests
    if not told or steps is None or requests is None:
        raise ValueError(f"{folder}: no live run; give folders of drafters.decode or campaign_live")
    if steps.empty:
        raise ValueError(f"{folder}: the run took no step; there is no speed to compare")
    last = steps.iloc[-1]
    spent = sum(float(last[f"{part}_us"]) for part in ("draft", "verify", "plan", "overhead"))
    return LiveRun(
        name=bundle.name,
        domains=bundle.manifest.domains,
        requests=requests[requests["reason"] == ""].reset_index(drop=True),
        wall_s=float(last["start_s"]) + spent / 1e6,
        **told,
    )


def workload(run: LiveRun, bundle: Bundle, seed: int = 0) -> Workload:
    """The run's requests as the simulator takes them, in order of arrival.

    Requests that the run did not finish are as long as the recorded answer allows.
    """
    traces, requests = bundle.traces, run.requests
    own = match_responses(requests, bundle)
    rng = np.random.default_rng(seed)
    domain, heats = _domains(run, traces), requests["temperature"].to_numpy()
    response = np.array(
        [
            own[int(r)] if int(r) in own else _stand_in(traces, d, heat, rng)
            for r, d, heat in zip(requests["request_id"], domain, heats, strict=True)
        ],
        dtype=np.int64,
    )
    generated = requests["output_tokens"].to_numpy(dtype=np.int64)
    most = requests["max_new"].to_numpy() if "max_new" in requests else run.max_new
    recorded = np.minimum(traces.response_tokens[response], most)
    done = requests["e2e_s"].notna().to_numpy()
    arrival_s = requests["arrival_s"].to_numpy(dtype=np.float64)
    if not run.open_loop:
        arrival_s = np.zeros_like(arrival_s)
    order = np.argsort(arrival_s, kind="stable")
    return from_responses(
        traces,
        response[order],
        arrival_s[order],
        requests["prompt_tokens"].to_numpy()[order],
        np.where(done, generated, np.maximum(generated, recorded))[order],
        run.name,
        "arrivals, prompts and answers of a live run",
    )


def _domains(run: LiveRun, traces: AcceptanceTraces) -> Ints:
    """The traces' code of each request's domain; -1 where they hold none."""
    codes = {name: i for i, name in enumerate(traces.domains)}
    own = np.array([codes.get(name, -1) for name in (*run.domains, "")], dtype=np.int64)
    coded: Ints = own[run.requests["domain"].to_numpy(dtype=np.int64)]
    return coded


def _stand_in(
    traces: AcceptanceTraces, domain: int, temperature: float, rng: np.random.Generator
) -> int:
    alike = np.abs(traces.temperature - temperature) < 1e-3
    if not alike.any():
        known = ", ".join(f"{t:g}" for t in np.unique(traces.temperature))
        raise ValueError(
            f"a request of temperature {temperature:g}, but bundle {traces.name} holds responses of"
            f" {known}; give a bundle recorded at that temperature"
        )
    mine = np.flatnonzero(alike & (traces.domain == domain))
    return int(rng.choice(mine if mine.size else np.flatnonzero(alike)))


def serve(
    run: LiveRun, bundle: Bundle, latency: LatencyModel, seed: int = 0, spread: bool = True
) -> Records:
    """The run's requests in the simulator, until the live run's end if it was cut off."""
    name, parameters = _policy(run.policy)
    engine = EngineConfig(
        max_requests=run.max_requests,
        max_step_tokens=run.max_step_tokens,
        kv_tokens=run.kv_tokens,
        spread=spread,
        extrapolate=True,
    )
    config = ClusterConfig(
        concurrency=0 if run.open_loop else run.max_requests,
        horizon_s=run.wall_s if run.cut else 0.0,
        engine=engine,
    )
    work = workload(run, bundle, seed)
    return simulate(bundle.traces, latency, work, name, config, seed, **parameters)


def _policy(text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a live run's policy, given by name or as a policy file."""
    file = policy_file(text)
    return (file.policy, file.parameters) if file else registry.parse(text)


def compare(run: LiveRun, records: Records) -> dict[str, Any]:
    """Speed of both, over the whole run: output tokens per second, tokens per walked round, and
    the median over completed requests of seconds per output token after the first."""
    live, sim = run.requests, records.requests
    wall_s = run.wall_s if run.cut else float(records.steps["end_s"].max())
    live_tok_s = float(live["output_tokens"].sum()) / run.wall_s
    sim_tok_s = float(sim["generated_tokens"].sum()) / wall_s
    done = live[live["e2e_s"].notna() & (live["output_tokens"] > 1)]
    ended = sim[(sim["status"] == COMPLETED) & (sim["generated_tokens"] > 1)]
    return {
        "run": run.name,
        "policy": run.policy,
        "requests": len(live),
        "live_tok_s": live_tok_s,
        "sim_tok_s": sim_tok_s,
        "error": sim_tok_s / live_tok_s - 1,
        "live_tokens_per_round": 1 + _ratio(live["accepted"], live["rounds"]),
        "sim_tokens_per_round": 1 + _ratio(sim["accepted_tokens"], sim["rounds"]),
        "live_tpot_ms": 1e3
        * _median((done["e2e_s"] - done["ttft_s"]) / (done["output_tokens"] - 1)),
        "sim_tpot_ms": 1e3
        * _median((ended["finish_s"] - ended["first_token_s"]) / (ended["generated_tokens"] - 1)),
    }


def _ratio(part: pd.Series, whole: pd.Series) -> float:
    return float(part.sum()) / max(1.0, float(whole.sum()))


def _median(values: pd.Series) -> float:
    return float(values.median()) if len(values) else float("nan")


def parser() -> options.Parser:
    """Options of ``python -m sim.live_speed``."""
    made = options.Parser("python -m sim.live_speed", (__doc__ or "").split("\n\n")[0])
    made.add_argument("live", nargs="+", metavar="FOLDER", help="live runs, or folders of them")
    made.add_argument("--bundle", required=True, help="trace bundle: acceptance and step times")
    made.add_argument("--latency", default="", help="bundle with the step times (empty: the same)")
    made.add_argument("--seed", type=options.whole(0), default=0, help="seed of the step noise")
    made.add_argument("--csv", default="", help="write the table to this file as well")
    made.add_argument("--json", action="store_true", help="end with one JSON document")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0, or 2 for a user's error."""
    made = parser()
    args = made.parse_args(argv)
    try:
        bundle = read_bundle(args.bundle)
        latency = setup.load_latency(args.latency, bundle, bundle.traces.gamma)
        rows = []
        for folder in _folders(args.live):
            run = read_live(folder)
            rows.append(compare(run, serve(run, bundle, latency, args.seed)))
        table = pd.DataFrame(rows)
        if args.csv:
            with replacing(Path(args.csv)) as temporary:
                table.to_csv(temporary, index=False)
    except (ValueError, OSError) as error:
        print(f"{made.prog}: error: {error}", file=sys.stderr)
        return 2
    print(table.to_string(index=False, float_format="{:.3g}".format))
    off = table["error"].abs()
    print(
        f"tokens per second of {len(table)} runs, simulated against live: median error"
        f" {off.median():.1%}, largest {off.max():.1%}; step times {latency.origin}"
    )
    if args.json:
        print(json.dumps(table.to_dict("records")))
    return 0


def _folders(given: Sequence[str]) -> list[Path]:
    """Folders of runs, and the runs in folders of folders, by name."""
    found: list[Path] = []
    for text in given:
        path = Path(text)
        inside = sorted(p.parent for p in path.glob("*/live_requests.parquet"))
        found += [path] if (path / "manifest.json").exists() else inside
    if not found:
        raise ValueError(f"{', '.join(given)}: no live runs there")
    return found


if __name__ == "__main__":
    sys.exit(main())
