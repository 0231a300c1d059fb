"""Experiments on simulated traffic: ``python -m sim VERB --help``.

run        one run of one or more policies (python -m sim.run)
compare    policies in pairs over replications, with 95 % intervals
frontier   throughput against tok/s/user by concurrency
capacity   largest load that still meets the SLO
sweep      a grid or Latin hypercube over any option
league     every policy over scenarios, loads and bundles, ranked (python -m sim.league)
robustness policies under lag, miscalibration, wrong tables, drift (python -m sim.robustness)
report     one self-contained HTML page of runs and experiments
trace-out  a run folder as a Chrome/Perfetto trace
replay     a live run's policy over recorded anchors (python -m sim.replay)
traffic    list, describe, convert and fetch traffic (python -m sim.traffic)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "run": "sim.run",
    "compare": "sim.verbs",
    "frontier": "sim.verbs",
    "capacity": "sim.verbs",
    "sweep": "sim.verbs",
    "league": "sim.league",
    "robustness": "sim.robustness",
    "report": "sim.report",
    "trace-out": "sim.trace_out",
    "replay": "sim.replay",
    "traffic": "sim.traffic",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the words over to a verb; exit code 2 for an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    verb, *rest = words
    if verb not in VERBS:
        print(f"python -m sim: error: unknown verb {verb!r}; known: {', '.join(VERBS)}",
              file=sys.stderr)  # fmt: skip
        return 2
    module = import_module(VERBS[verb])
    code: int = module.main(words if VERBS[verb] == "sim.verbs" else rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
