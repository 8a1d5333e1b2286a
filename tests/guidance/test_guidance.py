"""Eq. 10 and 11 by hand, and properties of the inner problem."""

import math

import pytest
import torch
from torch import nn

from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.guidance.localization import localization_loss, localization_losses, other_class, saliency_cross_entropy
from ibsgl.networks import build_network
from ibsgl.saliency import gradient_saliency


def test_cross_entropy_by_hand():
    l_ib = torch.tensor([[[3.0, 1.0]]])
    l_c = torch.tensor([[[2.0, 2.0]]])
    # q_ib = (¾, ¼), q_c = (½, ½), which smoothing leaves alone.
    assert saliency_cross_entropy(l_c, l_ib).item() == pytest.approx(math.log(2))
    # Scale says nothing; where the maps agree q_c is 0.99·(¾, ¼) + 0.005.
    agreed = -0.75 * math.log(0.7475) - 0.25 * math.log(0.2525)
    assert saliency_cross_entropy(10 * l_ib, l_ib).item() == pytest.approx(agreed)
    # All of L^c in the wrong place: q_c = (0.005, 0.995).
    wrong = -0.75 * math.log(0.005) - 0.25 * math.log(0.995)
    assert saliency_cross_entropy(torch.tensor([[[0.0, 7.0]]]), l_ib).item() == pytest.approx(wrong, rel=1e-5)
    # An empty L^c is the worst there is, an empty L^ib asks for nothing.
    assert saliency_cross_entropy(torch.zeros(1, 1, 2), l_ib).item() == pytest.approx(-math.log(0.005))
    assert saliency_cross_entropy(l_c, torch.zeros(1, 1, 2)).item() == 0


def test_binary_cross_entropy_by_hand():
    l_ib = torch.tensor([[[0.0, 2.0, 1.0]]])
    l_c = torch.tensor([[[1.0, 3.0, 2.5]]])
    # After min–max: (0, 1, ½) against (0, 1, ¾): the third pixel alone costs −½ ln ¾ − ½ ln ¼.
    expected = (-0.5 * math.log(0.75) - 0.5 * math.log(0.25)) / 3
    assert saliency_cross_entropy(l_c, l_ib, "binary").item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="distribution, binary"):
        saliency_cross_entropy(l_c, l_ib, "squared")


def test_cross_entropy_has_finite_gradients_at_zero():
    l_c = torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]], requires_grad=True)
    saliency_cross_entropy(l_c, torch.rand(2, 1, 2)).sum().backward()
    assert l_c.grad.isfinite().all()


def test_other_class():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert other_class(logits, torch.tensor([0, 1])).tolist() == [1, 0]
    # Multi-label: every class present is out, unless that leaves none.
    labels = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert other_class(logits, torch.tensor([0, 1]), labels).tolist() == [2, 0]


def test_divergence_by_hand():
    a = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])
    b = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]]])
    # Softmax: (¼, ¾) against (½, ½) in one channel, equal in the other.
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert feature_divergence(a, b).item() == pytest.approx(expected)
    assert feature_divergence(a, b, reduction="mean").item() == pytest.approx(expected / 2)
    one, two = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    assert feature_divergence(one, two, "sum").item() == pytest.approx(expected, abs=1e-5)
    assert feature_divergence(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "sum").item() == 0


def test_divergence_equals_torch():
    a, b = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    expected = nn.functional.kl_div(
        b.flatten(2).log_softmax(-1), a.flatten(2).log_softmax(-1), log_target=True, reduction="none"
    ).sum((1, 2))
    torch.testing.assert_close(feature_divergence(a, b), expected)
    assert (feature_divergence(a, b) > 0).all()
    with pytest.raises(ValueError, match="normalise"):
        feature_divergence(a, b, "max")
    with pytest.raises(ValueError, match="reduction"):
        feature_divergence(a, b, reduction="max")


@pytest.fixture(params=["resnet_small", "vgg_small"])
def case(request):
    torch.manual_seed(0)
    network = build_network(request.param, 5, width=8).eval()
    for module in network.head.modules():
        if isinstance(module, nn.Linear):
            # An untrained head's maps are mostly zero; with positive weights there is evidence everywhere, as after training.
            module.weight.data.abs_()
    with torch.no_grad():
        features = network.stem(torch.rand(6, 3, 64, 64))
    return network.head, features, torch.arange(6) % 5, torch.rand(6, *features.shape[2:])


def _loss(head, features, target, l_ib):
    l_ce, l_ss, _ = localization_losses(head, features, target, l_ib, r=0.35)
    return l_ce + l_ss


@pytest.mark.parametrize("steps", [1, 5])
def test_target_lowers_the_loss(case, steps):
    head, features, target, l_ib = case
    moved = guidance_target(head, features, target, l_ib, beta=1.0, r=0.35, step_size=0.02, steps=steps)
    assert (_loss(head, moved, target, l_ib) < _loss(head, features, target, l_ib)).all()
    assert (moved >= 0).all()
    assert not moved.requires_grad


def test_relative_step_has_the_stated_length():
    """Away from the boundary A' ≥ 0 the step is exactly step_size · ‖A‖."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Softplus(), nn.Linear(8, 3))
    features = torch.rand(4, 2, 4, 4) + 5
    moved = guidance_target(
        head, features, torch.tensor([0, 1, 2, 0]), torch.rand(4, 4, 4), beta=1.0, r=0.35, step_size=0.03, steps=1
    )
    length = (moved - features).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, 0.03 * features.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-5)


def test_absolute_step_is_the_raw_gradient(case):
    head, features, target, l_ib = case
    leaf = features.clone().requires_grad_()
    loss = localization_loss(head, leaf, target, l_ib, beta=0.7, r=0.35)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    moved = guidance_target(head, features, target, l_ib, beta=0.7, r=0.35, step_size=0.5, steps=1, relative=False)
    torch.testing.assert_close(moved, (features - 0.5 * gradient).clamp_min(0))


def test_each_image_is_its_own_problem(case):
    head, features, target, l_ib = case
    settings = {"beta": 1.0, "r": 0.35, "step_size": 0.05, "steps": 3}
    together = guidance_target(head, features, target, l_ib, **settings)
    for i in range(6):
        alone = guidance_target(head, features[[i]], target[[i]], l_ib[[i]], **settings)
        torch.testing.assert_close(together[[i]], alone, rtol=1e-3, atol=1e-4)


def test_gradient_of_eq_10_by_finite_differences():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(18, 6), nn.Softplus(), nn.Linear(6, 3)).double()
    features = (torch.rand(1, 2, 3, 3) + 1).double().requires_grad_()
    target, l_ib = torch.tensor([1]), torch.rand(1, 3, 3).double()
    assert torch.autograd.gradcheck(
        lambda a: localization_loss(head, a, target, l_ib, beta=1.0, r=0.35), features, eps=1e-6, atol=1e-4
    )


def test_when_suppression_counts(case):
    head, features, target, l_ib = case
    l_ce, l_ss, correct = localization_losses(head, features, target, l_ib, r=0.35)
    assert (l_ss > 0).any()

    def total(when):
        return localization_loss(head, features, target, l_ib, beta=2.0, r=0.35, when=when).detach()

    torch.testing.assert_close(total("always"), l_ce + 2 * l_ss)
    torch.testing.assert_close(total("never"), l_ce)
    torch.testing.assert_close(total("correct"), l_ce + 2 * l_ss * correct)
    torch.testing.assert_close(total("misclassified"), l_ce + 2 * l_ss * ~correct)
    with pytest.raises(ValueError, match=r"suppression\.when"):
        total("sometimes")


def test_a_head_that_says_nothing_leaves_the_features(case):
    _, features, target, l_ib = case
    channels = features.shape[1]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    nn.init.zeros_(head[2].weight)
    moved = guidance_target(head, features, target, l_ib, beta=1.0, r=0.35, step_size=0.1, steps=2)
    assert torch.equal(moved, features)


def test_without_a_map_only_suppression_is_left(case):
    head, features, target, l_ib = case
    l_ce, l_ss, _ = localization_losses(head, features, target, None, r=0.35)
    assert torch.equal(l_ce, torch.zeros(6))
    assert torch.equal(l_ss, localization_losses(head, features, target, l_ib, r=0.35)[1])
    settings = {"beta": 2.0, "r": 0.35, "step_size": 0.02, "steps": 1}
    loss = localization_loss(head, features, target, None, beta=2.0, r=0.35)
    torch.testing.assert_close(loss.detach(), 2 * l_ss)
    moved = guidance_target(head, features, target, None, **settings)
    _, after, _ = localization_losses(head, moved, target, None, r=0.35)
    assert (after[l_ss > 0] < l_ss[l_ss > 0]).all()
    # Images without an overlap stay as they are.
    assert torch.equal(moved[l_ss == 0], features[l_ss == 0])


@pytest.mark.parametrize("relative", [True, False])
def test_without_a_map_and_without_suppression_nothing_moves(case, relative):
    head, features, target, _ = case
    settings = {"beta": 1.0, "r": 0.35, "step_size": 0.1, "steps": 2, "when": "never", "relative": relative}
    assert torch.equal(guidance_target(head, features, target, None, **settings), features)


def test_p_is_the_likeliest_other_class(case):
    head, features, target, l_ib = case
    logits = head(features)
    p = [max((k for k in range(5) if k != c), key=lambda k: logits[i, k].item()) for i, c in enumerate(target.tolist())]
    l_p = gradient_saliency(head, features, torch.tensor(p))
    l_c = gradient_saliency(head, features, target)
    from ibsgl.suppression import suppression_loss

    _, l_ss, _ = localization_losses(head, features, target, l_ib, r=0.35)
    torch.testing.assert_close(l_ss, suppression_loss(l_c, l_p, 0.35))


def test_negative_features_are_not_cut_off():
    """The floor A' ≥ 0 stands for the ReLU; a network without one keeps its negative values."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Softplus(), nn.Linear(8, 3))
    features = torch.randn(2, 2, 4, 4)
    moved = guidance_target(
        head, features, torch.tensor([0, 1]), torch.rand(2, 4, 4), beta=1.0, r=0.35, step_size=1e-3, steps=1
    )
    assert ((moved - features).flatten(1).norm(dim=1) <= 1.01e-3 * features.flatten(1).norm(dim=1)).all()
