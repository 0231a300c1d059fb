"""The policy file: what a simulation chose, in the form that a live loop loads.

``policy.json`` holds the policy's name and parameters, gamma, the confidences' calibration, the
cost table it decides by (compact points that give the dense table back exactly) and provenance.
``python -m policies.export policy.json --engine sglang --out DIR`` writes what a real engine loads
(``policies.engines``).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from policies.base import Floats, Policy
from policies.cost import CostTable
from policies.registry import create, get

SCHEMA_VERSION = 1
KIND = "dspark-lab policy"


@dataclass(frozen=True)
class Calibrated:
    """Confidences read as sigmoid(logit(c) / scales + bias) at one sampling temperature."""

    temperature: float
    scales: tuple[float, ...]
    """[gamma] > 0"""
    bias: tuple[float, ...]
    """[gamma]"""


@dataclass(frozen=True)
class PolicyFile:
    """One exported policy; ``calibration`` has an entry per sampling temperature (none: raw)."""

    policy: str
    parameters: dict[str, Any]
    gamma: int
    cost: CostTable
    calibration: tuple[Calibrated, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if get(self.policy).analysis_only:  # type: ignore[attr-defined]
            raise ValueError(f"policy {self.policy!r} is for analysis only and can't be exported")
        for entry in self.calibration:
            if not len(entry.scales) == len(entry.bias) == self.gamma or min(entry.scales) <= 0:
                raise ValueError(
                    f"calibration at temperature {entry.temperature} needs {self.gamma} scales > 0"
                    f" and biases, got {list(entry.scales)} and {list(entry.bias)}"
                )
        if self.cost.gamma != self.gamma:
            raise ValueError(f"cost table is for gamma={self.cost.gamma}, policy for {self.gamma}")
        create(self.policy, self.gamma, **self.parameters)

    def make(self) -> Policy:
        """A fresh policy with these parameters."""
        return create(self.policy, self.gamma, **self.parameters)

    def config(self) -> dict[str, Any]:
        """All parameters, defaults included."""
        config: Any = get(self.policy).Config  # type: ignore[attr-defined]
        return asdict(config(**self.parameters))


def breakpoints(curve: Floats) -> list[int]:
    """Indices that give ``curve`` back by linear interpolation, to 1e-12 relative."""
    if curve.size < 3:
        return list(range(curve.size))
    bend = np.abs(np.diff(curve, 2)) > 1e-12 * np.abs(curve).max(initial=0.0)
    return [0, *(np.flatnonzero(bend) + 1).tolist(), curve.size - 1]


def _points(curves: Floats) -> dict[str, Any]:
    """One grid for one curve [n] or several [k, n]."""
    rows = np.atleast_2d(curves)
    at = sorted(set().union(*(breakpoints(row) for row in rows)))
    return {"sizes": at, "seconds": curves[..., at].tolist()}


def _curve(points: dict[str, Any]) -> Floats:
    sizes = np.asarray(points["sizes"], dtype=np.int64)
    seconds = np.asarray(points["seconds"], dtype=np.float64)
    if sizes.size == 0 or sizes[0] != 0 or np.any(np.diff(sizes) <= 0):
        raise ValueError("sizes must start at 0 and strictly increase")
    if seconds.shape[-1] != sizes.size or not (np.isfinite(seconds).all() and (seconds >= 0).all()):
        raise ValueError("seconds must be finite, >= 0 and as many as sizes")
    grid = np.arange(sizes[-1] + 1)
    return np.apply_along_axis(lambda row: np.interp(grid, sizes, row), -1, seconds)


def cost_to_json(cost: CostTable) -> dict[str, Any]:
    """Compact form of a cost table."""
    return {
        "verify": _points(cost.verify_s),
        "draft": _points(cost.draft_s),
        "context_s": cost.context_s,
        "adaptive_s": cost.adaptive_s,
        "adaptive_token_s": cost.adaptive_token_s,
        "refill_s": cost.refill_s,
        "tiers": list(cost.tiers),
    }


def cost_from_json(data: dict[str, Any]) -> CostTable:
    """The dense table back; KeyError, TypeError or ValueError when it is malformed."""
    scalars = {k: float(data[k]) for k in ("context_s", "adaptive_s", "refill_s")}
    scalars["adaptive_token_s"] = float(data.get("adaptive_token_s", 0.0))
    tiers = tuple(int(size) for size in data["tiers"])
    return CostTable(_curve(data["draft"]), _curve(data["verify"]), tiers=tiers, **scalars)


def _calibrated(entry: dict[str, Any]) -> Calibrated:
    scales, bias = (tuple(float(x) for x in entry[key]) for key in ("scales", "bias"))
    return Calibrated(float(entry["temperature"]), scales, bias)


def write_policy(path: Path, exported: PolicyFile) -> None:
    """Write ``policy.json``; nothing appears under ``path`` until it is complete."""
    document = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "policy": exported.policy,
        "parameters": exported.config(),
        "gamma": exported.gamma,
        "calibration": [asdict(entry) for entry in exported.calibration],
        "cost": cost_to_json(exported.cost),
        "provenance": exported.provenance,
    }
    write_json(path, document)


def write_json(path: Path, document: Any) -> None:
    """Write JSON to a temporary file, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    temporary.rename(path)


def policy_file(text: str) -> PolicyFile | None:
    """The file that the text of a policy names, by its ending; None for a policy given by name."""
    return read_policy(Path(text)) if text.endswith(".json") else None


def read_policy(path: Path) -> PolicyFile:
    """Read ``policy.json``; ValueError with one line that names the file and what is wrong."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"policy file {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"policy file {path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ValueError(f"{path} is not a policy file: no kind {KIND!r}; write one with --export")
    if document.get("schema_version") != SCHEMA_VERSION:
        version = document.get("schema_version")
        raise ValueError(f"policy file {path}: schema_version {version!r}, known: {SCHEMA_VERSION}")
    try:
        return PolicyFile(
            policy=document["policy"],
            parameters=document["parameters"],
            gamma=document["gamma"],
            cost=cost_from_json(document["cost"]),
            calibration=tuple(_calibrated(entry) for entry in document["calibration"]),
            provenance=document["provenance"],
        )
    except KeyError as error:
        raise ValueError(f"policy file {path} has no field {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy file {path}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """Convert a policy file to what an engine loads."""
    from policies.engines import ENGINES

    parser = argparse.ArgumentParser(prog="python -m policies.export", description=main.__doc__)
    parser.add_argument("policy", type=Path, help="policy.json, as written by --export")
    parser.add_argument("--engine", choices=sorted(ENGINES), required=True)
    parser.add_argument("--out", type=Path, default=Path(), help="folder (default: here)")
    arguments = parser.parse_args(argv)
    try:
        files = ENGINES[arguments.engine](read_policy(arguments.policy))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, document in files.items():
        write_json(arguments.out / name, document)
        print(f"wrote {arguments.out / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
