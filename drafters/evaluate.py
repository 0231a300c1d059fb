"""Evaluate drafters from their dense traces: ``python -m drafters.evaluate BUNDLE ... --out DIR``.

One bundle or several (families, depths, block sizes: a bundle each, recorded with
``python -m drafters.trace record``). Writes report.md, a CSV per measure and report.html with the
figures (PNG files too where kaleido is installed). All measures are those of
``drafters.measures`` and ``drafters.calibrate``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from drafters import figures, measures
from drafters.calibrate import calibrate_bundle
from drafters.comparison import report
from drafters.errors import UserError, check_folder, exit_code, naming
from gpu_traces.bundle import Bundle, read_bundle
from gpu_traces.commands import Parser
from gpu_traces.files import replacing

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
    for label, bundle in zip(labels(bundles), bundles, strict=True):
        for temperature in bundle.manifest.temperatures:
            part = read_bundle(bundle.folder, temperature)
            for name, measure in MEASURES.items():
                parts[name].append(_labelled(measure(part), label, temperature))
        _, scores, diagrams = calibrate_bundle(bundle)
        parts["calibration"].append(_labelled(scores, label))
        parts["reliability"].append(_labelled(diagrams, label))
        if bundle.manifest.has_steps:
            parts["round_latency"].append(_labelled(measures.round_latency(bundle), label))
    tables = {name: pd.concat(each, ignore_index=True) for name, each in parts.items() if each}
    depths = depth_sweep(tables["accepted_length"], bundles)
    return tables if depths.empty else tables | {"depth_sweep": depths}


def depth_sweep(accepted: pd.DataFrame, bundles: list[Bundle]) -> pd.DataFrame:
    """``accepted_length`` over draft layers, by domain, of families that come in several depths;
    of equal ones the first."""
    told = pd.DataFrame(
        {"drafter": label, "family": m.drafter_family, "layers": m.drafter_layers}
        for label, m in zip(labels(bundles), (b.manifest for b in bundles), strict=True)
        if m.drafter_layers
    )
    if told.empty:
        return told
    told = told.drop_duplicates(["family", "layers"])
    several = told.groupby("family")["layers"].transform("nunique") > 1
    return accepted[accepted["dataset"] == "all"].merge(told[several], on="drafter")


def labels(bundles: list[Bundle]) -> list[str]:
    """A name for each: its drafter's, or the bundle's own where drafters repeat."""
    drafters = [bundle.manifest.drafter for bundle in bundles]
    return [
        name if drafters.count(name) == 1 else bundle.name
        for name, bundle in zip(drafters, bundles, strict=True)
    ]


def _labelled(table: pd.DataFrame, drafter: str, temperature: float | None = None) -> pd.DataFrame:
    if temperature is not None:
        table = table.assign(temperature=temperature)
    leading = [c for c in ("temperature",) if c in table]
    return table.assign(drafter=drafter)[
        ["drafter", *leading, *(c for c in table if c not in leading)]
    ]


def write(tables: dict[str, pd.DataFrame], text: str, out: Path) -> None:
    """All files of one evaluation, each by rename; ``text`` is the report."""
    drawn = figures.draw(tables)
    texts = {f"{name}.csv": table.to_csv(index=False) for name, table in tables.items()}
    texts |= {"report.md": text, "report.html": figures.page(drawn)}
    for name, content in texts.items():
        with naming(out / name), replacing(out / name) as path:
            path.write_text(content, encoding="utf-8")
    if find_spec("kaleido"):
        for name, figure in drawn.items():
            picture = out / f"{name}.png"
            with naming(picture), replacing(picture) as path:
                figure.write_image(path, scale=2)


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.evaluate", __doc__)
    made.add_argument("bundles", nargs="+", help="bundle folders, or names of shipped ones")
    made.add_argument("--out", type=Path, help="folder for report, tables and figures")
    return made


def run(args: argparse.Namespace) -> None:
    """Evaluate, print, write; UserError before the work where ``--out`` cannot be a folder."""
    if args.out:
        check_folder(args.out)
    bundles = [read_bundle(name) for name in args.bundles]
    tables = evaluate(bundles)
    origins = {
        label: f"{bundle.name}, {bundle.manifest.origin}"
        for label, bundle in zip(labels(bundles), bundles, strict=True)
    }
    text = report(tables, origins)
    print(text)
    if args.out:
        write(tables, text, args.out)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args), "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
