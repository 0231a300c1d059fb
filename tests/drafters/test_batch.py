"""Grouping of a ragged batch's attention: every token once, neighbours together where that is
cheaper, and the same numbers however it is cut."""

import pytest
import torch

from drafters import batch
from drafters.batch import make_batch
from tests.drafters.families import tiny_target

STARTS, COUNTS = [600, 590, 3000, 595, 0, 3], [1, 1, 2, 1, 5, 4]


def test_long_neighbours_get_a_call_of_their_own():
    made = make_batch(torch.zeros(14, dtype=torch.long), STARTS, COUNTS)
    groups = [(g.slots.start, g.slots.stop, g.tokens.start, g.span) for g in made.groups]
    assert groups == [(0, 2, 0, 601), (2, 3, 2, 3002), (3, 4, 4, 596), (4, 6, 5, 7)]
    alone = make_batch(torch.zeros(14, dtype=torch.long), STARTS, COUNTS, together=3)
    assert [(g.slots.start, g.slots.stop) for g in alone.groups] == [
        (0, 2), (2, 3), (3, 4), (4, 5), (5, 6),
    ]  # fmt: skip


@torch.no_grad()
def test_the_cut_changes_no_number(monkeypatch: pytest.MonkeyPatch):
    target, tokens = tiny_target(), torch.arange(14) % 40
    hidden = []
    for cut in (batch._starts, lambda starts, counts: [0], lambda starts, counts: [*range(6)]):
        monkeypatch.setattr(batch, "_starts", cut)
        cache = target.new_cache(6, 3010)
        for stores in (cache.keys, cache.values):
            torch.nn.init.normal_(stores, generator=torch.Generator().manual_seed(0))
        hidden.append(target.ragged(make_batch(tokens, STARTS, COUNTS), cache).hidden)
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden[0], hidden[2], rtol=1e-4, atol=1e-4)
