"""Calibrate a trace bundle's confidences: ``python -m drafters.calibrate BUNDLE``.

Sequential temperature scaling (STS): for k = 1..gamma in turn, T_k is the one of 41 log-spaced
values in 0.1..10 that minimises the calibration error of

    prod_{i<k} sigmoid(logit c_i / T_i) * sigmoid(logit c_k / T_k)   against   "prefix k accepted".

At temperature 0 the outcome is an argmax match and not 1 - TV, so the head is off by an offset that
no temperature mends. ``sts+bias`` fits Platt's form sigmoid(logit c_k / T_k + b_k) instead, in the
same sequence, by the log loss (the calibration error would be least for a constant) and a weak
normal prior on log T_k and b_k, which decides only where hardly any outcome does.

Fitted on the prompts of one half, reported on the other. Dense anchors stand on long, easy,
repetitive text more often than a decoder does, so by default anchors weigh as often as walks with
verification lengths 1..gamma visit them.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from drafters.errors import UserError, exit_code, naming
from drafters.reliability import expected_calibration_error, prefix_outcomes
from drafters.scores import Anchors, can_learn, identity, online_scores, reliability_data, scores
from gpu_traces.bundle import Bundle, Calibration, read_bundle
from gpu_traces.calibration import EDGE
from gpu_traces.commands import Parser
from gpu_traces.files import replacing
from gpu_traces.walk import anchor_response, room, walked_anchors

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TEMPERATURES = np.logspace(-1, 1, 41)
FIT_BINS = 15
PRIOR_PRECISION = np.array([4.0, 0.25])  # of log T_k and b_k: standard deviations 0.5 and 2


def fit_sts(
    confidence_raw: npt.ArrayLike,
    accepted: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    fits: npt.ArrayLike | None = None,
    temperature: float = 1.0,
) -> Calibration:
    """Plain STS on raw confidences [A, gamma] and accepted lengths [A].

    ``weight`` [A] of each anchor (1); ``fits`` [A] positions inside the response (all gamma);
    ``temperature`` is the sampling temperature that the result is labelled with.
    """

    def search(score: Floats, prefix: Floats, outcome: Floats, mass: Floats) -> tuple[float, float]:
        errors = [
            expected_calibration_error(prefix * expit(score / t), outcome, mass, FIT_BINS)
            for t in TEMPERATURES
        ]
        return float(TEMPERATURES[int(np.argmin(errors))]), 0.0

    return _fit("sts", search, confidence_raw, accepted, weight, fits, temperature)


def fit_sts_bias(
    confidence_raw: npt.ArrayLike,
    accepted: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    fits: npt.ArrayLike | None = None,
    temperature: float = 1.0,
) -> Calibration:
    """Scale and offset per position by sequential log loss; arguments as ``fit_sts``."""

    def search(score: Floats, prefix: Floats, outcome: Floats, mass: Floats) -> tuple[float, float]:
        precision = PRIOR_PRECISION * np.square(mass).sum()  # per anchor, as the loss is

        def loss(slope_and_bias: Floats) -> tuple[float, Floats]:
            s = expit(score * np.exp(slope_and_bias[0]) + slope_and_bias[1])
            p = np.clip(prefix * s, EDGE, 1 - EDGE)
            value = -(mass * np.where(outcome > 0, np.log(p), np.log1p(-p))).sum()
            value += (precision * np.square(slope_and_bias)).sum() / 2
            slope = mass * (p - outcome) * (1 - s) / (1 - p)
            scaled = score * np.exp(slope_and_bias[0])
            gradient = np.array([(slope * scaled).sum(), slope.sum()])
            return value, gradient + precision * slope_and_bias

        limits = [(-np.log(10), np.log(10)), (-10, 10)]
        found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=limits)
        return float(np.exp(-found.x[0])), float(found.x[1])

    return _fit("sts+bias", search, confidence_raw, accepted, weight, fits, temperature)


def _fit(
    method: str,
    search: Callable[[Floats, Floats, Floats, Floats], tuple[float, float]],
    confidence_raw: npt.ArrayLike,
    accepted: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    fits: npt.ArrayLike | None,
    temperature: float,
) -> Calibration:
    raw = np.asarray(confidence_raw, dtype=np.float64)
    gamma = raw.shape[1]
    mass = np.ones(len(raw)) if weight is None else np.asarray(weight, dtype=np.float64)
    within = np.full(len(raw), gamma) if fits is None else np.asarray(fits)
    outcomes = prefix_outcomes(accepted, gamma)
    logits = logit(np.clip(raw, EDGE, 1 - EDGE))
    prefix, scales, biases = np.ones(len(raw)), [], []
    for k in range(gamma):
        inside = (within > k) & (mass > 0)
        scale, bias = 1.0, 0.0
        if inside.any():
            # mean weight 1 keeps the optimiser's tolerances meaningful
            mine = mass[inside] / mass[inside].sum()
            scale, bias = search(logits[inside, k], prefix[inside], outcomes[inside, k], mine)
        prefix = prefix * expit(logits[:, k] / scale + bias)
        scales.append(scale)
        biases.append(bias)
    return Calibration(temperature, method, tuple(scales), tuple(biases))


METHODS: dict[str, Callable[..., Calibration]] = {"sts": fit_sts, "sts+bias": fit_sts_bias}


def bundle_anchors(
    bundle: Bundle, temperature: float, walked: bool = True
) -> tuple[Anchors, Anchors]:
    """The fitting and the reporting half of a bundle's anchors at one sampling temperature.

    A prompt belongs to one half with all its responses. ``walked`` weighs anchors by visits.
    """
    traces = bundle.traces
    rows = np.arange(traces.anchors)
    weight = visits(bundle) if walked else np.ones(traces.anchors)
    response = anchor_response(traces, rows)
    every = Anchors(
        bundle.raw_confidence.astype(np.float64),
        traces.accepted.astype(np.int64),
        room(traces, rows),
        weight,
        traces.max_prob.astype(np.float64),
    )
    first_half = np.array(
        [zlib.crc32(key.encode()) % 2 == 0 for key in bundle.responses["prompt_key"]]
    )
    here = np.isclose(traces.temperature, temperature)[response] & (weight > 0)
    halves = [every.rows(here & (first_half[response] == half)) for half in (True, False)]
    if min(len(half.accepted) for half in halves) == 0:
        raise UserError(
            f"{bundle.name}: too few prompts at temperature {temperature:g} for two halves;"
            " record more responses"
        )
    return halves[0], halves[1]


def visits(bundle: Bundle) -> Floats:
    """[A] share of the walks with verification lengths 1..gamma that visit each anchor."""
    traces = bundle.traces
    count = np.zeros(traces.anchors)
    for length in range(1, traces.gamma + 1):
        count[walked_anchors(traces, length)] += 1
    return count / traces.gamma


def calibrate_bundle(
    bundle: Bundle, walked: bool = True
) -> tuple[dict[str, list[Calibration]], pd.DataFrame, pd.DataFrame]:
    """Fit every method at every temperature of a bundle.

    Returns calibrations by method, scores (columns temperature, method, position, ece, auc, brier)
    and reliability data, both of the reporting half.
    """
    fitted: dict[str, list[Calibration]] = {name: [] for name in METHODS}
    tables, diagrams = [], []
    for temperature in bundle.manifest.temperatures:
        fit_half, report_half = bundle_anchors(bundle, temperature, walked)
        made = [identity(bundle.manifest.gamma, temperature)]
        for name, fit in METHODS.items():
            given = (fit_half.raw, fit_half.accepted, fit_half.weight, fit_half.fits)
            made.append(fit(*given, temperature))
            fitted[name].append(made[-1])
        for calibration in made:
            label = {"temperature": temperature, "method": calibration.method}
            tables.append(scores(report_half, calibration).assign(**label))
            diagrams.append(reliability_data(report_half, calibration).assign(**label))
        if can_learn(report_half):
            label = {"temperature": temperature, "method": "head-free, online"}
            tables.append(online_scores(report_half).assign(**label))
    return fitted, pd.concat(tables, ignore_index=True), pd.concat(diagrams, ignore_index=True)


def write_calibration(bundle: Bundle, calibrations: list[Calibration]) -> None:
    """Put calibrations (one per temperature) into the bundle's manifest, by rename."""
    with replacing(bundle.folder / "manifest.json") as path:
        path.write_text(replace(bundle.manifest, calibration=tuple(calibrations)).dump())


def markdown(table: pd.DataFrame) -> str:
    """Scores as Markdown: a row per temperature and method, ECE per position, then means."""
    positions = sorted(table["position"].unique())
    header = ["T", "method", *(f"ECE {k}" for k in positions), "mean ECE", "AUC", "Brier"]
    lines = [header, ["---"] * len(header)]
    for (temperature, method), part in table.groupby(["temperature", "method"], sort=False):
        errors = part.set_index("position")["ece"]
        cells = [f"{temperature:g}", str(method), *(f"{errors[k]:.1%}" for k in positions)]
        cells += [
            f"{errors.mean():.1%}",
            f"{part['auc'].mean():.3f}",
            f"{part['brier'].mean():.3f}",
        ]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def parser() -> argparse.ArgumentParser:
    made = Parser("python -m drafters.calibrate", __doc__)
    made.add_argument("bundle", help="bundle folder, or the name of one that ships")
    made.add_argument(
        "--method",
        choices=(*METHODS, "none"),
        default="sts+bias",
        help="what goes into the manifest; none removes what is there",
    )
    made.add_argument("--dense", action="store_true", help="weigh all anchors alike")
    made.add_argument("--dry-run", action="store_true", help="print only, leave the manifest")
    made.add_argument("--csv", type=Path, help="folder for scores.csv and reliability.csv")
    return made


def run(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    fitted, table, diagrams = calibrate_bundle(bundle, not args.dense)
    print(f"{bundle.name}: {bundle.manifest.origin}; reported on prompts not fitted on\n")
    print(markdown(table))
    if args.csv:
        for name, frame in {"scores": table, "reliability": diagrams}.items():
            path = args.csv / f"{name}.csv"
            with naming(path), replacing(path) as temporary:
                frame.to_csv(temporary, index=False)
    if not args.dry_run:
        write_calibration(bundle, fitted.get(args.method, []))
        print(f"\nwrote {args.method} into {bundle.folder / 'manifest.json'}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args), "stopped; the manifest is as it was")


if __name__ == "__main__":
    sys.exit(main())
