"""Every family: single, batched, incremental and training paths give the same blocks.

The recurrent families and the sequential heads are also held against a second implementation,
written here from the formulas with whole-sequence attention and no cache.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drafters.base import Sampler
from drafters.block import BlockDrafter
from drafters.heads import MarkovHead
from drafters.layers import attend, attention_bias, causal
from drafters.recurrent import RecurrentDrafter
from drafters.target import Target
from tests.drafters.families import FAMILIES, features_of, tiny_drafter, tiny_target

VOCAB, GAMMA = 40, 4
TOLERANCE = 2e-5  # fp32, logits of order 1


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB)


def text(length: int, seed: int = 3) -> Tensor:
    return torch.randint(VOCAB - 1, (length,), generator=torch.Generator().manual_seed(seed))


def greedy(_: int, logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ragged_batch_equals_single_requests(family: str, target: Target) -> None:
    """Rows of different length, extended with right padding and in two uneven parts."""
    drafter = tiny_drafter(family, target, GAMMA)
    lengths = [9, 4, 13]
    texts = [text(n + 1, seed=n) for n in lengths]
    state = drafter.new_state(3, 20)
    padded = torch.stack([torch.nn.functional.pad(t, (0, 14 - len(t))) for t in texts])
    features = features_of(target, drafter, padded)
    for part in (slice(0, 3), slice(3, 14)):
        where = torch.arange(14)[part].expand(3, -1)
        drafter.extend(state, padded[:, part], features[:, part], where, torch.arange(3))
    anchors = torch.stack([t[-1] for t in texts])
    out = drafter.propose(state, anchors, torch.tensor(lengths), GAMMA, greedy)
    for i, t in enumerate(texts):
        alone = drafter.draft_logits(features[i], t, lengths[i])
        close(out.logits[i], alone.logits)
        close(out.hidden[i], alone.hidden)
        assert out.tokens[i].tolist() == alone.logits.argmax(-1).tolist()
        assert (out.confidences is None) == (alone.confidences is None)
        if alone.confidences is not None:
            close(out.confidences[i], alone.confidences)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rejected_drafts_leave_no_trace(family: str, target: Target) -> None:
    """Rounds of propose and extend give the block of a state that saw the text at once."""
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(20)
    features = features_of(target, drafter, tokens[None])
    state, slot = drafter.new_state(1, 20), torch.zeros(1, dtype=torch.long)
    drafter.extend(state, tokens[None, :6], features[:, :6], torch.arange(6)[None], slot)
    at = 6
    for gained in (1, 3, 1, 2, 4):
        anchor = tokens[at : at + 1]
        out = drafter.propose(state, anchor, slot + at, GAMMA, greedy)
        close(out.logits[0], drafter.draft_logits(features, tokens, at).logits)
        span = slice(at, at + gained)
        where = torch.arange(at, at + gained)[None]
        drafter.extend(state, tokens[None, span], features[:, span], where, slot)
        at += gained
    assert at == 17


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_skipping_proposals_changes_nothing(family: str, target: Target) -> None:
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(12)
    features = features_of(target, drafter, tokens[None])
    state, slot = drafter.new_state(1, 20), torch.zeros(1, dtype=torch.long)
    for i in range(11):
        span, where = slice(i, i + 1), torch.tensor([[i]])
        drafter.extend(state, tokens[None, span], features[:, span], where, slot)
    out = drafter.propose(state, tokens[11:], slot + 11, GAMMA, greedy)
    close(out.logits[0], drafter.draft_logits(features, tokens, 11).logits)


@pytest.mark.parametrize("family", ["dspark", "gated", "rnn", "dflash"])
@torch.no_grad()
def test_block_training_path_equals_inference(family: str, target: Target) -> None:
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(16)
    assert isinstance(drafter, BlockDrafter)
    features = features_of(target, drafter, tokens[None])
    anchors = torch.tensor([[2, 7, 11]])
    in_block = tokens[anchors.unsqueeze(-1) + torch.arange(GAMMA)]
    out = drafter.teacher_forced(tokens[None], features, anchors, in_block)
    for i, anchor in enumerate(anchors[0].tolist()):
        alone = drafter.draft_logits(features, tokens, anchor, teacher_forced=True)
        close(out.hidden[i], alone.hidden)
        logits = drafter.lm_head(out.hidden[i])
        if out.latents is not None:
            logits = logits + drafter.markov_head.markov_w2(out.latents[i])
        close(logits, alone.logits)
        if alone.confidences is not None:
            close(out.confidence_logits[i].sigmoid(), alone.confidences)


@pytest.mark.parametrize("family", ["eagle3", "mtp"])
@torch.no_grad()
def test_unrolled_training_path_equals_inference(family: str, target: Target) -> None:
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(16)
    assert isinstance(drafter, RecurrentDrafter)
    features = features_of(target, drafter, tokens[None])
    anchors = torch.tensor([[1, 2, 7, 11]])
    step = drafter.unroll(tokens[None], features, anchors)
    hidden = torch.stack([step(tokens[anchors + k]) for k in range(GAMMA)], 2)[0]
    for i, anchor in enumerate(anchors[0].tolist()):
        alone = drafter.draft_logits(features, tokens, anchor, teacher_forced=True)
        close(hidden[i], alone.hidden)


def whole_sequence(
    drafter: RecurrentDrafter, tokens: Tensor, features: Tensor, anchor: int
) -> Tensor:
    """Teacher-forced logits [gamma, V] by DRAFT entries recomputed at every step, no cache.

    Entry i (RoPE position i) pairs the state of position i with token i + 1; states beyond the
    anchor's predecessor are the drafter's own.
    """
    layer, shape, logits = drafter.layer, drafter.config.shape, []
    states = list(drafter.project(features[0, :anchor]))
    for k in range(GAMMA):
        h = torch.stack(states)
        e = drafter.embed_tokens(tokens[1 : anchor + k + 1])
        if drafter.config.family == "eagle3":
            residual, given = h, torch.cat((layer.input_layernorm(e), layer.hidden_norm(h)), -1)
        else:
            residual = drafter.eh_proj(torch.cat((drafter.enorm(e), drafter.hnorm(h)), -1))
            given = layer.input_layernorm(residual)
        rope = shape.rope.table(torch.arange(anchor + k)[None], shape.head_dim)
        q = layer.self_attn.queries(given[None], rope)
        bias = attention_bias(causal(anchor + k, q.device), shape, q.dtype)
        attended = attend(q, *layer.self_attn.keys_values(given[None], rope), bias)
        states.append(layer.finish(residual[None], attended)[0, -1])
        logits.append(drafter.lm_head(drafter.norm(states[-1])))
    return torch.stack(logits)


@pytest.mark.parametrize("family", ["eagle3", "mtp"])
@torch.no_grad()
def test_recurrence_by_its_definition(family: str, target: Target) -> None:
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(16)
    assert isinstance(drafter, RecurrentDrafter)
    features = features_of(target, drafter, tokens[None])
    for anchor in (1, 5, 11):
        ours = drafter.draft_logits(features, tokens, anchor, teacher_forced=True).logits
        close(ours, whole_sequence(drafter, tokens, features, anchor))


@pytest.mark.parametrize("family", ["dspark", "gated", "rnn"])
@torch.no_grad()
def test_sequential_heads_by_their_formulas(family: str, target: Target) -> None:
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(16)
    features = features_of(target, drafter, tokens[None])
    out = drafter.draft_logits(features, tokens, 5, teacher_forced=True)
    head, rank = drafter.markov_head, drafter.markov_head.rank
    w1, w2 = head.markov_w1.weight, head.markov_w2.weight
    conf = drafter.confidence_head.proj
    s = torch.zeros(rank)
    for k in range(GAMMA):
        h, row = out.hidden[k], w1[tokens[5 + k]]
        z = row
        if family == "gated":
            z = (
                torch.sigmoid(head.gate_proj.weight @ torch.cat((h, row)) + head.gate_proj.bias)
                * row
            )
        if family == "rnn":
            joint = head.joint_proj.weight @ torch.cat((s, row, h)) + head.joint_proj.bias
            g, c, o = joint[:rank], joint[rank : 2 * rank], joint[2 * rank :]
            s, z = torch.sigmoid(g) * s + (1 - torch.sigmoid(g)) * torch.tanh(c), torch.tanh(o)
        close(out.logits[k], drafter.lm_head.weight @ h + w2 @ z)
        score = conf.weight[0] @ torch.cat((h, row)) + conf.bias[0]
        close(out.confidences[k], torch.sigmoid(score))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_bias_of_one_row_and_of_several(dtype: torch.dtype) -> None:
    """With W2 as it is at the time, however it was changed: behind torch's back too."""
    head = MarkovHead(300, 8, 16, "vanilla").requires_grad_(False).to(dtype)
    w2 = head.markov_w2.weight
    for change in (torch.nn.init.normal_, lambda w: w.data.mul_(2), lambda _: head.lay_out()):
        change(w2)
        z, block = torch.randn(4, 8).to(dtype), torch.randn(4, 3, 300)
        expected = block[:, 1] + (z.to(w2.dtype) @ w2.T).float()
        for n in (1, 2, 4):
            mine = block.clone()
            close(head.add_bias(mine[:n, 1], z[:n]), expected[:n])
            close(mine[:n, 1], expected[:n])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_later_text_is_not_read(family: str, target: Target) -> None:
    """Features from the anchor on, and greedy in-block tokens, must not depend on what comes."""
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(16)
    features = features_of(target, drafter, tokens[None])
    changed, other = features.clone(), tokens.clone()
    changed[:, 8:] += 1.0
    other[9:] = 0
    ours = drafter.draft_logits(features, tokens, 8).logits
    assert torch.equal(ours, drafter.draft_logits(changed, other, 8).logits)
    changed[:, 7] += 1.0
    assert not torch.allclose(ours, drafter.draft_logits(changed, other, 8).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sampled_rows_follow_their_own_uniforms(family: str, target: Target) -> None:
    """A hot row beside a cold one: the cold row is greedy, the hot one is its inverse CDF."""
    drafter, tokens = tiny_drafter(family, target, GAMMA), text(8)
    features = features_of(target, drafter, tokens[None]).expand(2, -1, -1)
    state, both = drafter.new_state(2, 8), tokens.expand(2, -1)
    where = torch.arange(7).expand(2, -1)
    drafter.extend(state, both[:, :7], features[:, :7], where, torch.arange(2))
    uniforms = torch.full((2, GAMMA), 0.999999)
    draw = Sampler(torch.tensor([0.0, 2.0]), uniforms)
    out = drafter.propose(state, both[:, 7], torch.tensor([7, 7]), GAMMA, draw)
    assert out.tokens[0].tolist() == out.logits[0].argmax(-1).tolist()
    expected = torch.softmax(out.logits[1] / 2.0, -1).double().cumsum(-1)
    chosen = out.tokens[1].tolist()
    for k, token in enumerate(chosen):
        assert expected[k, token] > 0.999999 - 1e-6
        assert token == 0 or expected[k, token - 1] < 0.999999 + 1e-6
