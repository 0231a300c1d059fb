"""SGLang's ``sps_table.json``, both forms, as the belief that SGLang would hold.

1-D: steps per second at probed token counts, looked up at the largest probe not above (floor).
Additive: bias + alpha(R) + theta(T), each interpolated linearly and clamped at both ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_traces.ingest import read_json
from policies.cost import CostTable, densify

Floats = npt.NDArray[np.float64]


def read_sps_table(path: Path | str, gamma: int = 7, max_requests: int = 256) -> CostTable:
    """A belief for blocks of ``gamma``; ValueError names the file and the field that is wrong.

    In the additive form bias and alpha(R) stand where a drafting cost stands: they go with R. The
    1-D form has no such part.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: must be a JSON object")
    if "bias_seconds" in document:
        return _additive(document, str(path), gamma, max_requests)
    probes = _numbers(document, "sample_batch_tokens", str(path), rising=True)
    rate = _numbers(document, "sample_steps_per_sec", str(path))
    _same_size(probes, rate, str(path))
    if (rate <= 0).any():
        raise ValueError(f"{path}: sample_steps_per_sec must be above 0, got {rate.tolist()}")
    last = int(document.get("max_batch_tokens") or probes[-1])
    dense = densify(probes, 1.0 / rate, "floor", max(last, int(probes[-1])) + 1)
    return CostTable(np.zeros((gamma + 1, max_requests + 1)), dense)


def _additive(document: Any, where: str, gamma: int, max_requests: int) -> CostTable:
    bias = float(document["bias_seconds"])
    if not bias > 0:
        raise ValueError(f"{where}: bias_seconds must be above 0, got {bias}")
    requests = _numbers(document, "bs_probes", where, rising=True)
    alpha = _numbers(document, "alpha_seconds", where)
    tokens = _numbers(document, "m_probes", where, rising=True)
    theta = _numbers(document, "theta_seconds", where)
    _same_size(requests, alpha, where)
    _same_size(tokens, theta, where)
    per_request = bias + np.interp(np.arange(max_requests + 1), requests, alpha)
    draft_s = np.tile(per_request, (gamma + 1, 1))
    draft_s[0] = 0.0
    # one size past the last probe, so that the clamp goes on where the table ends
    return CostTable(draft_s, np.interp(np.arange(int(tokens[-1]) + 2), tokens, theta))


def _numbers(document: Any, key: str, where: str, rising: bool = False) -> Floats:
    try:
        values = np.array(document[key], dtype=np.float64)
    except KeyError:
        raise ValueError(f"{where}: field {key!r} is missing") from None
    except (TypeError, ValueError):
        raise ValueError(f"{where}: field {key!r} must be a list of numbers") from None
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{where}: field {key!r} must be a non-empty list of finite numbers")
    if rising and not (np.diff(values) > 0).all():
        raise ValueError(f"{where}: field {key!r} must strictly increase")
    return values


def _same_size(probes: Floats, values: Floats, where: str) -> None:
    if probes.size != values.size:
        raise ValueError(f"{where}: {probes.size} probes but {values.size} values")
