"""How well an engine's table predicted the steps that it then took."""

from __future__ import annotations

import numpy as np
import pandas as pd

from policies.cost import CostTable


def step_error(steps: pd.DataFrame, cost: CostTable) -> dict[str, float]:
    """Believed over true time of the decoding steps, less 1: mean, and mean of absolute values.

    Drafts of a step are taken to be spread evenly over its requests, as every policy but those that
    pick requests does.
    """
    decode = steps[steps["decode_requests"] > 0]
    if decode.empty:
        return {"mean": float("nan"), "absolute": float("nan")}
    requests, drafted, budget = (
        decode[name].to_numpy(dtype=np.int64)
        for name in ("decode_requests", "drafted_tokens", "budget_tokens")
    )
    tokens = requests + budget + decode["prefill_tokens"].to_numpy(dtype=np.int64)
    longest = np.minimum(-(-drafted // requests), cost.gamma)
    believed_s = cost.draft_s[longest, np.minimum(requests, cost.draft_s.shape[1] - 1)]
    believed_s = believed_s + cost.verify_s[np.minimum(tokens, cost.verify_s.size - 1)]
    ragged_s = cost.adaptive_s + cost.adaptive_token_s * (requests + budget)
    believed_s = believed_s + ragged_s * (budget < drafted)
    error = believed_s / (decode["end_s"] - decode["start_s"]).to_numpy() - 1.0
    return {"mean": float(error.mean()), "absolute": float(np.abs(error).mean())}
