"""DeepSpec's own outputs for a tiny DSpark checkpoint: every number of ours must be theirs.

Skipped where the reference folder is absent. Tolerances are the reference's own: 1e-4 absolute on
logits and hidden states, 1e-5 on confidences, 1e-4 relative on losses, tokens and lengths exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import drafters
from drafters.block import BlockDrafter
from drafters.losses import ce_and_l1, position_weights
from drafters.reliability import area_under_curve, brier, expected_calibration_error
from drafters.target import Target, load_target

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "deepspec_dspark"
pytestmark = pytest.mark.skipif(not REFERENCE.exists(), reason="reference outputs not at hand")
GAMMA, STOP = 7, 509


@pytest.fixture(scope="module")
def parity() -> dict[str, Any]:
    made: dict[str, Any] = torch.load(REFERENCE / "dspark" / "parity.pt", weights_only=False)
    return made


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target(str(REFERENCE / "target_4layer_tied"))


@pytest.fixture
def drafter(target: Target) -> BlockDrafter:
    made = drafters.load(REFERENCE / "dspark", target)
    assert isinstance(made, BlockDrafter)
    return made


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_target_features(parity: dict[str, Any], target: Target, drafter: BlockDrafter) -> None:
    told = parity["target_prefill"]
    tokens = told["input_ids"]
    out = target(tokens, torch.arange(24)[None], feature_layers=drafter.feature_layers)
    close(out.features, told["target_hidden_states_hooks"])
    close(out.hidden, told["target_last_hidden_states_hooks"])
    close(target.lm_head(out.hidden), told["logits"])


def test_draft_block(parity: dict[str, Any], drafter: BlockDrafter) -> None:
    told, features = parity["draft_block"], parity["target_prefill"]["target_hidden_states_hooks"]
    close(drafter.context(features), told["context_feature_fc_norm"])
    tokens = torch.cat((parity["prompts"][0], told["draft_input_ids"][0, :1]))
    out = drafter.draft_logits(features, tokens, anchor=24)
    close(out.hidden, told["block_hidden_after_norm"][0])
    close(drafter.lm_head(out.hidden), told["base_logits"][0])
    close(out.logits, told["draft_logits"][0])
    assert out.confidences is not None
    close(out.confidences, told["confidence_prob"][0], 1e-5)
    assert out.logits.argmax(-1).tolist() == told["draft_tokens"][0].tolist()
    forced = torch.cat((tokens, told["draft_tokens"][0]))
    close(drafter.draft_logits(features, forced, 24, teacher_forced=True).logits, out.logits, 1e-6)


def test_cache(parity: dict[str, Any], drafter: BlockDrafter) -> None:
    told, features = parity["draft_block"], parity["target_prefill"]["target_hidden_states_hooks"]
    state = drafter.new_state(1, 24)
    positions, slot = torch.arange(24)[None], torch.zeros(1, dtype=torch.long)
    drafter.extend(state, parity["prompts"][:1], features, positions, slot)
    close(state.keys[0, :, :, :24], told["cache_k_layer0"])
    close(state.values[0, :, :, :24], told["cache_v_layer0"])


def rounds(
    target: Target, drafter: BlockDrafter, prompt: Tensor, threshold: float = 0.0
) -> tuple[list[int], list[int], list[int], list[Tensor]]:
    """Greedy decoding of 64 tokens, one request, the target run afresh on the whole text.

    A proposal ends before the first position whose own confidence is under ``threshold``. Returns
    output, accepted lengths (bonus included), proposal lengths, confidences per round.
    """
    state = drafter.new_state(1, 110)
    slot = torch.zeros(1, dtype=torch.long)

    def run(text: list[int]) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor([text])
        where = torch.arange(len(text))[None]
        out = target(tokens, where, feature_layers=drafter.feature_layers)
        return out.features, target.lm_head(out.hidden)[0].argmax(-1)

    text = prompt.tolist()
    features, choice = run(text)
    drafter.extend(state, prompt[None], features, torch.arange(24)[None], slot)
    text.append(int(choice[-1]))
    gains, proposals, confidences = [], [], []
    while len(text) - 1 < 88:
        start = len(text) - 1
        anchor = torch.tensor([text[-1]])
        block = drafter.propose(state, anchor, slot + start, GAMMA, lambda k, x: x.argmax(-1))
        below = (block.confidences[0] < threshold).tolist()
        length = below.index(True) if True in below else GAMMA
        drafted = block.tokens[0, :length].tolist()
        features, choice = run(text + drafted)
        told = choice[start:].tolist()
        stood = 0
        while stood < length and told[stood] == drafted[stood]:
            stood += 1
        where = torch.arange(start, start + stood + 1)[None]
        committed = torch.tensor([[text[-1], *drafted[:stood]]])
        drafter.extend(state, committed, features[:, start : start + stood + 1], where, slot)
        text += [*drafted[:stood], told[stood]]
        gains.append(stood + 1)
        proposals.append(length)
        confidences.append(block.confidences[0])
    return text[:88], gains, proposals, confidences


@torch.no_grad()
def test_greedy_generation(parity: dict[str, Any], target: Target, drafter: BlockDrafter) -> None:
    for prompt, told in zip(parity["prompts"], parity["greedy_generation"], strict=True):
        text, gains, proposals, confidences = rounds(target, drafter, prompt)
        assert text == told["output_ids"][0].tolist()
        assert gains == told["acceptance_lengths"]
        assert proposals == told["proposal_lengths"]
        for mine, theirs in zip(confidences, told["rounds"], strict=True):
            close(mine, theirs["confidence_logits"][0].sigmoid(), 1e-5)


@torch.no_grad()
def test_threshold_generation(
    parity: dict[str, Any], target: Target, drafter: BlockDrafter
) -> None:
    assert set(map(float, parity["threshold_generation"])) == {0.3, 0.5, 0.7}
    for threshold, told in parity["threshold_generation"].items():
        for i, prompt in enumerate(parity["prompts"][:3]):
            text, gains, proposals, _ = rounds(target, drafter, prompt, float(threshold))
            assert text == told["output_ids"][i][0].tolist()
            assert gains == told["acceptance_lengths"][i]
            assert proposals == told["proposal_lengths"][i]


def test_acceptance_at_temperature_one(parity: dict[str, Any], drafter: BlockDrafter) -> None:
    told = parity["acceptance_T1"]
    features = parity["target_prefill"]["target_hidden_states_hooks"]
    tokens = torch.cat((parity["prompts"][0], told["verify_input_ids"][0]))
    p_draft = drafter.draft_logits(features, tokens, 24, teacher_forced=True).logits.softmax(-1)
    p_target = told["target_logits"][0].softmax(-1)
    close(1 - 0.5 * (p_draft - p_target[:7]).abs().sum(-1), told["one_minus_tv"][0], 1e-5)
    drawn = told["verify_input_ids"][0, 1:, None]
    ratio = (p_target[:7].gather(1, drawn) / p_draft.gather(1, drawn)).clamp_max(1)[:, 0]
    close(ratio, told["accept_prob_of_these_tokens"][0], 1e-5)


def test_confidence_metrics(parity: dict[str, Any]) -> None:
    """ECE and Brier are DeepSpec's; its AUROC comes from a 1,000-bin histogram, ours is exact."""
    predicted, outcome = [], []
    for told in parity["greedy_generation"]:
        for played in told["rounds"]:
            predicted.append(played["confidence_logits"][0].sigmoid().cumprod(0).double())
            outcome.append(torch.arange(GAMMA) < played["accepted_draft_tokens"])
    p, y = torch.stack(predicted).numpy(), torch.stack(outcome).numpy().astype(float)
    for k, row in enumerate(parity["confidence_metrics"]["row"]["per_position"]):
        assert expected_calibration_error(p[:, k], y[:, k]) == pytest.approx(row["ece"], abs=1e-6)
        assert brier(p[:, k], y[:, k]) == pytest.approx(row["brier"], abs=1e-6)
        if y[:, k].any():
            assert area_under_curve(p[:, k], y[:, k]) == pytest.approx(row["auc"], abs=2e-3)


def test_training_loss_and_gradients(parity: dict[str, Any], drafter: BlockDrafter) -> None:
    told = parity["training"]
    drafter.requires_grad_(True)
    tokens, anchors = told["input_ids"], told["anchor_positions"]
    padded = torch.nn.functional.pad(tokens, (0, GAMMA + 1))
    at = anchors.unsqueeze(-1) + torch.arange(GAMMA)
    in_block = padded.gather(1, at.flatten(1)).view_as(at)
    out = drafter.teacher_forced(tokens, told["target_hidden_states"], anchors, in_block)
    logits = drafter.lm_head(out.hidden) + drafter.markov_head.markov_w2(out.latents)
    keep = told["eval_mask"].flatten()
    close(logits.flatten(0, 1)[keep], told["draft_logits"].flatten(0, 2)[keep])
    close(out.confidence_logits.flatten()[keep], told["confidence_pred"].flatten()[keep])

    vocabulary = logits.shape[-1]
    p_target = told["aligned_target_logits"].flatten(0, 2)[keep].softmax(-1)
    label = told["target_ids"].flatten()[keep]
    rows = logits.flatten(0, 1)[keep]
    tail, (a_ce, a_l1) = torch.zeros(len(rows)), (told["alphas"]["ce"], told["alphas"]["l1"])
    loss, ce, l1 = ce_and_l1(rows, p_target, tail, label, vocabulary, a_ce, a_l1)
    weight = position_weights(GAMMA).expand(len(keep) // GAMMA, -1).flatten()[keep]
    guess = out.confidence_logits.flatten()[keep]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        guess, 1 - 0.5 * l1, reduction="none"
    )
    terms = told["loss_terms"]
    pairs = {"ce_loss_num": ce, "l1_loss_num": l1, "confidence_loss_num": bce}
    for name, value in pairs.items():
        assert float((weight * value).sum().detach()) == pytest.approx(terms[name], rel=1e-4)
    assert float(weight.sum()) == pytest.approx(terms["ce_loss_den"], rel=1e-5)
    total = (weight * (loss + bce)).sum() / weight.sum()
    assert float(total.detach()) == pytest.approx(told["loss"], rel=1e-4)

    total.backward()
    parameters = dict(drafter.named_parameters())
    for name, norm in told["grad_norms"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-3), name
    for name, gradient in told["grads_small"].items():
        close(parameters[name].grad, gradient, 1e-5)


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    drafters.load(REFERENCE / "dspark").save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        mine, theirs = (tmp_path / name).read_bytes(), (REFERENCE / "dspark" / name).read_bytes()
        if name == "config.json":
            assert json.loads(mine) == json.loads(theirs)
        else:
            assert mine == theirs
