"""The evaluation as Markdown: pure functions from the tables of ``drafters.evaluate`` to text.

Drafters stand in the order in which they were given, below each other, one temperature at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

Tables = dict[str, pd.DataFrame]
Shape = Callable[[pd.DataFrame], pd.DataFrame]

FEWEST_BLOCKS = 20
"""Blocks that must have reached a position for its conditional acceptance to be shown."""
SHOWN_POSITIONS = (1, 3, 5, 7)
"""Draft positions whose reliability is shown; all where there are at most four."""
HEADLESS = (
    "Confidences of drafters without a confidence head are their largest draft probabilities, which"
    " the head-free estimator learns from too, as it goes; of prompt lookup, whose drafts are all"
    " certain, they tell the length of the match."
)


def report(tables: Tables, origins: dict[str, str]) -> str:
    """All tables, sampled text first. ``origins``: drafter -> where it was recorded."""
    lines = ["# Drafters compared", "\n".join(f"- {name}: {o}" for name, o in origins.items())]

    def add(title: str, name: str, shape: Shape) -> None:
        lines.append(f"## {title}")
        table = in_order(tables[name])
        for heat in sorted(table["temperature"].unique(), reverse=True):
            part = shape(table[table["temperature"] == heat])
            lines.extend([f"T = {heat:g}:", markdown(part)])

    add("Tokens per round (bonus included), with 95 % intervals", "accepted_length", by_domain)
    add("Tokens per round by dataset", "accepted_length", by_dataset)
    if "depth_sweep" in tables:
        add("Tokens per round by draft layers, with 95 % intervals", "depth_sweep", by_depth)
    add("Conditional acceptance by draft position", "conditional_acceptance", by_position)
    add("Tokens per round by drafts verified", "length_sweep", by_length)
    add(
        "Tokens per round / rejected drafts / tokens over both by threshold on the raw confidence",
        "threshold_sweep",
        by_threshold,
    )
    add("Calibration of the prefix survival, mean over positions", "calibration", calibration)
    lines.append(HEADLESS)
    add("Prefix survival, mean predicted → observed, by draft position", "reliability", reliability)
    if "round_latency" in tables:
        table = by_requests(in_order(tables["round_latency"]))
        lines += ["## Time per round, ms (of it drafting), by running requests", markdown(table)]
    return "\n\n".join(lines) + "\n"


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Names sort as they first appear, in every later grouping."""
    names = [c for c in ("drafter", "domain", "method") if c in table]
    return table.assign(
        **{c: pd.Categorical(table[c], list(dict.fromkeys(table[c]))) for c in names}
    )


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; missing cells are dashes."""
    rows = [[str(c) for c in table.columns], ["---"] * table.shape[1]]
    rows += [["-" if pd.isna(v) else str(v) for v in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _wide(
    table: pd.DataFrame, rows: list[str], columns: list[str], cells: list[str]
) -> pd.DataFrame:
    """Cells by rows and columns, both sorted."""
    wide = table.assign(cell=cells).pivot(index=rows, columns=columns, values="cell")
    wide = wide.sort_index().sort_index(axis=1)
    wide.columns = pd.Index([": ".join(c) if isinstance(c, tuple) else c for c in wide.columns])
    return wide.reset_index()


def _intervals(table: pd.DataFrame) -> list[str]:
    pairs = zip(table["tokens_per_round"], table["half_width"], strict=True)
    return [f"{mean:.2f} ± {half:.2f}" for mean, half in pairs]


def by_domain(accepted: pd.DataFrame) -> pd.DataFrame:
    """The means of Table 1: a row per drafter, a column per domain."""
    table = accepted[accepted["dataset"] == "all"]
    return _wide(table, ["drafter"], ["domain"], _intervals(table))


def by_dataset(accepted: pd.DataFrame) -> pd.DataFrame:
    """Table 1: a row per drafter, a column per dataset, domain by domain."""
    table = accepted[accepted["dataset"] != "all"]
    cells = [f"{value:.2f}" for value in table["tokens_per_round"]]
    return _wide(table, ["drafter"], ["domain", "dataset"], cells)


def by_depth(accepted: pd.DataFrame) -> pd.DataFrame:
    """Fig. 3: depths of one family and domain beside each other."""
    return _wide(accepted, ["family", "domain"], ["layers"], _intervals(accepted))


def by_position(conditional: pd.DataFrame) -> pd.DataFrame:
    """Fig. 2: drafters of one domain below each other, a column per position."""
    pairs = zip(conditional["conditional"], conditional["reached"], strict=True)
    cells = [f"{value:.3f}" if reached >= FEWEST_BLOCKS else "-" for value, reached in pairs]
    return _wide(conditional, ["domain", "drafter"], ["position"], cells)


def by_length(sweep: pd.DataFrame) -> pd.DataFrame:
    """Fig. 4 over all domains: a column per number of verified drafts."""
    table = sweep[sweep["domain"] == "all"]
    cells = [f"{value:.2f}" for value in table["tokens_per_round"]]
    return _wide(table, ["drafter"], ["draft_length"], cells)


def by_threshold(sweep: pd.DataFrame) -> pd.DataFrame:
    """Fig. 5 over all domains: a column per threshold."""
    table = sweep[sweep["domain"] == "all"]
    numbers = zip(table["tokens_per_round"], table["rejected"], table["rate"], strict=True)
    cells = [f"{tokens:.2f} / {rejected:.2f} / {rate:.3f}" for tokens, rejected, rate in numbers]
    return _wide(table, ["drafter"], ["threshold"], cells)


def calibration(scores: pd.DataFrame) -> pd.DataFrame:
    """ECE of every method; AUC and Brier of the raw head and of the last two methods."""
    keys = ["drafter", "method"]
    means = scores.groupby(keys, observed=True)[["ece", "auc", "brier"]].mean().reset_index()
    parts = []
    for name, form in (("ece", "{:.2%}"), ("auc", "{:.3f}"), ("brier", "{:.3f}")):
        kept = means if name == "ece" else means[means["method"] != "sts"]
        parts.append(kept.assign(score=name.upper(), cell=kept[name].map(form.format)))
    table = pd.concat(parts)
    table["score"] = pd.Categorical(table["score"], ["ECE", "AUC", "BRIER"])
    return _wide(table, ["drafter"], ["score", "method"], list(table["cell"]))


def shown_positions(diagrams: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``SHOWN_POSITIONS``."""
    few = diagrams["position"].max() <= len(SHOWN_POSITIONS)
    return diagrams if few else diagrams[diagrams["position"].isin(SHOWN_POSITIONS)]


def reliability(diagrams: pd.DataFrame) -> pd.DataFrame:
    """The means of Fig. 6: a row per drafter and calibration, a column per position."""
    table, keys = shown_positions(diagrams), ["drafter", "method", "position"]
    sums = table[["predicted", "observed"]].mul(table["weight"], axis=0)
    sums = sums.assign(weight=table["weight"]).groupby([table[key] for key in keys], observed=True)
    means = sums.sum().reset_index()
    pairs = zip(means["predicted"], means["observed"], means["weight"], strict=True)
    cells = [f"{told / mass:.3f} → {seen / mass:.3f}" for told, seen, mass in pairs]
    return _wide(means, ["drafter", "method"], ["position"], cells)


def by_requests(latency: pd.DataFrame) -> pd.DataFrame:
    """A row per number of running requests, a column per drafter."""
    pairs = zip(latency["round_ms"], latency["draft_ms"], strict=True)
    cells = [f"{whole:.2f} ({draft:.2f})" for whole, draft in pairs]
    return _wide(latency, ["requests"], ["drafter"], cells)
