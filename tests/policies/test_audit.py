"""The audit against the paper's golden case, closed forms, and a policy made to cheat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policies.audit import bias, main, output_law, target_law
from policies.base import VerifyPlan, VerifyState
from policies.fixed import FixedK
from policies.registry import create
from policies.toys import appendix_a, random_toy


@pytest.mark.parametrize(
    ("name", "parameters", "first_token"),
    [
        ("hardware-aware", {"lag": 0}, [0.85, 0.15]),
        ("adaspec", {}, [0.85, 0.15]),
        ("hardware-aware", {"lag": 2}, [0.7, 0.3]),
        ("confidence", {}, [0.7, 0.3]),
        ("fixed-k", {"k": 2}, [0.7, 0.3]),
        ("goodput", {"plain_path": False}, [0.7, 0.3]),
    ],
)
def test_appendix_a(name: str, parameters: dict[str, int], first_token: list[float]) -> None:
    """DSpark appendix A: anticipation turns (0.7, 0.3) into (0.85, 0.15)."""
    law = output_law(create(name, 2, **parameters), appendix_a()).law.reshape(2, 2)
    np.testing.assert_allclose(law.sum(axis=1), first_token, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [1, 2])
def test_full_verification_is_exact_speculative_sampling(seed: int, rows: int) -> None:
    """Verifying every draft yields the target's law (Leviathan et al.); it adds up to 1."""
    toy = random_toy(seed, rows, steps=1)
    audit = output_law(create("fixed-k", 2, k=2), toy)
    assert audit.law.sum() == pytest.approx(1.0, abs=1e-12)
    assert audit.verified_tokens == 2 * rows * 4**rows
    np.testing.assert_allclose(audit.law, target_law(toy), atol=1e-12)


class Cheat(FixedK):
    """Verifies a draft only after peeking at it: the second confidence tells token 1 from 0."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """All when the first drafted token is the one with the larger second confidence."""
        return VerifyPlan(state.drafted * (state.current[:, 1] > 0.5))


def test_a_cheat_is_caught() -> None:
    """Reading the drawn token through a later confidence biases, even with a perfect drafter.

    By hand: token 0 is drawn with d and kept, else the target draws: d + (1 - d) * 0.7, not 0.7;
    d = 0.5 gives 0.15 and d = 0.7 (the target's own law) gives 0.21.
    """
    cheat, toy = Cheat(2, Cheat.Config(k=2)), appendix_a()
    assert bias(cheat, toy)[0] == pytest.approx(0.15)
    assert bias(cheat, replace(toy, drafter=toy.target))[0] == pytest.approx(0.21)


def test_command_writes_the_page(tmp_path, monkeypatch, capsys) -> None:
    """The table has one line per policy asked for, and nothing is left half-written."""
    monkeypatch.setattr("policies.audit.names", lambda: ["confidence", "dcut", "none", "oracle"])
    monkeypatch.setattr("policies.audit.VARIANTS", [])
    assert main(["--out", str(tmp_path / "lossless.md")]) == 0
    page = (tmp_path / "lossless.md").read_text()
    assert "| `confidence` | non-anticipating | 0.0000 | 0.0000 | yes |" in page
    assert "| `dcut` | anticipating |" in page
    assert "yes (it verifies nothing)" in page
    assert [path.name for path in tmp_path.iterdir()] == ["lossless.md"]
    assert "lossless.md" in capsys.readouterr().out


def test_a_false_claim_is_an_error(monkeypatch, tmp_path) -> None:
    """A policy that calls itself non-anticipating and is not stops the table."""
    monkeypatch.setattr("policies.adaspec.AdaSpec.anticipating", False)
    monkeypatch.setattr("policies.audit.names", lambda: ["adaspec"])
    with pytest.raises(ValueError, match="claims anticipating=False"):
        main(["--out", str(tmp_path / "lossless.md")])
