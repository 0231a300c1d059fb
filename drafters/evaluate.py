"""Evaluate drafters from their dense traces: ``python -m drafters.evaluate BUNDLE ... --out DIR``.

One bundle or several (families, depths, block sizes: a bundle each, recorded with
``python -m drafters.trace record``). Writes report.md, a CSV per measure and report.html with the
figures (PNG files too where kaleido is installed). All measures are those of
``drafters.measures`` and ``drafters.calibrate``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from drafters import figures, measures
from drafters.calibrate import calibrate_bundle
from drafters.errors import UserError
from gpu_traces.bundle import Bundle, BundleError, read_bundle

MEASURES: dict[str, Callable[[Bundle], pd.DataFrame]] = {
    "accepted_length": measures.accepted_lengths,
    "conditional_acceptance": measures.conditional_acceptance,
    "threshold_sweep": measures.threshold_sweep,
    "length_sweep": measures.length_sweep,
}


def evaluate(bundles: list[Bundle]) -> dict[str, pd.DataFrame]:
    """Every measure of every bundle and temperature, one table per measure.

    Columns ``drafter`` and ``temperature`` lead. Bundles must have different names.
    """
    names = [bundle.name for bundle in bundles]
    if len(set(names)) < len(names):
        raise UserError(
            f"bundles {', '.join(names)}: names repeat; rename a folder's manifest name"
        )
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in MEASURES}
    parts |= {"calibration": [], "reliability": [], "round_latency": []}
    for bundle in bundles:
        label = f"{bundle.manifest.drafter} ({bundle.name})"
        for temperature in bundle.manifest.temperatures:
            part = read_bundle(bundle.folder, temperature)
            for name, measure in MEASURES.items():
                parts[name].append(_labelled(measure(part), label, temperature))
        _, scores, diagrams = calibrate_bundle(bundle)
        parts["calibration"].append(_labelled(scores, label))
        parts["reliability"].append(_labelled(diagrams, label))
        if bundle.manifest.has_steps:
            parts["round_latency"].append(_labelled(measures.round_latency(bundle), label))
    return {name: pd.concat(each, ignore_index=True) for name, each in parts.items() if each}


def _labelled(table: pd.DataFrame, drafter: str, temperature: float | None = None) -> pd.DataFrame:
    if temperature is not None:
        table = table.assign(temperature=temperature)
    leading = [c for c in ("temperature",) if c in table]
    return table.assign(drafter=drafter)[
        ["drafter", *leading, *(c for c in table if c not in leading)]
    ]


def report(tables: dict[str, pd.DataFrame], bundles: list[Bundle]) -> str:
    """The Markdown report: Table 1, conditional acceptance, calibration, latency."""
    origins = "\n".join(f"- {b.manifest.drafter} ({b.name}): {b.manifest.origin}" for b in bundles)
    lines = [
        "# Drafters compared",
        origins,
        "## Tokens per round (bonus included), with 95 % intervals",
        markdown(table_one(tables["accepted_length"])),
        "## Conditional acceptance by draft position",
        markdown(by_position(tables["conditional_acceptance"])),
        "## Calibration error of the prefix survival, mean over positions",
        markdown(calibration_means(tables["calibration"])),
    ]
    if "round_latency" in tables:
        lines += ["## Time per round, ms", markdown(tables["round_latency"].round(3))]
    return "\n\n".join(lines) + "\n"


def table_one(accepted: pd.DataFrame) -> pd.DataFrame:
    """Rows: drafter and temperature; columns: datasets grouped by domain, domain means, all."""
    text = accepted.assign(
        column=[
            domain if dataset == "all" else f"{domain}: {dataset}"
            for domain, dataset in zip(accepted["domain"], accepted["dataset"], strict=True)
        ],
        value=[
            f"{mean:.2f} ± {half:.2f}"
            for mean, half in zip(accepted["tokens_per_round"], accepted["half_width"], strict=True)
        ],
    )
    order = sorted(
        text["column"].unique(), key=lambda c: (c == "all", c.split(":")[0], ":" not in c)
    )
    wide = text.pivot(index=["drafter", "temperature"], columns="column", values="value")
    return wide[order].fillna("").rename_axis(columns=None).reset_index()


def by_position(conditional: pd.DataFrame) -> pd.DataFrame:
    """Conditional acceptance, one column per draft position."""
    wide = conditional.pivot(
        index=["drafter", "temperature", "domain"], columns="position", values="conditional"
    )
    return wide.round(3).rename_axis(columns=None).reset_index()


def calibration_means(scores: pd.DataFrame) -> pd.DataFrame:
    """ECE, AUC and Brier averaged over positions."""
    keys = ["drafter", "temperature", "method"]
    return scores.groupby(keys, sort=False)[["ece", "auc", "brier"]].mean().round(4).reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    rows = [[str(c) for c in table.columns], ["---"] * table.shape[1]]
    rows += [[str(v) for v in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write(tables: dict[str, pd.DataFrame], bundles: list[Bundle], out: Path) -> None:
    """All files of one evaluation, each by rename."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw(tables)
    texts = {f"{name}.csv": table.to_csv(index=False) for name, table in tables.items()}
    texts |= {"report.md": report(tables, bundles), "report.html": figures.page(drawn)}
    for name, text in texts.items():
        temporary = out / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out / name)
    if find_spec("kaleido"):
        for name, figure in drawn.items():
            figure.write_image(out / f"{name}.png", scale=2)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m drafters.evaluate", description=__doc__)
    made.add_argument("bundles", nargs="+", help="bundle folders, or names of shipped ones")
    made.add_argument("--out", type=Path, help="folder for report, tables and figures")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        bundles = [read_bundle(name) for name in args.bundles]
        tables = evaluate(bundles)
        if args.out:
            write(tables, bundles, args.out)
    except (UserError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(tables, bundles))
    return 0


if __name__ == "__main__":
    sys.exit(main())
