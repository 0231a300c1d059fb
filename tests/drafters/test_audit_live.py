"""The Monte-Carlo audit: the exact bias comes out, and its absence too.

200,000 rounds; a distance is held against 1.6 times its 95 % half width, itself the sum of those of
all cells, which a true zero exceeds about never.
"""

from __future__ import annotations

import pytest

from drafters.audit import distance
from policies.audit import bias
from policies.registry import create
from policies.toys import appendix_a, random_toy

ROUNDS = 200_000


def test_appendix_a_comes_out_biased_without_a_lag() -> None:
    exact, _ = bias(create("hardware-aware", 2, lag=0), appendix_a())
    found, half, verified = distance(create("hardware-aware", 2, lag=0), appendix_a(), ROUNDS, 1)
    assert exact == pytest.approx(0.15)
    assert found == pytest.approx(exact, abs=1.6 * half)
    assert verified > 0


@pytest.mark.parametrize("name", ["fixed-k", "confidence", "vllm", "goodput", "threshold"])
def test_lossless_policies_show_no_bias(name: str) -> None:
    parameters = {"k": 2} if name == "fixed-k" else {}
    total = 0
    for seed, toy in enumerate((appendix_a(), random_toy(4, 2, 1), random_toy(7, 2, 1))):
        policy = create(name, 2, **parameters)
        found, half, verified = distance(policy, toy, ROUNDS, seed)
        assert found < 1.6 * half, (name, toy.name)
        total += verified
    assert total > 0, "a policy that verifies nothing proves nothing"
