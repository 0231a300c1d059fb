"""Refit every scenario from the public traces: all of ``data/scenarios.json`` in one command.

    python -m sim.refit FOLDER                 compare with the numbers that ship
    python -m sim.refit FOLDER --out FILE      write them

FOLDER holds (.gz is read too), wherever they lie inside it:

AzureLLMInferenceTrace_conv.csv, AzureLLMInferenceTrace_code.csv    Azure 2023, as published
*conversation_trace.jsonl                                           Mooncake, as published
{code,conv}_{rate_10min,context_tokens_cdf,generated_tokens_cdf}.csv    Azure 2024, digitised plots:
    t_s, requests_per_min from 00:00 UTC of a Friday (code) and a Sunday (conv); tokens, cdf_percent
reason.deepseek-r1.rates.csv, reason.deepseek-r1.length_quantiles.csv   ServeGen's pool, compacted:
    client_id, t_s, rate_rps, iat_cv per 10 min; client_id, field, window_requests, quantiles q...
agentic_coding_sessions.csv                                         kv-cache-tester, flattened:
    session_id, prompt_tokens, output_tokens, prefix_tokens, one row a request in order

Not fitted, since no public file states it: what ``docs/traffic.md`` lists as assumed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import fit_arrivals
from sim.arrivals import Floats
from sim.fit_scenarios import LARGEST_CLIENTS, fitted
from sim.fit_sessions import agentic, session_errors
from sim.importers import load
from sim.lengths import LEVELS, rounded
from sim.options import Parser
from sim.request_table import RequestTable

Fit = dict[str, Any]

SESSIONS = "agentic_coding_sessions.csv"
SHOWN = 40
"""Most differences that are printed."""
SHIPPED = Path(__file__).parent / "data" / "scenarios.json"
LEAST_RATE_RPS = 1e-4
"""A client that sends nothing in an hour is given this rate there."""


def refit(folder: Path) -> dict[str, Fit]:
    """All scenarios' numbers; raises ValueError naming a file that is missing."""
    return {
        "azure-conv": hour(find(folder, "AzureLLMInferenceTrace_conv.csv"), chat_arrivals),
        "azure-code": hour(find(folder, "AzureLLMInferenceTrace_code.csv"), code_arrivals),
        "mooncake-conv": hour(find(folder, "*conversation_trace.jsonl"), mooncake_arrivals),
        "azure-week": {"code": week(folder, "code", 3), "conv": week(folder, "conv", 1)},
        "reasoning": reasoning(folder),
        "agentic": agentic(pd.read_csv(find(folder, SESSIONS))),
    }


def find(folder: Path, name: str) -> Path:
    """The file of that name (or with .gz) in the folder or below it."""
    found = sorted([*folder.rglob(name), *folder.rglob(name + ".gz")])
    if not found:
        raise ValueError(f"{folder}: {name} is missing; see python -m sim.refit --help")
    return found[0]


def hour(path: Path, arrivals: Any) -> Fit:
    """An hour of requests: arrivals by moments, length quantiles, prefix reuse where recorded."""
    table: RequestTable = load(path)
    numbers = fitted(table)
    kept = {key: numbers[key] for key in ("prompt", "output", "reuse") if key in numbers}
    return {"arrivals": {"rate_rps": numbers["rate_rps"]} | arrivals(table.arrival_s)} | kept


def chat_arrivals(arrival_s: Floats) -> Fit:
    """A slow drift, and bursts of a second."""
    return fit_arrivals.modulated(arrival_s, [(0.25, fit_arrivals.SLOW_S), (0.2, 1.0)])


def mooncake_arrivals(arrival_s: Floats) -> Fit:
    """As chat; below two steps of its 3 s grid the trace says nothing."""
    start = [(0.1, fit_arrivals.SLOW_S), (0.1, 10.0)]
    return fit_arrivals.modulated(arrival_s, start, least_window_s=6.0)


def code_arrivals(arrival_s: Floats) -> Fit:
    """Bursts and silences; inside a burst the rate wanders and gaps cluster."""
    return fit_arrivals.on_off(arrival_s, [(0.7, 3.0)])


def week(folder: Path, name: str, monday: int) -> Fit:
    """Hourly rates from Monday 00:00 UTC, ``monday`` days into the file, and lengths by CDF."""
    curve = pd.read_csv(find(folder, f"{name}_rate_10min.csv"))
    hourly = curve.groupby(curve["t_s"] // 3600)["requests_per_min"].mean().to_numpy() / 60
    return {"hourly_rps": rounded(np.roll(hourly, -24 * monday), 3)} | {
        key: _cdf_quantiles(pd.read_csv(find(folder, f"{name}_{what}_tokens_cdf.csv")))
        for key, what in (("prompt", "context"), ("output", "generated"))
    }


def _cdf_quantiles(cdf: pd.DataFrame) -> list[float]:
    """Quantiles of a digitised CDF, linear between pixels; a plateau counts at its middle."""
    steps = cdf.groupby("cdf_percent")["tokens"].mean()
    shares, tokens = np.append(0.0, steps.index), np.append(1.0, steps)
    return rounded(np.maximum(np.interp(100 * np.array(LEVELS), shares, tokens), 1), 4)


def reasoning(folder: Path) -> dict[str, Fit]:
    """The largest clients one by one, and the others together, over a day."""
    rates = pd.read_csv(find(folder, "reason.deepseek-r1.rates.csv"))
    lengths = pd.read_csv(find(folder, "reason.deepseek-r1.length_quantiles.csv"))
    order = rates.groupby("client_id")["rate_rps"].sum().sort_values(ascending=False).index
    fits = {}
    for k, client in enumerate(order[:LARGEST_CLIENTS]):
        fits[f"client-{k + 1}"] = _clients(rates, lengths, [client])
    fits["others"] = _clients(rates, lengths, order[LARGEST_CLIENTS:].tolist())
    return fits


def _clients(rates: pd.DataFrame, lengths: pd.DataFrame, clients: list[int]) -> Fit:
    own = rates[rates["client_id"].isin(clients)]
    sums = own.groupby(own["t_s"] // 3600)["rate_rps"].sum().reindex(range(24)).fillna(0.0) / 6
    numbers: Fit = {
        "hourly_rps": rounded(np.maximum(sums.to_numpy(), LEAST_RATE_RPS), 3),
        "cv": rounded([np.average(own["iat_cv"], weights=own["rate_rps"])], 3)[0],
    }
    for key, field in (("prompt", "input_tokens"), ("output", "output_tokens")):
        rows = lengths[lengths["client_id"].isin(clients) & (lengths["field"] == field)]
        numbers[key] = _mixture(rows)
    return numbers


def _mixture(rows: pd.DataFrame) -> list[float]:
    """Quantiles of a mixture of windows, each log-linear between its own, weighted by requests."""
    names = [name for name in rows.columns if name.startswith("q")]
    levels = np.array([float(name[1:]) for name in names])
    uniform = (np.arange(4000) + 0.5) / 4000
    windows = np.log(np.maximum(rows[names].to_numpy(dtype=np.float64), 1))
    values = np.concatenate([np.interp(uniform, levels, window) for window in windows])
    weights = np.repeat(rows["window_requests"].to_numpy(dtype=np.float64), uniform.size)
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    middle = (share - weights[order] / 2) / share[-1]
    quantiles = np.exp(np.interp(LEVELS, middle, values[order]))
    quantiles[[0, -1]] = np.exp([windows.min(), windows.max()])
    return rounded(quantiles, 4)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per number that differs by more than rounding, as ``path: old -> new``."""
    if isinstance(new, dict):
        keys = dict.fromkeys((*old, *new)) if isinstance(old, dict) else new
        return [
            line
            for key in keys
            for line in differences(
                old.get(key) if isinstance(old, dict) else None, new.get(key), f"{path}/{key}"
            )
        ]
    if isinstance(new, (list, tuple)) and isinstance(old, list) and len(new) == len(old):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    same = new == old or (isinstance(old, float) and np.isclose(old, new, rtol=1e-9))
    return [] if same else [f"{path}: {old} -> {new}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Refit; exit code 2 and one line for a user's error."""
    made = Parser("python -m sim.refit", (__doc__ or "").partition("\n")[0])
    made.add_argument("folder", type=Path, help="where the public files are")
    made.add_argument("--out", type=Path, metavar="FILE", help="write the numbers here")
    args = made.parse_args(argv)
    return made.answer(lambda: _report(args.folder, args.out))


def _report(folder: Path, out: Path | None) -> None:
    """Print what differs from the numbers that ship, and write the new ones where asked."""
    fits = json.loads(json.dumps(refit(folder)))
    errors = session_errors(pd.read_csv(find(folder, SESSIONS)))
    changed = differences(json.loads(SHIPPED.read_text(encoding="utf-8")), fits)
    print("\n".join(changed[:SHOWN]) or "the numbers that ship are reproduced")
    if len(changed) > SHOWN:
        print(f"... {len(changed):,} numbers differ")
    print("sampling errors of the sessions' figures (sim/data/published_traffic.csv):", errors)
    if out:
        part = out.with_name(out.name + ".part")
        part.write_text(_written(fits), encoding="utf-8")
        os.replace(part, out)


def _written(fits: dict[str, Fit]) -> str:
    """JSON with one line for each list of numbers."""
    text = json.dumps(fits, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", _one_line, text) + "\n"


def _one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[0][1:-1].split())}]"


if __name__ == "__main__":
    sys.exit(main())
