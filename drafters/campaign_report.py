"""The generated part of docs/recording.md: tables and plots of bundles, grouped by machine.

Everything is computed from bundles and carries their origin; what was measured on different
machines never shares a table or a plot; threads of a processor are noted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from drafters.calibrate import calibrate_bundle
from drafters.campaign_check import bundle_folders
from drafters.comparison import FEWEST_BLOCKS, markdown
from drafters.errors import UserError
from drafters.evaluate import labels
from drafters.measures import accepted_lengths, conditional_acceptance, round_latency
from gpu_traces.bundle import Bundle, read_bundle
from gpu_traces.svg import COLOURS, Line, Panel, figure

BEGIN, END = "<!-- recorded: begin -->", "<!-- recorded: end -->"
SHOWN_POSITIONS = (1, 3, 7)
THREADS = r"(\d+ threads?) of "
"""Of a processor, in the name of a machine."""


def write(folders: Sequence[Path], page: Path) -> None:
    """Replace what stands between the page's markers; plots go to ``img`` beside the page.

    UserError for a page without markers; a page that does not exist is made.
    """
    bundles = collect(folders)
    text = page.read_text() if page.exists() else f"# Recorded\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise UserError(f"{page} has no lines {BEGIN} and {END}; add them where tables shall go")
    devices = {machine_of(b): b.manifest.device for b in bundles}
    machines = sorted(devices, key=lambda machine: (devices[machine] == "cpu", machine))
    parts = [_machine(m, [b for b in bundles if machine_of(b) == m], page) for m in machines]
    body = "\n\n".join(parts) or "Nothing has been recorded yet."
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    _replace(page, f"{text[:start]}\n\n{body}\n\n{text[end:]}")


def machine_of(bundle: Bundle) -> str:
    """The machine that a bundle was measured on, however many of its threads were used."""
    return re.sub(THREADS, "", bundle.manifest.origin.detail)


def collect(folders: Sequence[Path]) -> list[Bundle]:
    """Every measured bundle below the folders, read with all checks."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
    every = [read_bundle(path) for folder in folders for path in bundle_folders(folder)]
    return [b for b in every if b.manifest.kind == "measured"]


def _machine(machine: str, bundles: list[Bundle], page: Path) -> str:
    """The section of one machine."""
    traced = [b for b in bundles if b.manifest.has_traces]
    timed = [b for b in bundles if b.manifest.has_steps]
    live = [b for b in bundles if b.live_steps is not None]
    parts = [f"### Measured on {machine}", markdown(_overview([*traced, *timed]))]
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")

    def add(title: str, name: str, text: str) -> None:
        image = page.parent / "img" / f"recorded_{slug}_{name}.svg"
        image.parent.mkdir(parents=True, exist_ok=True)
        _replace(image, text)
        parts.append(f"![{title}](img/{image.name})")

    if traced:
        parts += [
            "Tokens per round (full block verified, bonus included):",
            markdown(_gain(traced)),
        ]
        for temperature in sorted({t for b in traced for t in b.manifest.temperatures}):
            title = f"Conditional acceptance by position and domain, T = {temperature:g}"
            add(title, f"acceptance_T{temperature:g}", acceptance(traced, temperature))
        scores, diagrams = calibrations(traced)
        if len(scores):
            parts += ["Calibration error of the prefix survival, held-out prompts, mean over"
                      " positions:", markdown(scores)]  # fmt: skip
            add("Reliability before and after calibration", "reliability", reliability(diagrams))
    if timed:
        parts += ["Latency models, error on shapes not fitted on:", markdown(_fits(timed))]
        add("Target pass by tokens of the step", "steps", staircases(timed))
        drafted = [b for b in timed if (b.steps["mode"] == "draft").any()]
        if drafted:
            parts += ["Time of a full-length round:", markdown(_rounds(drafted))]
            add("Drafting a full block by running requests", "drafts", draft_cost(drafted))
    if live:
        parts += ["Live runs:", markdown(_live(live))]
    return "\n\n".join(parts)


# --- tables ---


def _overview(bundles: list[Bundle]) -> pd.DataFrame:
    rows = {}
    for bundle in bundles:
        m = bundle.manifest
        notes = re.findall(THREADS, m.origin.detail) + ["latency only"] * (not m.has_traces)
        rows[m.name] = {
            "bundle": m.name,
            "target": m.target,
            "drafter": m.drafter or "none",
            "recorded": m.created[:10],
            "rows": ", ".join(f"{info.rows:,} {name}" for name, info in m.files.items()),
            "note": ", ".join(notes),
        }
    return pd.DataFrame(rows.values())


def _gain(bundles: list[Bundle]) -> pd.DataFrame:
    rows = []
    for label, bundle in zip(labels(bundles), bundles, strict=True):
        for temperature in bundle.manifest.temperatures:
            table = accepted_lengths(read_bundle(bundle.folder, temperature))
            means = table[table["dataset"] == "all"]
            row = {"drafter": label, "T": f"{temperature:g}"}
            row |= {
                domain: f"{mean:.2f} ± {half:.2f}"
                for domain, mean, half in zip(
                    means["domain"], means["tokens_per_round"], means["half_width"], strict=True
                )
            }
            rows.append(row)
    return pd.DataFrame(rows).fillna("")


def calibrations(bundles: list[Bundle]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean scores of every bundle; reliability data of the first DSpark one (else the first)."""
    scores, diagrams = [], []
    first = min(bundles, key=lambda b: ("dspark" not in b.manifest.drafter, b.name))
    for label, bundle in zip(labels(bundles), bundles, strict=True):
        try:
            _, table, diagram = calibrate_bundle(bundle)
        except UserError:  # too few prompts for a fitting and a reporting half
            continue
        mean = table.groupby(["temperature", "method"], sort=False)[["ece", "auc", "brier"]].mean()
        scores.append(mean.round(4).reset_index().assign(drafter=label))
        if bundle is first:
            diagrams.append(diagram.assign(drafter=label))
    if not scores:
        return pd.DataFrame(), pd.DataFrame()
    table = pd.concat(scores)[["drafter", "temperature", "method", "ece", "auc", "brier"]]
    return table, pd.concat(diagrams) if diagrams else pd.DataFrame()


def _fits(bundles: list[Bundle]) -> pd.DataFrame:
    rows = [{"bundle": b.name, "fit": str(b.latency_fit[1])} for b in bundles]
    return pd.DataFrame(rows)


def _rounds(bundles: list[Bundle]) -> pd.DataFrame:
    tables = [round_latency(b).assign(bundle=b.name) for b in bundles]
    table = pd.concat(tables).round(3)
    return table[["bundle", *(c for c in table if c != "bundle")]]


def _live(bundles: list[Bundle]) -> pd.DataFrame:
    rows = []
    for bundle in bundles:
        steps, requests = bundle.live_steps, bundle.live_requests
        assert steps is not None
        assert requests is not None
        parts = ["draft_us", "verify_us", "plan_us", "overhead_us"]
        busy_s = steps[parts].sum().sum() / 1e6
        rounds = max(1, int(requests["rounds"].sum()))
        decoded = int((requests["output_tokens"] - 1).clip(lower=0).sum())
        rows.append(
            {
                "run": bundle.name,
                "T": ", ".join(f"{t:g}" for t in bundle.manifest.temperatures),
                "requests": len(requests),
                "tok/s while busy": round(requests["output_tokens"].sum() / busy_s, 1),
                "tokens/round": round(decoded / rounds, 3),
                "verified/round": round(requests["verified"].sum() / rounds, 2),
                "mean step ms": round(1e3 * busy_s / len(steps), 2),
            }
        )
    return pd.DataFrame(rows)


# --- plots ---


def acceptance(bundles: list[Bundle], temperature: float) -> str:
    """One panel per domain, one line per drafter, as far as enough blocks reach."""
    shown = [b for b in bundles if temperature in b.manifest.temperatures]
    tables = {
        label: conditional_acceptance(read_bundle(bundle.folder, temperature))
        for label, bundle in zip(labels(shown), shown, strict=True)
    }
    domains = sorted({d for t in tables.values() for d in t["domain"]})
    panels = []
    for domain in domains:
        lines = []
        for i, (name, table) in enumerate(tables.items()):
            enough = table["reached"] >= FEWEST_BLOCKS
            mine = table[(table["domain"] == domain) & enough]
            if len(mine) > 1:
                lines.append(_line(name, mine["position"], mine["conditional"], i))
        _append(panels, f"{domain}, T = {temperature:g}", "draft position", "accepted", lines, 1.0)
    return figure(panels)


def reliability(diagrams: pd.DataFrame) -> str:
    """Observed against predicted survival, raw and calibrated; a row of panels per temperature."""
    panels: list[Panel] = []
    if diagrams.empty:
        return figure(panels)
    for temperature, part in diagrams.groupby("temperature"):
        for position in sorted(set(SHOWN_POSITIONS) & set(part["position"])):
            here = part[part["position"] == position]
            lines = [Line("exact", [0.0, 1.0], [0.0, 1.0], 5)]
            for i, method in enumerate(("none", "sts+bias")):
                mine = here[here["method"] == method]
                label = "before" if method == "none" else "after"
                lines.append(Line(label, mine["predicted"], mine["observed"], 1 - i, points=True))
            name = f"{part['drafter'].iloc[0]}, T = {temperature:g}, position {position}"
            _append(panels, name, "predicted survival", "observed", lines, 1.0)
    return figure(panels)


def staircases(bundles: list[Bundle]) -> str:
    """Time of target passes at the shortest context, one panel per target."""
    return _by_target(bundles, "verify", "tokens", "tokens of the pass", lambda rows: rows)


def draft_cost(bundles: list[Bundle]) -> str:
    """Time to draft the longest block at the shortest context, one panel per target."""

    def longest(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["draft_length"] == rows["draft_length"].max()]

    return _by_target(bundles, "draft", "requests", "running requests", longest)


def _by_target(
    bundles: list[Bundle],
    mode: str,
    size: str,
    label: str,
    choose: Callable[[pd.DataFrame], pd.DataFrame],
) -> str:
    panels: list[Panel] = []
    for target in sorted({b.manifest.target for b in bundles}):
        lines = []
        for i, bundle in enumerate(b for b in bundles if b.manifest.target == target):
            steps = bundle.steps
            rows = choose(steps[(steps["mode"] == mode) & ~steps["ragged"].astype(bool)])
            rows = rows[rows["context_tokens"] == rows["context_tokens"].min()]
            median = rows.groupby(size)["microseconds"].median() / 1e3
            if len(median) > 1:
                name = bundle.name.removeprefix(f"{target}-")
                lines.append(_line(name, median.index.to_numpy(), median.to_numpy(), i))
        _append(panels, f"{target}, {mode}", label, "ms", lines)
    return figure(panels)


def _line(label: str, x: object, y: object, index: int) -> Line:
    return Line(label, np.asarray(x, float), np.asarray(y, float), index % len(COLOURS))


def _append(
    panels: list[Panel], title: str, x: str, y: str, lines: list[Line], top: float = 0.0
) -> None:
    """Add a panel unless it would be empty; ``top`` 0: as high as the data."""
    if lines:
        highest = top or 1.05 * max(float(np.max(line.y)) for line in lines)
        panels.append(Panel(title, x, y, lines, (0.0, highest)))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
