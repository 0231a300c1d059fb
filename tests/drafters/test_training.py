"""The training loss: the packed one is the formula, the full one equals it.

One response set of a tiny target; losses over the whole vocabulary, so nothing is sampled.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import drafters.full_loss as full_loss_module
from drafters.block import TOGETHER
from drafters.corpus import Sequence, Supervisor, padded_features
from drafters.full_loss import ask, full_loss
from drafters.losses import soft_ce_and_l1
from drafters.objectives import (
    DEFAULT_WEIGHTS,
    STEP_DECAY,
    Weights,
    batch_loss,
    make_objective,
    metrics,
    pack,
    packed_loss,
    trained_depth,
)
from tests.drafters.families import tiny_drafter, tiny_target

VOCAB, GAMMA = 40, 4
TARGET = tiny_target(VOCAB)


def sequences() -> list[Sequence]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(14, 4), (9, 3), (22, 10)]
    return [Sequence(torch.randint(VOCAB - 1, (n,), generator=generator), s) for n, s in sizes]


def supervised(feature_layers: tuple[int, ...]):  # type: ignore[no-untyped-def]
    rows = sequences()
    return rows, Supervisor(TARGET, feature_layers, cache_gb=0)([0, 1, 2], rows)


def test_anchors_and_labels_stay_inside_the_response() -> None:
    rows, told = supervised((0,))
    batch = pack(rows, padded_features(told), GAMMA, 8)
    for i, row in enumerate(rows):
        real = batch.anchors[i][batch.valid[i, :, 0]]
        assert len(real) == min(8, len(row.tokens) - 1 - row.start)
        assert len(set(real.tolist())) == len(real)
        assert real.min() >= row.start
        assert batch.valid[i].sum() == sum(
            min(GAMMA, len(row.tokens) - 1 - a) for a in real.tolist()
        )
        for a, anchor in enumerate(batch.anchors[i].tolist()):
            for j in range(GAMMA):
                if batch.valid[i, a, j]:
                    assert batch.labels[i, a, j] == row.tokens[anchor + j + 1]
                    assert batch.in_block[i, a, j] == row.tokens[anchor + j]


@pytest.mark.parametrize("family", ["dspark", "rnn", "dflash", "eagle3", "mtp"])
def test_packed_loss_is_the_formula(family: str) -> None:
    """Recomputed anchor by anchor through ``draft_logits``, in fp32, over the whole vocabulary."""
    kind = {"rnn": "dspark"}.get(family, family)
    drafter = tiny_drafter(family, TARGET, GAMMA)
    rows, told = supervised(drafter.feature_layers)
    # 16-bit supervision off: the formula is tested, not the storage
    told = [replace(t, features=t.features.float(), kept=torch.arange(VOCAB)) for t in told]
    for row, t in zip(rows, told, strict=True):
        where = torch.arange(len(row.tokens))[None]
        out = TARGET(row.tokens[None], where, feature_layers=drafter.feature_layers)
        t.probs = torch.softmax(TARGET.lm_head(out.hidden[0, row.start :]), -1)
    objective = make_objective(kind, GAMMA, DEFAULT_WEIGHTS[kind], 3, negatives=0)
    batch = pack(rows, padded_features(told), GAMMA, 3)
    loss, stats = packed_loss(drafter, batch, rows, told, objective)
    found = metrics(stats)

    weights, total, mass, accepts = objective.weights, 0.0, 0.0, [[] for _ in range(GAMMA)]
    for i, (row, t) in enumerate(zip(rows, told, strict=True)):
        text = torch.nn.functional.pad(row.tokens, (0, GAMMA))
        for anchor in batch.anchors[i][batch.valid[i, :, 0]].tolist():
            features = t.features.to(torch.bfloat16).float()
            out = drafter.draft_logits(features, text, anchor, teacher_forced=True)
            for j in range(min(GAMMA, len(row.tokens) - 1 - anchor)):
                p_d, p_t = out.logits[j].softmax(-1), t.probs[anchor + j - row.start]
                l1 = float((p_d - p_t).abs().sum())
                hard = -float(p_d[row.tokens[anchor + j + 1]].log())
                soft = -float((p_t * p_d.log()).sum())
                value = weights.ce * (soft if weights.soft else hard) + weights.l1 * l1
                if out.confidences is not None:
                    c, y = float(out.confidences[j]), 1 - 0.5 * l1
                    bce = -y * torch.tensor(c).log() - (1 - y) * torch.tensor(1 - c).log()
                    value += weights.confidence * float(bce)
                w = (
                    STEP_DECAY[kind] ** j
                    if kind in STEP_DECAY
                    else float(torch.tensor(-j / 4).exp())
                )
                total, mass = total + w * value, mass + w
                accepts[j].append(1 - 0.5 * l1)
    assert float(loss) == pytest.approx(total / mass, rel=2e-3)
    for j, values in enumerate(accepts):
        assert found[f"accept_{j + 1}"] == pytest.approx(sum(values) / len(values), abs=2e-3)


def test_blocks_do_not_see_those_they_are_computed_with() -> None:
    """40 anchors in three groups, their last columns unreal: each block as it is alone."""
    drafter = tiny_drafter("dspark", TARGET, GAMMA)
    rows = [Sequence(torch.randint(VOCAB - 1, (n,)), 3) for n in (50, 46)]
    told = Supervisor(TARGET, drafter.feature_layers, cache_gb=0)([0, 1], rows)
    batch = pack(rows, padded_features(told).float(), GAMMA, 40)
    assert batch.anchors.shape == (2, 3 * TOGETHER)
    out = drafter.teacher_forced(batch.tokens, batch.features, batch.anchors, batch.in_block)
    hidden = out.hidden.unflatten(0, (2, -1))
    for i in range(2):
        for a in (0, 15, 16, 39):
            one = [x[i : i + 1, a : a + 1] for x in (batch.anchors, batch.in_block)]
            alone = drafter.teacher_forced(batch.tokens[i : i + 1], batch.features[i : i + 1], *one)
            torch.testing.assert_close(hidden[i, a], alone.hidden[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["dspark", "rnn", "dflash", "eagle3", "mtp"])
@pytest.mark.parametrize("changes", [{}, {"ce": 0.1, "l1": 0.9}], ids=str)
def test_full_loss_equals_the_packed_one(
    family: str, changes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same anchors, whole vocabulary both ways: same value, sums and gradients, in chunks of 5 rows
    too. The regression is off: one scales it by the batch's variance, the other by a sequence's."""
    kind = {"rnn": "dspark"}.get(family, family)
    drafter = tiny_drafter(family, TARGET, GAMMA)
    for name, parameter in drafter.named_parameters():
        parameter.requires_grad_(not name.startswith(("embed_tokens", "lm_head")))
    rows, told = supervised(drafter.feature_layers)
    weights = replace(DEFAULT_WEIGHTS[kind], hidden=0.0, **changes)
    objective = make_objective(kind, GAMMA, weights, 3, negatives=VOCAB)
    monkeypatch.setattr(full_loss_module, "CHUNK_ROWS", 5)
    made = []
    for loss in (
        lambda: full_loss(drafter, ask(TARGET, rows, drafter.feature_layers), rows, objective, 0.1),
        lambda: batch_loss(drafter, rows, told, objective, 0.1),
    ):
        torch.manual_seed(0)
        drafter.zero_grad(set_to_none=True)
        value, stats = loss()
        value.backward()
        gradients = {n: p.grad for n, p in drafter.named_parameters() if p.grad is not None}
        made.append((value.detach(), stats, gradients))
    (full, sums, exact), (packed, other_sums, stored) = made
    assert float(full) == pytest.approx(float(packed), rel=2e-3)
    torch.testing.assert_close(sums, other_sums, rtol=5e-3, atol=5e-3)
    assert exact.keys() == stored.keys()
    for name, gradient in exact.items():
        scale = stored[name].norm()
        assert (gradient - stored[name]).norm() < 0.02 * scale + 1e-6, name


def test_soft_loss_gradient_vanishes_at_the_target() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(5, 12)
    p = wanted.softmax(-1)
    logits = wanted.clone().requires_grad_(True)
    loss, ce, l1 = soft_ce_and_l1(logits, p[:, :8], p[:, 8:].sum(-1), 8, 1.0, 0.0)
    loss.sum().backward()
    assert logits.grad.abs().max() < 1e-6
    assert l1.max() < 1e-5
    entropy = -(p[:, :8] * p[:, :8].log()).sum(-1) - p[:, 8:].sum(-1) * p[:, 8:].sum(-1).log()
    torch.testing.assert_close(ce, entropy)


def test_weights_start_with_cross_entropy() -> None:
    weights = Weights(0.1, 0.9, 1.0)
    assert weights.at(0.0) == Weights(1.0, 0.0, 1.0)
    end = weights.at(0.5)
    assert (end.ce, end.l1) == (pytest.approx(0.1), 0.9)


def test_decay_of_the_positions() -> None:
    """exp(-j / decay) for block families; recurrent ones keep their own."""
    made = {
        f: make_objective(f, 3, DEFAULT_WEIGHTS[f], 8, 0, decay=1.5).positions
        for f in ("dspark", "dflash", "eagle3", "mtp")
    }
    wanted = torch.tensor([-0.0, -1 / 1.5, -2 / 1.5]).exp()
    torch.testing.assert_close(made["dspark"], wanted)
    torch.testing.assert_close(made["dflash"], wanted)
    torch.testing.assert_close(made["eagle3"], torch.tensor([1.0, 0.8, 0.64]))
    torch.testing.assert_close(made["mtp"], torch.ones(3))


def test_trained_depths() -> None:
    assert [trained_depth(f, 7) for f in ("dspark", "dflash", "eagle3", "mtp")] == [7, 7, 7, 3]
    assert trained_depth("mtp", 7, 1) == 1
    assert trained_depth("dspark", 7, 2) == 7
