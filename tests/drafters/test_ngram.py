"""Prompt lookup against a plain search written from its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drafters.ngram import NgramDrafter

VOCAB, GAMMA = 9, 4


def greedy(_: int, logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def search(text: list[int], longest: int, shortest: int) -> list[int]:
    """What followed the earliest occurrence of the longest suffix that occurred before."""
    for m in range(min(longest, len(text) - 1), shortest - 1, -1):
        for end in range(m - 1, len(text) - 1):
            if text[end - m + 1 : end + 1] == text[len(text) - m :]:
                return text[end + 1 : end + 1 + GAMMA]
    return []


@pytest.mark.parametrize(("longest", "shortest"), [(4, 2), (1, 1), (6, 3)])
def test_batched_lookup_equals_plain_search(longest: int, shortest: int) -> None:
    rng = np.random.default_rng(0)
    drafter = NgramDrafter(VOCAB, GAMMA, longest, shortest)
    sizes = [2, 5, 9, 30, 60, 17, 40, 1]
    found = 0
    for _ in range(30):
        texts = [rng.integers(3, size=n).tolist() for n in sizes]
        state = drafter.new_state(len(texts), 64)
        for slot, text in enumerate(texts):
            where = torch.arange(len(text) - 1)[None]
            ids = torch.tensor([text[:-1]], dtype=torch.long)
            drafter.extend(state, ids, None, where, torch.tensor([slot]))
        anchors = torch.tensor([t[-1] for t in texts])
        positions = torch.tensor([len(t) - 1 for t in texts])
        out = drafter.propose(state, anchors, positions, GAMMA, greedy)
        for row, text in enumerate(texts):
            expected = search(text, longest, shortest)
            count = int(out.drafted[row])
            assert out.tokens[row, :count].tolist() == expected
            assert (out.confidences[row, count:] == 0).all()
            found += count
    assert found > 200


def test_nothing_found_proposes_nothing_certain() -> None:
    drafter = NgramDrafter(VOCAB, GAMMA)
    state = drafter.new_state(1, 8)
    drafter.extend(state, torch.tensor([[1, 2, 3]]), None, torch.arange(3)[None], torch.tensor([0]))
    out = drafter.propose(state, torch.tensor([4]), torch.tensor([3]), GAMMA, greedy)
    assert out.drafted.tolist() == [0]
    assert out.confidences.sum() == 0


def test_proposals_are_point_masses_and_confidence_grows_with_the_match() -> None:
    drafter = NgramDrafter(VOCAB, GAMMA)
    state, text = drafter.new_state(1, 16), [1, 2, 3, 4, 5, 6, 1, 2, 3]
    shares = []
    for n in (7, 8):
        ids, where = torch.tensor([text[:n]]), torch.arange(n)[None]
        drafter.extend(state, ids, None, where, torch.tensor([0]))
        anchor = torch.tensor(text[n : n + 1])
        out = drafter.propose(state, anchor, torch.tensor([n]), GAMMA, greedy)
        probabilities = torch.softmax(out.logits / 2.0, -1)
        assert torch.equal(
            probabilities.gather(2, out.tokens.unsqueeze(2)), torch.ones(1, GAMMA, 1)
        )
        shares.append(float(out.confidences[0, 0]))
    assert shares == pytest.approx([2 / 3, 3 / 4])


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 1 <= shortest <= longest"):
        NgramDrafter(VOCAB, GAMMA, longest=2, shortest=3)
