"""Cached readers and runs: everything that pages show comes through here.

Results are shared between pages and sessions; treat them as read-only. Errors of the user
(ValueError, OSError) carry one line to show.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import frames
from gpu_traces.bundle import Bundle, BundleError, default_bundle, list_bundles, read_bundle
from sim import run, setup
from sim.capacity import LOADS
from sim.metrics import summarize
from sim.simulate import simulate
from sim.workload import at_once

RUNS = Path("runs")
"""Where ``python -m sim.run`` leaves its folders."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a page asks of the simulator; the same words as the options of ``sim.run``."""

    bundle: str
    latency: str = ""
    policies: tuple[str, ...] = ()
    load: str = ""
    """A load word or requests per second; empty with ``concurrency``."""
    concurrency: int = 0
    requests: int = 2000
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Options of ``sim.run`` that differ from their defaults."""
        asked = {
            "policy": list(self.policies),
            "bundle": self.bundle,
            "latency": self.latency,
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


def bundles() -> list[str]:
    """Names of shipped bundles, the one that ``sim.run`` would choose first."""
    names = list_bundles()
    try:
        first = default_bundle()
    except BundleError:
        return names
    return [first, *(name for name in names if name != first)]


@st.cache_resource(max_entries=8, show_spinner="Reading the bundle")
def bundle(name: str, temperature: float | None = None) -> Bundle:
    """A checked bundle, of a shipped name or a folder."""
    return read_bundle(name, temperature)


@st.cache_resource(max_entries=8, show_spinner="Reading the bundle")
def _world(name: str, latency: str) -> setup.Setup:
    defaults = vars(run.parser().parse_args([]))
    return setup.build(argparse.Namespace(**{**defaults, "bundle": name, "latency": latency}))


def world(settings: Settings) -> setup.Setup:
    """What the policies of a comparison have in common."""
    made = _world(settings.bundle, settings.latency)
    config = replace(made.config, concurrency=settings.concurrency)
    return replace(made, config=config, requests=settings.requests, seed=settings.seed)


@st.cache_data(max_entries=64, show_spinner="Finding what no speculation sustains")
def capacity_rps(settings: Settings) -> float:
    """Requests/s that policy ``none`` sustains; give it settings without policies and load."""
    return world(settings).capacity_rps()


def load_rps(settings: Settings) -> float:
    """Requests/s of an open-loop run."""
    yardstick = replace(settings, policies=(), load="")
    word = settings.load in LOADS
    return setup.load_rps(settings.load, capacity_rps(yardstick) if word else 0.0)


@st.cache_resource(max_entries=256, show_spinner=False)
def served(settings: Settings, policy: str) -> Served:
    """Run one policy, as ``sim.run`` does; give it settings without policies."""
    made = world(settings)
    [(_, name, parameters)] = setup.check_policies([policy], made.traces.gamma)
    closed = settings.concurrency > 0
    workload = at_once(made.workload(1.0)) if closed else made.workload(load_rps(settings))
    records = simulate(
        made.traces, made.latency, workload, name, made.config, settings.seed, **parameters
    )
    return Served(summarize(records), records.requests)


def origins(made: setup.Setup) -> dict[str, str]:
    """Where acceptance and step times of a simulation come from."""
    return {
        f"acceptance of {made.bundle}": str(made.traces.origin),
        f"step times of {made.latency.name}": str(made.latency.origin),
    }


@st.cache_data(max_entries=16, show_spinner="Walking the traces")
def acceptance(name: str, temperature: float) -> pd.DataFrame:
    """``frames.acceptance`` of a bundle at one temperature."""
    return frames.acceptance(bundle(name, temperature).traces)


@st.cache_data(max_entries=16, show_spinner=False)
def reliability(name: str, temperature: float) -> pd.DataFrame:
    """``frames.reliability`` of raw and, where a calibration was fitted, calibrated confidences."""
    found = bundle(name, temperature)
    parts = [frames.reliability(found.traces, found.raw_confidence, "raw")]
    entry = found.manifest.calibration_at(temperature)
    if entry is not None:
        label = f"calibrated ({entry.method})"
        parts.append(frames.reliability(found.traces, found.traces.confidence, label))
    return pd.concat(parts, ignore_index=True)


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
    return Run(
        _document(Path(folder) / "summary.json"),
        _document(Path(folder) / "provenance.json"),
        pd.read_parquet(Path(folder) / "requests.parquet"),
        pd.read_parquet(Path(folder) / "steps.parquet"),
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return found
