"""The fused loss against autograd on the plain formula, and the sampled vocabulary's bias."""

import torch

from drafters.losses import ce_and_l1, position_weights, with_negatives


def plain(logits, target, tail, label, kept, a_ce, a_l1):  # type: ignore[no-untyped-def]
    p = torch.softmax(logits, -1)
    ce = -torch.log(p.gather(1, label[:, None])[:, 0])
    l1 = (p[:, :kept] - target).abs().sum(-1) + (p[:, kept:].sum(-1) - tail).abs()
    return a_ce * ce + a_l1 * l1


def test_value_and_gradient_equal_autograd() -> None:
    torch.manual_seed(0)
    kept, extra = 11, 4
    logits = torch.randn(6, kept + extra, dtype=torch.float32, requires_grad=True)
    target = torch.softmax(torch.randn(6, kept + 1), -1)
    tail, target = target[:, -1], target[:, :-1]
    label = torch.randint(kept, (6,))
    weight = torch.rand(6)
    for a_ce, a_l1 in ((1.0, 0.0), (0.0, 1.0), (0.1, 0.9)):
        (fused,) = torch.autograd.grad(
            (weight * ce_and_l1(logits, target, tail, label, kept, a_ce, a_l1)[0]).sum(), logits
        )
        (reference,) = torch.autograd.grad(
            (weight * plain(logits, target, tail, label, kept, a_ce, a_l1)).sum(), logits
        )
        torch.testing.assert_close(fused, reference, atol=1e-6, rtol=1e-4)


def test_full_vocabulary_gives_the_total_variation() -> None:
    torch.manual_seed(1)
    logits, p_t = torch.randn(5, 9), torch.softmax(torch.randn(5, 9), -1)
    label = torch.zeros(5, dtype=torch.long)
    _, _, l1 = ce_and_l1(logits, p_t, torch.zeros(5), label, 9, 0.1, 0.9)
    torch.testing.assert_close(l1, (torch.softmax(logits, -1) - p_t).abs().sum(-1))


def test_sampled_rest_estimates_the_partition_function() -> None:
    """exp(shift) makes the sampled sum of exponentials unbiased: mean of 4,000 draws within 4.5
    standard errors (false alarm 7e-6)."""
    torch.manual_seed(2)
    logits, kept = torch.randn(500), torch.arange(0, 500, 25)
    truth = logits.exp().sum()
    sums = []
    for _ in range(4000):
        chosen = with_negatives(kept, 500, 60)
        part = logits[chosen.ids].clone()
        part[chosen.kept :] += chosen.shift
        sums.append(part.exp().sum())
    drawn = torch.stack(sums)
    assert abs(drawn.mean() - truth) < 4.5 * drawn.std() / len(drawn) ** 0.5


def test_negatives_never_repeat_a_kept_token_and_fall_back_to_all() -> None:
    chosen = with_negatives(torch.tensor([2, 5]), 6, 10)
    assert sorted(chosen.ids.tolist()) == list(range(6))
    assert chosen.shift == 0.0


def test_position_weights_follow_deepspec() -> None:
    torch.testing.assert_close(
        position_weights(3), torch.tensor([1.0, 0.7788, 0.6065]), atol=1e-4, rtol=0
    )
