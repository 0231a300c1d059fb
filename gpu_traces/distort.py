"""What goes wrong with a drafter in service: confidences off calibration, a model gone stale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from gpu_traces.schema import AcceptanceTraces, Origin


def miscalibrated(traces: AcceptanceTraces, temperature: float) -> AcceptanceTraces:
    """Confidences with their logits divided by ``temperature``: below 1 too sure of themselves."""
    c = np.clip(traces.confidence.astype(np.float64), 1e-4, 1.0 - 1e-4)
    shown = expit(logit(c) / temperature).astype(np.float16).astype(np.float32)
    return replace(
        traces,
        origin=_noted(traces.origin, f"confidences' logits divided by {temperature:g}"),
        confidence=shown,
    )


def with_stale_copy(traces: AcceptanceTraces, loss: float, seed: int = 0) -> AcceptanceTraces:
    """Every response twice: as recorded, then with right drafts made wrong with chance ``loss``.

    The copies are responses n .. 2 n - 1, in domains of their own; their confidences do not know.
    """
    rng = np.random.default_rng(seed)
    right = rng.geometric(loss, traces.anchors) - 1  # before the first that is made wrong
    stale = np.minimum(traces.accepted, right).astype(np.int8)
    after = traces.request_id.max() + 1
    return replace(
        traces,
        origin=_noted(traces.origin, f"a copy made stale by {loss:g}"),
        domains=(*traces.domains, *(f"{name}, stale" for name in traces.domains)),
        request_id=np.concatenate([traces.request_id, after + traces.request_id]),
        domain=np.concatenate([traces.domain, traces.domain + np.int16(len(traces.domains))]),
        temperature=_twice(traces.temperature),
        prompt_tokens=_twice(traces.prompt_tokens),
        response_tokens=_twice(traces.response_tokens),
        first_anchor=np.append(traces.first_anchor, traces.anchors + traces.first_anchor[1:]),
        confidence=_twice(traces.confidence),
        accepted=np.concatenate([traces.accepted, stale]),
        alpha=_twice(traces.alpha),
        max_prob=_twice(traces.max_prob),
    )


def _twice(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([array, array])


def _noted(origin: Origin, note: str) -> Origin:
    return Origin(origin.kind, f"{origin.detail}; {note}")
