"""Command-line options that the experiments share; defaults and units are in the help."""

from __future__ import annotations

import argparse
import math

from gpu_traces.commands import Parser as Parser
from gpu_traces.commands import at_least_zero as at_least_zero
from gpu_traces.commands import positive as positive
from gpu_traces.commands import share as share
from gpu_traces.commands import whole as whole
from policies import registry
from policies.cost import RULES
from sim import slo
from sim.capacity import LOADS, RECORDED
from sim.group import Outage
from sim.routers import ROUTERS
from sim.scaling import METHODS
from sim.scenarios import SCENARIOS
from sim.state import PREFILL_MODES
from sim.world import EngineConfig


def outage(text: str) -> Outage:
    """An argparse type: ``0@30+10``, group 0 fails at 30 s for 10 s."""
    try:
        group, _, times = text.partition("@")
        start, _, length = times.partition("+")
        made = Outage(int(group), float(start), float(length))
    except ValueError:
        made = Outage(-1, 0.0, 0.0)
    if made.group < 0 or not made.start_s >= 0 or not 0 < made.length_s < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be GROUP@SECONDS+SECONDS, e.g. 0@30+10")
    return made


def load(text: str) -> str:
    """An argparse type: a load word or requests per second."""
    if text not in LOADS and text != RECORDED:
        try:
            known = math.isfinite(float(text)) and float(text) > 0
        except ValueError:
            known = False
        if not known:
            words = ", ".join((*LOADS, RECORDED))
            raise argparse.ArgumentTypeError(
                f"{text!r} must be {words}, or requests per second above 0"
            )
    return text


def policy_list(text: str) -> list[str]:
    """An argparse type: comma-separated policies, each checked to be known."""
    policies = [item.strip() for item in text.split(",") if item.strip()]
    if not policies:
        raise argparse.ArgumentTypeError("name at least one policy")
    for item in policies:
        try:
            registry.get(registry.parse(item)[0])
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return policies


def add_world(parser: argparse.ArgumentParser) -> None:
    """Whose acceptance, whose step times, and what traffic."""
    group = parser.add_argument_group("world")
    group.add_argument(
        "--bundle", default="", metavar="NAME|FOLDER",
        help="trace bundle whose acceptance is replayed, or published:NAME; empty: the best"
        " measured one that ships, or for a production scenario with requests longer than it was"
        " profiled for a published one, with published step times",
    )  # fmt: skip
    group.add_argument(
        "--latency", default="", metavar="NAME|FOLDER",
        help="bundle whose step times are used, published:NAME or synthetic:dense|moe|coarse;"
        " empty: those of --bundle",
    )  # fmt: skip
    group.add_argument(
        "--temperature", type=float, default=None, metavar="T",
        help="replay only responses sampled at this temperature; unset: all of the bundle",
    )  # fmt: skip
    group.add_argument(
        "--extrapolate", action="store_true",
        help="allow steps outside the latency profile; every output then says so",
    )  # fmt: skip
    group.add_argument(
        "--no-spread", action="store_true", help="every step takes its median time exactly"
    )
    group.add_argument(
        "--scenario", default="bundle", metavar="NAME|FILE",
        help="traffic: bundle (Poisson arrivals of the bundle's own prompts and answers), "
        + ", ".join(SCENARIOS) + ", or a file of arrivals (see python -m sim.traffic)",
    )  # fmt: skip
    group.add_argument(
        "--rate-method", choices=METHODS, default="time_scale",
        help="how a scenario or file is brought to another rate",
    )  # fmt: skip
    group.add_argument("--requests", type=whole(1), default=2000, help="requests in the run")
    group.add_argument("--seed", type=whole(0), default=0, help="seed of everything random")


def add_distortions(parser: argparse.ArgumentParser) -> None:
    """What may be wrong with the drafter and with what an engine believes."""
    group = parser.add_argument_group("distortions")
    group.add_argument(
        "--confidence-temperature", type=positive, default=1.0, metavar="T",
        help="divide the confidences' logits by T: below 1 too sure, above 1 too timid",
    )  # fmt: skip
    group.add_argument(
        "--drift", type=float, default=0.0, metavar="P",
        help="from half of the requests on, each right draft is wrong with this chance",
    )  # fmt: skip
    group.add_argument(
        "--lookup", choices=("", *RULES), default="",
        help="rule by which every policy's cost table is looked up; empty: each its own",
    )  # fmt: skip
    group.add_argument(
        "--profiled-context", type=at_least_zero, default=0.0, metavar="TOKENS",
        help="cached tokens per request at which the cost tables were profiled",
    )  # fmt: skip


def add_deployment(parser: argparse.ArgumentParser) -> None:
    """Replicas, their limits, and the router."""
    default = EngineConfig()
    group = parser.add_argument_group("deployment")
    group.add_argument("--replicas", type=whole(1), default=1, help="engine replicas")
    group.add_argument(
        "--router", choices=sorted(ROUTERS), default="round-robin", help="how requests are spread"
    )
    group.add_argument(
        "--max-requests", type=whole(1), default=None, metavar="R",
        help="requests that one replica runs at once; unset: 256, or half of what was profiled",
    )  # fmt: skip
    group.add_argument(
        "--max-step-tokens", type=whole(1), default=None, metavar="T",
        help="target tokens in one step; unset: 8192, or as many as were profiled",
    )  # fmt: skip
    group.add_argument(
        "--prefill", choices=PREFILL_MODES, default=default.prefill,
        help="chunked: prompts share steps with decoding; separate: another pool prefills;"
        " none: prompts cost nothing",
    )  # fmt: skip
    group.add_argument(
        "--kv-tokens", type=whole(0), default=None,
        help="tokens that one replica's KV cache holds; 0: no limit; unset: as many as the latency"
        " profile covers",
    )  # fmt: skip
    group.add_argument(
        "--prefill-workers", type=whole(0), default=0,
        help="workers of the separate prefill pool; 0: one per replica",
    )  # fmt: skip
    group.add_argument(
        "--group-size", type=whole(1), default=1,
        help="replicas that step in lock-step, the slowest setting the pace (data-parallel ranks)",
    )  # fmt: skip
    group.add_argument(
        "--outage", type=outage, action="append", default=[], metavar="GROUP@S+S",
        help="group that fails at a second and comes back so many seconds later; repeat for more",
    )  # fmt: skip
    group.add_argument(
        "--mtbf", type=positive, default=math.inf,
        help="mean seconds between random failures of a group; inf: none",
    )  # fmt: skip
    group.add_argument(
        "--mttr", type=positive, default=60.0, help="mean seconds that a failed group stays down"
    )
    group.add_argument(
        "--retries", type=whole(0), default=3,
        help="replicas that a running request may lose before it is reported failed",
    )  # fmt: skip
    group.add_argument(
        "--prefix-cache", action="store_true", help="known prompt prefixes skip prefill"
    )
    group.add_argument(
        "--timeout", type=positive, default=math.inf,
        help="seconds after arrival at which the service gives a request up",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=positive, default=math.inf, metavar="SECONDS",
        help="mean of the exponential time after arrival at which a client cancels (not with a"
        " closed loop of requests)",
    )  # fmt: skip
    group.add_argument(
        "--horizon", type=at_least_zero, default=0.0,
        help="simulated seconds after which a run stops; 0: a bound that only overload reaches",
    )  # fmt: skip
    group.add_argument(
        "--check", action="store_true", help="verify the simulator's invariants (slow)"
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """Open loop at a rate, or closed loop at a concurrency."""
    words = ", ".join(f"{word} ({share})" for word, share in LOADS.items())
    group = parser.add_argument_group("load")
    group.add_argument(
        "--load", type=load, default=None, metavar="WORD|RPS",
        help=f"{words}: share of what policy none sustains; {RECORDED}: the traffic's own rate;"
        " a number: requests per second; unset: high, unless --concurrency is given",
    )  # fmt: skip
    group.add_argument(
        "--concurrency", type=whole(0), default=0,
        help="closed loop with this many requests out at any time (scenario agentic: users);"
        " 0: open loop",
    )  # fmt: skip
    group.add_argument(
        "--slo", type=slo.parse, default="", metavar="CLASS:ttft=S;tpot=S[,...]",
        help="targets in seconds by class; unset: interactive:ttft=2;tpot=0.1 and"
        " agent:ttft=10;tpot=0.1, none for batch",
    )  # fmt: skip


def add_policies(parser: argparse.ArgumentParser, default: str) -> None:
    """Which policies to run."""
    parser.add_argument(
        "--policy", type=policy_list, default=default, metavar="NAME[,NAME...]",
        help="policies, each NAME or NAME:parameter=value;parameter=value; known: "
        + ", ".join(registry.names()),
    )  # fmt: skip
