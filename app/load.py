"""Cached readers and runs: everything that pages show comes through here.

Results are shared between pages and sessions; treat them as read-only. Errors of the user
(ValueError, OSError) carry one line to show.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import frames
from gpu_traces import published
from gpu_traces.bundle import Bundle, BundleError, default_bundle, list_bundles, read_bundle
from gpu_traces.files import read_frame
from gpu_traces.fit import FitReport
from gpu_traces.latency import LatencyModel
from gpu_traces.published import published_traces, trace_names
from gpu_traces.schema import TABLES, AcceptanceTraces
from sim import run, setup
from sim.capacity import LOADS
from sim.metrics import summarize
from sim.setup import OWN, PUBLISHED
from sim.simulate import simulate

RUNS = Path("runs")
"""Where ``python -m sim.run`` leaves its folders."""

NEEDED = (
    *("bundle", "origin", "latency", "latency_origin", "scenario", "requests", "load_rps"),
    *("concurrency", "replicas", "seed", "policies", "paired"),
)
"""What a run folder's summary must hold."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a page asks of the simulator; the same words as the options of ``sim.run``."""

    bundle: str
    latency: str = ""
    scenario: str = OWN
    policies: tuple[str, ...] = ()
    load: str = ""
    """A load word, ``recorded`` or requests per second; empty with ``concurrency``."""
    concurrency: int = 0
    requests: int = 2000
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Options of ``sim.run`` that differ from their defaults."""
        asked = {
            "policy": list(self.policies),
            "bundle": self.bundle,
            "latency": self.latency,
            "scenario": "" if self.scenario == OWN else self.scenario,
            "load": self.load,
            "concurrency": self.concurrency,
            "requests": self.requests,
            "seed": self.seed,
        }
        return {name: value for name, value in asked.items() if value}

    def command(self) -> str:
        """The command line that makes the same run."""
        words = ["python", "-m", "sim.run"]
        for name, value in self.options().items():
            text = ",".join(value) if isinstance(value, list) else str(value)
            words += [f"--{name}", shlex.quote(text)]
        return " ".join(words)


@dataclass(frozen=True)
class Served:
    """One policy's run: its summary (``sim.metrics.summarize``) and request records."""

    summary: dict[str, Any]
    requests: pd.DataFrame


@dataclass(frozen=True)
class StepTimes:
    """Step times as a page shows them; a published source has no samples and no error."""

    model: LatencyModel
    report: FitReport | None
    samples: pd.DataFrame


def acceptance_names() -> list[str]:
    """What can be replayed: shipped bundles, best first, then published sources."""
    return _bundles() + [PUBLISHED + name for name in trace_names()]


def latency_names() -> list[str]:
    """What has step times: shipped bundles, best first, then published sources."""
    return _bundles() + [PUBLISHED + name for name in published.latency_names()]


def _bundles() -> list[str]:
    names = list_bundles()
    try:
        first = default_bundle()
    except BundleError:
        return names
    return [first, *(name for name in names if name != first)]


@st.cache_resource(max_entries=8, show_spinner="Reading the bundle")
def _bundle(name: str, temperature: float | None = None) -> Bundle:
    return read_bundle(name, temperature)


@st.cache_resource(max_entries=8, show_spinner="Reading the traces")
def traces(name: str, temperature: float | None = None) -> AcceptanceTraces:
    """Acceptance traces of a bundle (shipped name or folder) or a published source."""
    if name.startswith(PUBLISHED):
        return published_traces(name.removeprefix(PUBLISHED))
    return _bundle(name, temperature).traces


@st.cache_data(max_entries=16, show_spinner="Walking the traces")
def acceptance(name: str, temperature: float) -> pd.DataFrame:
    """``frames.acceptance`` at one temperature."""
    return frames.acceptance(traces(name, temperature))


@st.cache_data(max_entries=16, show_spinner="Walking the traces")
def reliability(name: str, temperature: float) -> pd.DataFrame:
    """``frames.reliability`` of raw and, where a calibration was fitted, calibrated confidences."""
    found = traces(name, temperature)
    if name.startswith(PUBLISHED):
        plain = published_traces(name.removeprefix(PUBLISHED), calibrated=False)
        raw, method = plain.confidence, "sts"
    else:
        bundle = _bundle(name, temperature)
        entry = bundle.manifest.calibration_at(temperature)
        raw, method = bundle.raw_confidence, entry.method if entry else ""
    parts = [frames.reliability(found, raw, "raw")]
    if method:
        parts.append(frames.reliability(found, found.confidence, f"calibrated ({method})"))
    return pd.concat(parts, ignore_index=True)


@st.cache_resource(max_entries=8, show_spinner="Fitting the step times")
def step_times(name: str) -> StepTimes:
    """Step times of a bundle (shipped name or folder) or a published source."""
    if name.startswith(PUBLISHED):
        model = published.published_latency(name.removeprefix(PUBLISHED))
        return StepTimes(model, None, pd.DataFrame({c.name: [] for c in TABLES["steps"]}))
    bundle = _bundle(name)
    return StepTimes(*bundle.latency_fit, bundle.steps)


@st.cache_resource(max_entries=8, show_spinner="Reading the bundle")
def _world(name: str, latency: str) -> setup.Setup:
    args = run.parser().parse_args([])
    args.bundle, args.latency = name, latency
    return setup.build(args)


def world(settings: Settings) -> setup.Setup:
    """What the policies of a comparison have in common."""
    made = _world(settings.bundle, settings.latency)
    return replace(
        made,
        config=replace(made.config, concurrency=settings.concurrency),
        scenario=settings.scenario,
        requests=settings.requests,
        seed=settings.seed,
    )


@st.cache_data(max_entries=64, show_spinner="Finding what no speculation sustains")
def capacity_rps(settings: Settings) -> float:
    """Requests/s that policy ``none`` sustains; give it settings without policies and load."""
    return world(settings).capacity_rps()


def load_rps(settings: Settings) -> float | None:
    """Requests/s of an open-loop run; None for traffic at its recorded rate or a closed loop."""
    if settings.concurrency:
        return None
    yardstick = replace(settings, policies=(), load="")
    word = settings.load in LOADS
    return setup.load_rps(settings.load, capacity_rps(yardstick) if word else 0.0)


@st.cache_resource(max_entries=256, show_spinner=False)
def served(settings: Settings, policy: str) -> Served:
    """Run one policy, as ``sim.run`` does; give it settings without policies."""
    made = world(settings)
    if made.closed and not settings.concurrency:
        raise ValueError(f"scenario {made.scenario} is a closed loop of users; set a concurrency")
    [(_, name, parameters)] = setup.check_policies([policy], made.traces.gamma)
    workload = run.traffic(made, load_rps(settings))
    records = simulate(
        made.traces, made.latency, workload, name, made.config, settings.seed, **parameters
    )
    return Served(summarize(records, made.slos), records.requests)


def origins(made: setup.Setup) -> dict[str, str]:
    """Where acceptance and step times of a simulation come from, and whether drafting is free."""
    free = "" if made.latency.draft_s.any() else ", drafting free"
    return {
        f"Acceptance of {made.traces.name}": str(made.traces.origin),
        f"Step times of {made.latency.name}{free}": str(made.latency.origin),
    }


@dataclass(frozen=True)
class Run:
    """A run folder in memory; tables have a ``policy`` column."""

    summary: dict[str, Any]
    provenance: dict[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame


def runs() -> list[str]:
    """Run folders in the working directory, newest first."""
    found = [path.parent for path in RUNS.glob("*/summary.json")]
    return [str(p) for p in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def run_folder(folder: str) -> Run:
    """Read a folder that ``sim.run`` wrote; ValueError names what is missing."""
    path = Path(folder) / "summary.json"
    if not path.is_file():
        raise ValueError(
            f"{folder}: not a run folder, it has no summary.json; make one with sim.run"
        )
    return _run_folder(folder, path.stat().st_mtime_ns)


def of_policy(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """One policy's rows of a run folder's table, numbered from 0."""
    return table[table["policy"] == label].drop(columns="policy").reset_index(drop=True)


@st.cache_resource(max_entries=8, show_spinner="Reading the run folder")
def _run_folder(folder: str, _stamp: int) -> Run:
    summary = _document(Path(folder) / "summary.json")
    missing = [key for key in NEEDED if key not in summary]
    try:
        frames.comparison({} if missing else summary["policies"])
    except KeyError as error:
        missing = [f"policies.*.{error.args[0]}"]
    if missing:
        raise ValueError(
            f"{folder}/summary.json has no {missing[0]}: written by another version; run it again"
        )
    return Run(
        summary,
        _document(Path(folder) / "provenance.json"),
        read_frame(Path(folder) / "requests.parquet"),
        read_frame(Path(folder) / "steps.parquet"),
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return found
