"""Service-level objectives per request class, and goodput: what met all of them.

A request is good when it completed, its first token came within ``ttft_s`` and its mean time per
output token after that stayed within ``tpot_s`` (of its class).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.state import COMPLETED
from sim.workload import SLO_CLASSES


@dataclass(frozen=True)
class Slo:
    """Targets of one class; inf for none."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf


Slos = tuple[Slo, ...]
"""One per ``SLO_CLASSES`` entry."""

DEFAULTS: Slos = (Slo(2.0, 0.1), Slo(), Slo(10.0, 0.1))
"""Interactive: reading speed, 10 tokens a second; batch: none; agent: patient first token."""


def parse(text: str) -> Slos:
    """``interactive:ttft=1;tpot=0.05,batch:ttft=60`` -> targets; unnamed classes keep DEFAULTS.

    An argparse type: raises ArgumentTypeError with one line.
    """
    slos = list(DEFAULTS)
    for item in filter(None, text.split(",")):
        name, _, targets = item.strip().partition(":")
        if name not in SLO_CLASSES:
            raise argparse.ArgumentTypeError(
                f"unknown SLO class {name!r}; known: {', '.join(SLO_CLASSES)}"
            )
        slos[SLO_CLASSES.index(name)] = Slo(**dict(map(_target, filter(None, targets.split(";")))))
    return tuple(slos)


def _target(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if name.strip() not in ("ttft", "tpot") or not seconds > 0:
        raise argparse.ArgumentTypeError(f"SLO target {text!r} must be ttft=S or tpot=S, S above 0")
    return f"{name.strip()}_s", seconds


def good(requests: pd.DataFrame, tpot_s: npt.NDArray[np.float64], slos: Slos) -> pd.Series[bool]:
    """[n] bool: completed, and within the targets of its class (one-token answers have no TPOT)."""
    classes = requests["slo_class"].to_numpy()
    ttft_limit = np.array([slo.ttft_s for slo in slos])[classes]
    tpot_limit = np.array([slo.tpot_s for slo in slos])[classes]
    on_time = requests["first_token_s"] - requests["arrival_s"] <= ttft_limit
    steady = np.isnan(tpot_s) | (tpot_s <= tpot_limit)
    met: pd.Series[bool] = (requests["status"] == COMPLETED) & on_time & steady
    return met


def by_class(
    requests: pd.DataFrame, met: pd.Series[bool], span_s: float
) -> dict[str, dict[str, Any]]:
    """Per class present: requests, the share of them that is good, good ones per second."""
    table = {}
    for code, name in enumerate(SLO_CLASSES):
        mine = requests["slo_class"] == code
        if mine.any():
            table[name] = {
                "requests": int(mine.sum()),
                "attainment": float(met[mine].mean()),
                "goodput_rps": float(met[mine].sum()) / span_s,
            }
    return table
