"""Dense traces: at T = 0, walking them gives the rounds of a real speculative loop, one for one."""

import argparse

import pytest
import torch

from drafters.base import Sampler
from drafters.block import BlockDrafter
from drafters.layers import LayerShape
from drafters.presets import build_drafter
from drafters.target import Target
from drafters.trace import dense_anchors

SHAPE = LayerShape(32, 64, 4, 2, 8, 1e-5, 10000.0, qk_norm=False)
VOCAB, GAMMA = 61, 4


@pytest.fixture
def models() -> tuple[Target, BlockDrafter]:
    torch.manual_seed(0)
    target = Target(SHAPE, 5, VOCAB).eval().requires_grad_(False)
    args = argparse.Namespace(feature_layers=None, layers=2, rank=8, head="vanilla", gamma=GAMMA)
    drafter = build_drafter("dspark", target, args).eval()
    torch.nn.init.normal_(drafter.markov_head.markov_w2.weight, std=0.02)
    return target, drafter


def greedy(target: Target, prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        ids = torch.tensor([tokens])
        hidden = target(ids, torch.arange(len(tokens))[None]).hidden[0, -1]
        tokens.append(int(target.lm_head(hidden).argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def speculate(
    target: Target, drafter: BlockDrafter, prompt: list[int], length: int
) -> list[tuple[int, int]]:
    """(anchor position, accepted) of each round of a plain cached speculative loop."""
    cache, state = target.new_cache(1, 128), drafter.new_state(1, 128)
    slot, ids = torch.tensor([0]), torch.tensor([prompt])
    at = torch.arange(len(prompt))[None]
    out = target(ids, at, cache, slot, drafter.feature_layers, fresh=True)
    drafter.extend(state, ids, out.features, at, slot)
    response = [int(target.lm_head(out.hidden[0, -1]).argmax())]
    rounds = []
    sampler = Sampler(torch.zeros(1), torch.zeros(1, GAMMA))
    while len(response) < length:
        position = len(prompt) + len(response) - 1
        anchor = torch.tensor([response[-1]])
        drafts = drafter.propose(state, anchor, torch.tensor([position]), GAMMA, sampler).tokens[0]
        fed = torch.cat((anchor, drafts))[None]
        at = position + torch.arange(GAMMA + 1)[None]
        out = target(fed, at, cache, slot, drafter.feature_layers)
        choice = target.lm_head(out.hidden[0]).argmax(-1)
        accepted = int((drafts == choice[:-1]).long().cumprod(0).sum())
        accepted = min(accepted, length - len(response))
        kept = slice(0, accepted + 1)
        drafter.extend(state, fed[:, kept], out.features[:, kept], at[:, kept], slot)
        rounds.append((len(response) - 1, accepted))
        response += choice[: accepted + 1].tolist()
        response = response[:length]
    return rounds


def test_walk_of_dense_trace_equals_live_loop(models: tuple[Target, BlockDrafter]) -> None:
    target, drafter = models
    prompt, accepted_any = [5, 9, 2, 33, 17], 0
    response = greedy(target, prompt, 60)
    row = {"prompt_tokens": prompt, "response_tokens": response, "name": "x", "temperature": 0.0}
    dense = dense_anchors(target, drafter, row, seed=0)
    assert dense["position"].tolist() == list(range(len(response) - 1))
    walked, t = [], 0
    while t < len(response) - 1:
        walked.append((t, int(dense["accepted"][t])))
        t += walked[-1][1] + 1
        accepted_any += walked[-1][1]
    assert walked == speculate(target, drafter, prompt, len(response))
    assert accepted_any > 0


def test_sampled_trace_is_reproducible_and_capped(models: tuple[Target, BlockDrafter]) -> None:
    target, drafter = models
    response = torch.randint(VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    row = {"prompt_tokens": [1, 2], "response_tokens": response, "name": "y", "temperature": 1.0}
    a, b = (dense_anchors(target, drafter, row, seed=7) for _ in range(2))
    assert (a["confidence"] == b["confidence"]).all()
    assert (a["accepted"] <= len(response) - 1 - a["position"]).all()
    assert a["accepted"].max() > 0
    other = dense_anchors(target, drafter, row, seed=8)
    assert (other["accepted"] != a["accepted"]).any()
