"""Distorted drafters and synthetic machines keep what they should and change what they say."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_traces.distort import miscalibrated, with_stale_copy
from gpu_traces.shapes import machine
from gpu_traces.synthetic import synthetic_traces

TRACES = synthetic_traces(responses=60, response_tokens=100)


def test_temperature_divides_logits_and_leaves_acceptance_alone() -> None:
    """Half the temperature doubles every logit (float16 grid); labels stay."""
    sharp = miscalibrated(TRACES, 0.5)
    inside = (TRACES.confidence > 0.1) & (TRACES.confidence < 0.9)
    before, after = TRACES.confidence[inside], sharp.confidence[inside]
    np.testing.assert_allclose(
        np.log(after / (1 - after)), 2 * np.log(before / (1 - before)), atol=0.06
    )
    np.testing.assert_array_equal(sharp.accepted, TRACES.accepted)
    assert "divided by 0.5" in str(sharp.origin)


def test_stale_copy_loses_the_share_that_it_should() -> None:
    """P(first draft right) falls by the factor 1 - loss, within 4.5 standard errors."""
    both = with_stale_copy(TRACES, 0.3)
    n = TRACES.anchors
    np.testing.assert_array_equal(both.accepted[:n], TRACES.accepted)
    was, now = TRACES.accepted > 0, both.accepted[n:] > 0
    assert not (now & ~was).any()
    kept = now[was].mean()
    assert abs(kept - 0.7) < 4.5 * np.sqrt(0.3 * 0.7 / was.sum())
    assert both.responses == 2 * TRACES.responses
    assert both.first_anchor[-1] == both.accepted.size
    np.testing.assert_array_equal(both.confidence[n:], TRACES.confidence)
    assert set(both.domain[TRACES.responses :]).isdisjoint(both.domain[: TRACES.responses])


def test_machines_have_their_shapes() -> None:
    """moe: dear first tokens, then the dense slope; coarse: never below dense, flat in a size."""
    dense, moe, coarse = (machine(name, 7) for name in ("dense", "moe", "coarse"))
    slope = np.diff(moe.verify_s)
    assert slope[1] > 5 * slope[2000]
    assert slope[2000] == pytest.approx(np.diff(dense.verify_s)[2000])
    assert (coarse.verify_s[1:2048] >= dense.verify_s[1:2048] - 1e-12).all()
    assert coarse.verify_s[129] == coarse.verify_s[256] > coarse.verify_s[128]
    with pytest.raises(ValueError, match="unknown machine 'x'; known: dense, moe, coarse"):
        machine("x", 7)
