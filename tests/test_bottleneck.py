"""Eq. 4–9: statistics, the divergence by hand and by torch.distributions, and the optimisation image by image."""

import math

import pytest
import torch
from torch import nn

from ibsgl.bottleneck import Bottleneck, FeatureStatistics, GaussianBlur, bottleneck_saliency, kl_slope, kl_to_prior
from ibsgl.networks import build_network


def test_welford_equals_the_two_pass_formulas():
    features = torch.randn(50, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 7 + 1000
    statistics = FeatureStatistics()
    for batch in features.split([1, 20, 29]):
        statistics.update(batch)
    torch.testing.assert_close(statistics.mean, features.double().mean(0).float())
    torch.testing.assert_close(statistics.std, features.double().std(0).float())
    assert statistics.count == 50


def test_statistics_merge_and_survive_saving():
    features = torch.randn(30, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    left, right = FeatureStatistics().update(features[:7]), FeatureStatistics().update(features[7:])
    merged = FeatureStatistics.from_state_dict(left.merge(right).state_dict())
    torch.testing.assert_close(merged.mean, features.mean(0))
    torch.testing.assert_close(merged.std, features.std(0))
    assert FeatureStatistics().merge(merged).count == 30


def test_empty_statistics_say_what_to_do():
    with pytest.raises(ValueError, match="update"):
        _ = FeatureStatistics().mean


def test_divergence_by_hand():
    # A = 3, μ = 1, σ = 2, λ = ½: N ~ 𝒩(2, 1), Q = 𝒩(1, 4).
    # ln(2/1) + (1 + 1)/(2·4) − ½ = ln 2 − ¼.
    value = kl_to_prior(torch.tensor(3.0), torch.tensor(0.5), torch.tensor(1.0), torch.tensor(2.0))
    assert value.item() == pytest.approx(math.log(2) - 0.25, abs=1e-6)
    assert kl_to_prior(torch.tensor(3.0), torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0)).item() == 0


def test_divergence_equals_torch_distributions():
    g = torch.Generator().manual_seed(0)
    a, mu = torch.randn(2, 3, 4, 4, generator=g), torch.randn(3, 4, 4, generator=g)
    sigma, keep = torch.rand(3, 4, 4, generator=g) + 0.1, torch.rand(2, 3, 4, 4, generator=g) * 0.99
    p = torch.distributions.Normal(keep * a + (1 - keep) * mu, (1 - keep) * sigma)
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(mu, sigma))
    torch.testing.assert_close(kl_to_prior(a, keep, mu, sigma), expected, rtol=1e-4, atol=1e-5)


def test_slope_of_the_divergence_equals_autograd():
    g = torch.Generator().manual_seed(0)
    a, mu = torch.randn(2, 3, 4, 4, generator=g), torch.randn(3, 4, 4, generator=g)
    sigma, keep = torch.rand(3, 4, 4, generator=g) + 0.1, (torch.rand(2, 3, 4, 4, generator=g) * 0.99).requires_grad_()
    (expected,) = torch.autograd.grad(kl_to_prior(a, keep, mu, sigma).sum(), keep)
    torch.testing.assert_close(kl_slope(a, keep.detach(), mu, sigma), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sigma", "size"), [(1.0, (6, 7)), (0.5, (5, 5)), (2.0, (9, 6)), (1.0, (14, 14)), (1.5, (9, 16))]
)
def test_blur_equals_a_mirrored_convolution(sigma, size):
    maps = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radius = round(2 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2))
    padded = nn.functional.pad(maps, [radius] * 4, mode="reflect")
    expected = nn.functional.conv2d(padded.flatten(0, 1)[:, None], (kernel / kernel.sum())[None, None])
    blur = GaussianBlur(sigma, maps)
    torch.testing.assert_close(blur(maps), expected.view_as(maps))
    # The gradient of ⟨slope, blur(maps)⟩ at the maps.
    slope = torch.rand_like(maps)
    leaf = maps.clone().requires_grad_()
    (slope * blur(leaf)).sum().backward()
    torch.testing.assert_close(blur.gradient(slope), leaf.grad)


def test_blur_leaves_constants_alone_on_any_size():
    for size in ((1, 1), (1, 5), (2, 2), (7, 3)):
        ones = torch.ones(1, *size)
        torch.testing.assert_close(GaussianBlur(1.5, ones)(ones), ones)
    for maps in (torch.rand(1, 4, 4), torch.rand(2, 11, 12)):
        assert torch.equal(GaussianBlur(0, maps)(maps), maps)


@pytest.fixture
def case():
    torch.manual_seed(0)
    network = build_network("vgg_small", 4, width=8).eval()
    images = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        features = network.stem(images)
        statistics = FeatureStatistics().update(network.stem(torch.rand(40, 3, 64, 64)))
    return network, images, features, torch.tensor([0, 1, 2, 3, 0]), statistics


def _generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


@pytest.mark.parametrize("reduction", ["mean", "reference", "sum"])
def test_one_at_a_time_equals_batched_with_the_same_noise(case, reduction):
    network, _, features, targets, statistics = case
    settings = {"steps": 4, "samples": 3, "reduction": reduction, "alpha": 10.0}
    together = bottleneck_saliency(network.head, features, targets, statistics, generator=_generators(5), **settings)
    for i, g in enumerate(_generators(5)):
        alone = bottleneck_saliency(
            network.head, features[i : i + 1], targets[i : i + 1], statistics, generator=g, **settings
        )
        torch.testing.assert_close(together[i], alone[0], rtol=1e-3, atol=1e-5)
    assert (together >= 0).all()
    assert together.any()


# The blur is one product on the small map and two on the large one. Some maps have their channels last.
@pytest.mark.parametrize(
    ("size", "multilabel", "sigma"), [(64, False, 1.0), (64, True, 0.0), (176, True, 1.0), (176, False, 0.5)]
)
def test_follows_adam_on_the_whole_objective(size, multilabel, sigma):
    """The optimisation written the plain way: one image, torch.optim.Adam, autograd, the objective spelled out."""
    torch.manual_seed(0)
    network = build_network("vgg_small", 4, width=4).eval().double()
    images = torch.rand(6, 3, size, size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = network.stem(images)
    statistics = FeatureStatistics().update(features)
    a, target = features[1:2], torch.tensor([1])
    mean, std = statistics.mean.double(), statistics.std.double().clamp_min(0.01)
    blur = GaussianBlur(sigma, a)
    parameter = torch.full_like(a, 2.0).requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    g = torch.Generator().manual_seed(7)
    for _ in range(5):
        keep = (1 - 1e-6) * blur(parameter.sigmoid())
        noise = mean + std * torch.randn(6, *a.shape[1:], generator=g, dtype=torch.float64)
        p = torch.distributions.Normal(keep * a + (1 - keep) * mean, (1 - keep) * std)
        information = torch.distributions.kl_divergence(p, torch.distributions.Normal(mean, std)).mean()
        logits = network.head(keep * a + (1 - keep) * noise)
        if multilabel:
            recognition = -nn.functional.logsigmoid(logits[:, 1]).mean()
        else:
            recognition = nn.functional.cross_entropy(logits, target.expand(6))
        optimizer.zero_grad()
        (recognition + 3.0 * information).backward()
        optimizer.step()
    keep = (1 - 1e-6) * blur(parameter.detach().sigmoid())
    p = torch.distributions.Normal(keep * a + (1 - keep) * mean, (1 - keep) * std)
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(mean, std)).sum(1)
    settings = {"alpha": 3.0, "gamma": 2.0, "sigma": sigma, "lr": 0.5, "steps": 5, "samples": 6}
    for generators in (torch.Generator().manual_seed(7), [torch.Generator().manual_seed(7)]):
        ours = bottleneck_saliency(
            network.head, a, target, statistics, generator=generators, multilabel=multilabel, **settings
        )
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", ["sum", "channels last"])
def test_a_head_may_return_its_gradient_in_any_layout(head):
    """The gradient of a sum is one value with strides of 0."""

    class Head(nn.Module):
        def forward(self, features):
            if head == "channels last":
                features = features.contiguous(memory_format=torch.channels_last) * 0.1
            score = features.sum((1, 2, 3))
            return torch.stack([score, -score], dim=1)

    features = torch.rand(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics, targets = FeatureStatistics().update(features), torch.tensor([0, 1, 0])
    settings = {"alpha": 10.0, "steps": 3, "samples": 2}
    together = bottleneck_saliency(Head(), features, targets, statistics, **settings)
    alone = [
        bottleneck_saliency(Head(), features[i : i + 1], targets[i : i + 1], statistics, **settings) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_finds_the_only_cell_that_matters():
    """A head that reads one cell: information survives there and nowhere else."""

    class OneCell(nn.Module):
        def forward(self, features):
            score = features[:, :, 1, 2].sum(1)
            return torch.stack([score, -score], dim=1)

    g = torch.Generator().manual_seed(0)
    statistics = FeatureStatistics().update(torch.randn(500, 2, 5, 5, generator=g))
    features = torch.full((1, 2, 5, 5), 2.0)
    saliency = bottleneck_saliency(
        OneCell(), features, torch.tensor([0]), statistics, alpha=10.0, sigma=0.0, steps=30, samples=20
    )
    assert saliency[0].flatten().argmax() == 7
    assert saliency[0, 1, 2] > 10 * saliency[0].flatten().median()


def test_stronger_alpha_leaves_less_information(case):
    network, _, features, targets, statistics = case
    totals = [
        bottleneck_saliency(network.head, features, targets, statistics, alpha=alpha).sum().item()
        for alpha in (0, 1, 1e4)
    ]
    assert totals[0] > totals[1] > totals[2]


def test_reference_weight_is_the_mean_weight_on_the_reference_map():
    """One element of C·h·w weighs α/100352, whatever the map's size."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    features, targets = torch.rand(2, 8, 4, 4), torch.tensor([0, 2])
    statistics = FeatureStatistics().update(torch.rand(30, 8, 4, 4))
    shared = {"steps": 3, "samples": 2, "generator": None}
    reference = bottleneck_saliency(
        head, features, targets, statistics, alpha=100352.0, reduction="reference", **shared
    )
    mean = bottleneck_saliency(head, features, targets, statistics, alpha=8 * 16.0, reduction="mean", **shared)
    total = bottleneck_saliency(head, features, targets, statistics, alpha=1.0, reduction="sum", **shared)
    torch.testing.assert_close(reference, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total, mean, rtol=1e-4, atol=1e-6)


def test_statistics_of_another_map_are_refused(case):
    network, _, features, targets, _ = case
    other = FeatureStatistics().update(torch.rand(3, 7, 2, 2))
    with pytest.raises(ValueError, match="feature map"):
        bottleneck_saliency(network.head, features, targets, other)


def test_method_equals_the_function(case):
    network, images, features, targets, statistics = case
    method = Bottleneck(steps=2, samples=2)
    maps = method(network, images, targets, _generators(5), statistics=statistics)
    small = method.feature_saliency(network, features, targets, statistics, _generators(5))
    assert maps.shape == (5, 64, 64)
    expected = nn.functional.interpolate(small[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(maps, expected)
