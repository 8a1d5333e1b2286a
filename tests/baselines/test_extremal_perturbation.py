"""Extremal Perturbation: its parts against plain loops and hand computation, its masks on objects planted by hand."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

from baselines.extremal_perturbation import (
    ExtremalPerturbation,
    _apply,
    _area_loss,
    _blur,
    _reference,
    _SmoothMaxConvolution,
)
from ibsgl.networks.split import SplitNetwork

# Quick settings for images of 32 to 48 pixels.
SMALL = {"iterations": 60, "lr": 0.1, "grid_spacing": 4, "sigma": 6.0, "blur": 8.0}


@pytest.mark.parametrize(("grid_spacing", "sigma"), [(3, 4.0), (4, 4.0), (5, 2.5)])
def test_smooth_max_convolution_matches_a_plain_loop(grid_spacing, sigma):
    height, width = 13, 17
    smooth_max = _SmoothMaxConvolution(torch.Size((height, width)), grid_spacing, sigma).double()
    h, w = math.ceil(height / grid_spacing), math.ceil(width / grid_spacing)
    assert smooth_max.grid == (h, w)
    parameters = torch.rand(2, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters[0, 0, 0], parameters[1] = 1, parameters[1] > 0.8
    reach = 1 + math.ceil(sigma / grid_spacing)
    expected = np.zeros((2, height, width))
    for n in range(2):
        for y in range(height):
            for x in range(width):
                values = []
                for i in range(y // grid_spacing - reach, y // grid_spacing + reach + 1):
                    for j in range(x // grid_spacing - reach, x // grid_spacing + reach + 1):
                        inside = 0 <= i < h and 0 <= j < w
                        z = math.hypot(y - grid_spacing * i, x - grid_spacing * j) / sigma
                        bell = 1 if z < 0.5 else math.exp(-2 * (z - 0.5) ** 2)
                        values.append(bell * parameters[n, i, j].item() if inside else 0)
                powers = [math.exp(20 * value) for value in values]
                expected[n, y, x] = sum(v * p for v, p in zip(values, powers, strict=True)) / sum(powers)
    np.testing.assert_allclose(smooth_max(parameters).numpy(), expected, rtol=1e-12)


def test_a_padded_mask_is_the_mask_with_a_margin():
    parameters = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = torch.Size((16, 20))
    plain = _SmoothMaxConvolution(size, 4, 6.0).double()
    padded = _SmoothMaxConvolution(size, 4, 6.0, padded=True).double()
    # ⌈12/4⌉ − ⌈6/4⌉ = 1 cell on each side: 4·(4 + 2) − 3 = 21 rows and 4·(5 + 2) − 3 = 25 columns.
    masks = padded(parameters)
    assert masks.shape == (2, 21, 25)
    torch.testing.assert_close(padded.inside(masks), plain(parameters), rtol=1e-12, atol=0)
    assert torch.equal(padded.inside(masks), masks[:, 4:20, 4:24])
    # The pixel above the image's first one is one pixel away from the grid's first place, and the bell there is still 1.
    assert masks[0, 3, 4] > 0
    # Without padding nothing is cut off.
    assert torch.equal(plain.inside(plain(parameters)), plain(parameters))


def test_a_tenth_of_the_padded_mask_is_13_5_percent_of_the_image():
    # At the published settings the grid has 32 cells. ⌈42/7⌉ − ⌈21/7⌉ = 3 more on each side: 7·38 − 6 = 260 pixels.
    padded = _SmoothMaxConvolution(torch.Size((224, 224)), 7, 21.0, padded=True)
    assert padded.size == (260, 260)
    assert padded.grid == (32, 32)
    ones = _reference(torch.tensor([0.1], dtype=torch.float64), padded.size.numel()).sum().item()
    assert ones == 6760
    assert ones / 224**2 == pytest.approx(0.135, abs=5e-4)


def test_smooth_max_convolution_has_the_right_gradient():
    smooth_max = _SmoothMaxConvolution(torch.Size((5, 7)), 3, 4.0).double()
    parameters = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(smooth_max, parameters.requires_grad_(True))


def test_area_loss_hand_computed():
    # Ascending: 0.1 0.2 0.5 0.9 against 0 0 0 1, then 0 0 1 1 against 0 0 1 1, then 0.2 0.2 0.2 0.6 against 0 1 1 1.
    masks = torch.tensor([[[0.5, 0.1], [0.9, 0.2]], [[1, 0], [0, 1]], [[0.2, 0.6], [0.2, 0.2]]])
    reference = _reference(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 4)
    assert reference.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    expected = torch.tensor([(0.01 + 0.04 + 0.25 + 0.01) / 4, 0, (0.04 + 0.64 + 0.64 + 0.16) / 4])
    torch.testing.assert_close(_area_loss(masks, reference.float()), expected)


def test_reference_holds_the_area_to_the_pixel():
    areas = [0.025, 0.05, 0.1, 0.2, 0.3]
    for pixels in (10000, 9216, 50176):
        ones = _reference(torch.tensor(areas, dtype=torch.float64), pixels).sum(1)
        assert ones.tolist() == [math.ceil(round(area * pixels, 3)) for area in areas]


def test_levels_are_interpolated():
    # A pyramid whose level l is the picture (10 l, 20 l, 30 l).
    pyramid = (torch.arange(4.0)[:, None] * torch.tensor([10.0, 20, 30])).view(1, 4, 3, 1, 1).expand(1, 4, 3, 2, 3)
    masks = torch.tensor([[[0, 0.1, 1 / 3], [0.5, 0.9, 1]]], requires_grad=True)
    shown = _apply(pyramid, masks)
    expected = 3 * masks.detach()[:, None] * torch.tensor([10.0, 20, 30]).view(1, 3, 1, 1)
    torch.testing.assert_close(shown.detach(), expected)
    # Also at the sharp end, where every mask starts, the mask has a gradient.
    (gradient,) = torch.autograd.grad(shown.sum(), masks)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 180))


@pytest.mark.parametrize("sigma", [0.7, 3.0, 9.0])
def test_blur_matches_scipy(sigma):
    maps = torch.rand(2, 3, 20, 27, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reach = math.ceil(4 * sigma)
    expected = scipy.ndimage.gaussian_filter(maps.numpy(), sigma, mode="constant", radius=reach, axes=(2, 3))
    np.testing.assert_allclose(_blur(maps, sigma).numpy(), expected, atol=1e-12)


def test_pyramid_blurs_towards_the_mean_colour():
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    pyramid = ExtremalPerturbation(levels=4, blur=6.0)._pyramid(torch.cat([image, mean.expand_as(image)]), mean)
    assert pyramid.shape == (2, 4, 3, 24, 24)
    torch.testing.assert_close(pyramid[1], mean.expand_as(pyramid[1]))
    assert torch.equal(pyramid[0, 3], image[0])
    for level, sigma in enumerate((6, 4, 2)):
        torch.testing.assert_close(pyramid[0, level], _blur(image[0] - mean, sigma) + mean)


class _Contrast(nn.Module):
    """Logit c is ``loudness`` times the mean absolute step from pixel to pixel in colour c: it sees texture only."""

    def __init__(self, loudness: float = 60):
        super().__init__()
        self.loudness = nn.Parameter(torch.tensor(float(loudness)))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.loudness * x.diff(dim=-1).abs().mean((2, 3))


BOXES = {0: (slice(6, 20), slice(8, 22)), 1: (slice(26, 40), slice(30, 44))}


def _planted() -> torch.Tensor:
    """A grey image (3,48,48) with stripes in red in one box and in green in another."""
    image = torch.full((3, 48, 48), 0.5)
    for colour, (rows, columns) in BOXES.items():
        image[colour, rows, columns] = (torch.arange(14) % 2).float()
    return image


def test_finds_a_planted_object_of_the_target_in_the_area_asked_for():
    images, targets = _planted().repeat(2, 1, 1, 1), torch.tensor([0, 1])
    network = SplitNetwork(nn.Identity(), _Contrast())
    areas = (0.05, 0.1, 0.2)
    masks = ExtremalPerturbation(**SMALL, areas=areas).masks(network, images, targets)
    assert masks.shape == (2, 3, 48, 48)
    assert masks.min() >= 0
    assert masks.max() <= 1
    for found, target in zip(masks, targets.tolist(), strict=True):
        for mask, area in zip(found, areas, strict=True):
            assert mask.mean().item() == pytest.approx(area, abs=0.03)
            # Nearly binary: few pixels are neither in nor out.
            assert ((mask > 0.15) & (mask < 0.85)).float().mean() < 0.15
            # The box is 8.5 % of the image; the largest mask cannot hold more than 42 % of itself in it.
            assert mask[BOXES[target]].sum() / mask.sum() > 4.5 * 0.085


def test_the_area_of_a_padded_mask_counts_the_margin():
    # The padded mask of 48×48 pixels has 4·(12 + 2) − 3 = 53 a side. A fifth of it is 562 of the image's 2304 pixels, 24.4 %.
    network = SplitNetwork(nn.Identity(), _Contrast())
    images, targets = _planted()[None], torch.tensor([0])
    shares = {}
    for padded in (False, True):
        masks = ExtremalPerturbation(**SMALL, areas=(0.2,), padded=padded).masks(network, images, targets)
        assert masks.shape == (1, 1, 48, 48)
        shares[padded] = masks.mean().item()
    assert shares[True] / shares[False] == pytest.approx(53**2 / 48**2, rel=0.05)


def test_padding_costs_no_passes():
    assert ExtremalPerturbation(padded=True).cost(512) == ExtremalPerturbation().cost(512)


def test_map_is_the_sum_over_areas_smoothed():
    images, targets = _planted()[None], torch.tensor([0])
    network = SplitNetwork(nn.Identity(), _Contrast())
    method = ExtremalPerturbation(**{**SMALL, "iterations": 5}, areas=(0.05, 0.2), smooth=0.09)
    masks = method.masks(network, images, targets)
    single = ExtremalPerturbation(**{**SMALL, "iterations": 5}, areas=(0.2,))(network, images, targets)
    torch.testing.assert_close(masks[:, 1], single)
    smoothed = scipy.ndimage.gaussian_filter(
        masks[0].sum(0).numpy(), 0.09 * 48, mode="constant", radius=math.ceil(4 * 0.09 * 48)
    )
    np.testing.assert_allclose(method(network, images, targets)[0].numpy(), smoothed, atol=1e-5)


def test_the_network_sees_the_image_flipped_in_even_steps():
    network = SplitNetwork(nn.Identity(), _Contrast())
    images = _planted()[None]
    ExtremalPerturbation(**{**SMALL, "iterations": 4, "lr": 1e-9})(network, images, torch.tensor([0]))
    assert len(network.head.seen) == 4
    # With a mask that stays near 1 the network sees the image nearly as it is.
    for t, seen in enumerate(network.head.seen):
        as_it_is, flipped = (seen - images).abs().mean(), (seen - images.flip(-1)).abs().mean()
        assert (flipped < as_it_is / 2) if t % 2 == 0 else (as_it_is < flipped / 2)


def test_first_steps_hand_computed():
    # One parameter whose bell is 1 at all of the image's 2×2 pixels, for √2 < σ/2, and a network that is deaf: only the
    # area counts. Of the 25 products near a pixel one is p, 24 are 0: m = p e^{20p} / (e^{20p} + 24).
    network = SplitNetwork(nn.Identity(), _Contrast(0)).double()
    images, lr, weight, growth = torch.rand(1, 3, 2, 2, dtype=torch.float64), 1e-3, 5.0, 1.5
    settings = {
        "areas": (0.25,),
        "lr": lr,
        "weight": weight,
        "growth": growth,
        "grid_spacing": 4,
        "sigma": 4.0,
        "blur": 1.0,
    }

    def mask(p: float) -> float:
        return p * math.exp(20 * p) / (math.exp(20 * p) + 24)

    def slope(p: float) -> float:
        s = math.exp(20 * p) / (math.exp(20 * p) + 24)
        return s * (1 + 20 * p * (1 - s))

    # ∂/∂m of the mean of (m, m, m, m − 1)² is 2m − 1/2. The first step's gradient counts whole, later ones a tenth.
    p, velocity = 1.0, None
    for t in range(3):
        gradient = -weight * growth**t * (2 * mask(p) - 0.5) * slope(p)
        velocity = gradient if velocity is None else 0.9 * velocity + 0.1 * gradient
        p = min(1.0, p + lr * velocity)
        found = ExtremalPerturbation(iterations=t + 1, **settings)(network, images, torch.tensor([0]))
        assert found.shape == (1, 2, 2)
        torch.testing.assert_close(found, torch.full_like(found, mask(p)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("network", ["resnet", "vgg"])
def test_at_the_published_learning_rate_rounding_does_not_grow(network, networks, images, targets):
    method = ExtremalPerturbation(iterations=100)
    together = method(networks[network], images, targets)
    for i in range(3):
        alone = method(networks[network], images[i : i + 1], targets[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"areas": ()}, "areas"),
        ({"areas": (0.1, 1.0)}, "areas"),
        ({"iterations": 0}, "iterations"),
        ({"lr": 0.0}, "lr"),
        ({"weight": -1.0}, "weight"),
        ({"growth": 0.0}, "growth"),
        ({"grid_spacing": 0}, "grid_spacing"),
        ({"sigma": 0.0}, "sigma"),
        ({"levels": 1}, "levels"),
        ({"blur": 0.0}, "blur"),
        ({"smooth": -0.1}, "smooth"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=f"extremal_perturbation: {message} must"):
        ExtremalPerturbation(**settings)
