"""What a drafter is worth, as functions of its dense traces. Everything is counted over *walked*
rounds, as papers and engines count it; tokens per round include the bonus token.

A table has one row per group; ``half_width`` is 1.96 standard errors of the ratio
tokens / rounds, with the responses to one prompt taken as one draw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from gpu_traces.bundle import Bundle
from gpu_traces.walk import anchor_response, marginals, room, walk, walked_anchors

Ints = npt.NDArray[np.int64]

THRESHOLDS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def played(bundle: Bundle, lengths: Ints | int | None = None) -> pd.DataFrame:
    """One row per response: prompt_key, domain, dataset, rounds, tokens, verified drafts.

    ``lengths``: draft tokens verified per round, one number or one per anchor (default: all gamma).
    """
    traces = bundle.traces
    limit = np.broadcast_to(traces.gamma if lengths is None else lengths, traces.accepted.shape)
    stood = np.minimum(traces.accepted, limit).astype(np.int8)
    rows = walk(traces.first_anchor, stood, traces.gamma)
    owner = anchor_response(traces, rows)
    end = traces.first_anchor[owner + 1]
    gained = np.minimum(stood[rows] + 1, end - rows)
    verified = np.minimum(limit[rows], room(traces, rows))
    count = traces.responses
    frame = bundle.responses[["prompt_key", "domain", "dataset"]].copy()
    frame["rounds"] = np.bincount(owner, minlength=count)
    frame["tokens"] = np.bincount(owner, gained, minlength=count)
    frame["verified"] = np.bincount(owner, verified, minlength=count)
    return frame


def summarise(rounds: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """``played`` grouped: responses, rounds, tokens_per_round, half_width, verified per round."""
    records = []
    for names, part in rounds.groupby(by, sort=False):
        records.append(dict(zip(by, names, strict=True)) | _ratio(part))
    return pd.DataFrame(records)


def _ratio(part: pd.DataFrame) -> dict[str, float]:
    total = part["rounds"].sum()
    rate = part["tokens"].sum() / total
    per_prompt = part.groupby("prompt_key")[["tokens", "rounds"]].sum()
    residual = per_prompt["tokens"] - rate * per_prompt["rounds"]
    return {
        "responses": len(part),
        "rounds": int(total),
        "tokens_per_round": float(rate),
        "half_width": float(1.96 * np.sqrt((residual**2).sum()) / total),
        "verified_per_round": float(part["verified"].sum() / total),
    }


def accepted_lengths(bundle: Bundle) -> pd.DataFrame:
    """Tokens per round by domain and dataset, per domain, and over all (the paper's Table 1)."""
    rounds = played(bundle)
    parts = [summarise(rounds, ["domain", "dataset"]), _by_domain(rounds).assign(dataset="all")]
    return pd.concat(parts, ignore_index=True)


def _by_domain(rounds: pd.DataFrame) -> pd.DataFrame:
    """``summarise`` per domain, then over all of them."""
    every = summarise(rounds.assign(domain="all"), ["domain"])
    return pd.concat([summarise(rounds, ["domain"]), every], ignore_index=True)


def conditional_acceptance(bundle: Bundle) -> pd.DataFrame:
    """Per domain and draft position: accepted given all before were, and survival (Fig. 2)."""
    return marginals(bundle.traces, walked_anchors(bundle.traces))


def threshold_sweep(bundle: Bundle) -> pd.DataFrame:
    """Static thresholds on each position's own confidence: conditional, not calibrated (Fig. 5).

    A block is cut before the first position under the threshold. Per domain and over all:
    tokens_per_round, ``rejected`` drafts per round, and ``rate`` = tokens / (tokens + rejected).
    """
    parts = []
    for threshold in THRESHOLDS:
        kept = (bundle.raw_confidence >= threshold).cumprod(1).sum(1)
        table = _by_domain(played(bundle, kept))
        rejected = np.maximum(table["verified_per_round"] + 1 - table["tokens_per_round"], 0)
        rate = table["tokens_per_round"] / (table["tokens_per_round"] + rejected)
        parts.append(table.assign(threshold=threshold, rejected=rejected, rate=rate))
    return pd.concat(parts, ignore_index=True)


def length_sweep(bundle: Bundle) -> pd.DataFrame:
    """Tokens per round by domain and over all, 1..gamma drafts verified (Fig. 4)."""
    lengths = range(1, bundle.traces.gamma + 1)
    parts = [_by_domain(played(bundle, n)).assign(draft_length=n) for n in lengths]
    return pd.concat(parts, ignore_index=True)


def round_latency(bundle: Bundle) -> pd.DataFrame:
    """Median draft and verify time of a full-length round by batch size, milliseconds.

    Batch sizes are those that were measured in both modes; where the contexts differ, all count.
    ``overhead``: draft time over round time.
    """
    steps, gamma = bundle.steps, bundle.manifest.gamma
    draft = steps[(steps["mode"] == "draft") & (steps["draft_length"] == gamma)]
    verify = steps[(steps["mode"] == "verify")]
    verify = verify[verify["tokens"] == verify["requests"] * (gamma + 1)]
    table = pd.DataFrame(
        {
            "draft_ms": draft.groupby("requests")["microseconds"].median() / 1e3,
            "verify_ms": verify.groupby("requests")["microseconds"].median() / 1e3,
        }
    ).dropna()
    table["round_ms"] = table["draft_ms"] + table["verify_ms"]
    table["overhead"] = table["draft_ms"] / table["round_ms"]
    return table.rename_axis("requests").reset_index()
