"""SISE against values worked out by hand, and against a plain loop in float64 written from its equations."""

import math

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from torch import nn

from baselines.sise import SISE
from ibsgl.attribution import Passes, StageChannels
from ibsgl.networks.split import SplitNetwork


class _Counting(nn.Module):
    """Hands its input on and keeps the size of every batch that passed."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return x


def _linear_network(weights, multilabel=True) -> SplitNetwork:
    """A is the image. Logit c is Σ_k weights[c][k] · Σ_λ A_k(λ), so that α_k has the sign and the order of weights[c][k]."""
    linear = nn.Linear(3, len(weights), bias=False)
    linear.weight.data = 4 * torch.tensor(weights)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    stem = nn.Sequential(_Counting(), nn.Identity())
    return SplitNetwork(stem, head, multilabel=multilabel, stages=["1"]).eval()


# Red is lit top left, green bottom right, blue in the bottom row.
HAND_IMAGE = torch.tensor([[[[1.0, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [1, 1]]]])


def test_a_layers_map_by_hand():
    """Class 0 selects red. Class 1 selects green and blue, each weighted by its image's score and its mask's size."""
    network = _linear_network([[math.log(3), -1.0, 0.0], [-1.0, math.log(2), math.log(3)]])
    maps = SISE()(network, HAND_IMAGE.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    torch.testing.assert_close(maps[0], torch.tensor([[1.0, 0], [0, 0]]))
    # Seen through green: green and blue at the bottom right, logit ln 2 + ln 3, score 6/7. Through blue: ln 2 + 2 ln 3, 18/19.
    # Bottom left has 18/19 / 2, bottom right also 6/7.
    left, right = 18 / 19 / 2, 18 / 19 / 2 + 6 / 7
    torch.testing.assert_close(maps[1], torch.tensor([[0, 0], [left / right, 1.0]]), rtol=1e-5, atol=1e-5)


def test_mu_is_a_share_of_the_largest_gradient():
    network = _linear_network([[1.0, 0.5, 0.4]])
    for mu, selected in ((0, 3), (0.39, 3), (0.41, 2), (0.51, 1), (0.99, 1)):
        network.stem[0].sizes.clear()
        SISE(mu=mu)(network, HAND_IMAGE, torch.tensor([0]))
        assert network.stem[0].sizes == [1, selected]


def test_channels_are_passed_once_for_all_classes_of_an_image():
    network = _linear_network([[1.0, 1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]])
    sizes = network.stem[0].sizes
    SISE(chunk=2)(network, HAND_IMAGE.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    # The gradients of two pairs; then red and green, which one class or both select.
    assert sizes == [2, 2]
    sizes.clear()
    images = torch.cat([HAND_IMAGE.repeat(2, 1, 1, 1), HAND_IMAGE.flip(2)])
    SISE(chunk=2)(network, images, torch.tensor([0, 2, 1]))
    assert sizes == [2, 2, 1, 1, 1]
    sizes.clear()
    # No channel has contrast, so there is nothing to pass.
    assert (SISE()(network, torch.full((1, 3, 2, 2), 0.5), torch.tensor([0])) == 0).all()
    assert sizes == [1]


def test_scores_that_round_to_one_do_not_change_the_selection():
    for scale in (1.0, 1e4):
        network = _linear_network([[scale, -scale, scale], [-scale, scale, -scale]], multilabel=False)
        SISE()(network, HAND_IMAGE, torch.tensor([0]))
        assert network.stem[0].sizes == [1, 2]


def test_otsus_threshold_by_hand():
    """Of 0, 0, 0.25 and 1, the split before 1 separates best: 3·1·(1 − 1/12)² > 2·2·(5/8)². Its bin ends at 0.25."""
    maps = torch.tensor([[[0, 0], [0.25, 1]]])
    torch.testing.assert_close(SISE()._threshold(maps), torch.tensor([64.5 / 256]))
    # A quarter of the pixels reaches 1.5 times that: as before.
    torch.testing.assert_close(SISE(threshold="raised")._threshold(maps), torch.tensor([64.5 / 256]))
    # One pixel of 25 does, so the threshold is raised.
    few = torch.cat([torch.zeros(20), torch.full((4,), 0.25), torch.ones(1)]).view(1, 5, 5)
    assert SISE()._threshold(few) == 64.5 / 256
    assert SISE(threshold="raised")._threshold(few) == 1.5 * 64.5 / 256


def _between(values: np.ndarray, threshold: float) -> float:
    """How far the two classes of a threshold lie apart: Otsu's n₀·n₁·(μ₀ − μ₁)², with the values rounded to 256 bins."""
    rounded = (np.minimum(np.floor(values * 256), 255) + 0.5) / 256
    low, high = rounded[rounded <= threshold], rounded[rounded > threshold]
    return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0


def test_no_other_threshold_separates_better():
    maps = torch.rand(6, 20, 20, generator=torch.Generator().manual_seed(0)) ** torch.arange(1, 7)[:, None, None]
    maps = (maps - maps.amin((1, 2), keepdim=True)) / (
        maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    )
    for values, threshold in zip(maps.double().numpy(), SISE()._threshold(maps).tolist(), strict=True):
        best = max(_between(values, (split + 0.5) / 256) for split in range(255))
        assert _between(values, threshold) == pytest.approx(best, rel=1e-4)


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_fusion_by_hand():
    first = torch.tensor([[0.2, 0.4], [0.6, 1.0]])
    second = torch.tensor([[0, 0.25], [0, 1]])
    third = torch.tensor([[1, 0], [1, 1]])
    # t = 64.5/256 as above; of the two values 0 and 1, every split is as good, and the first is after bin 0.
    low, quarter, high = (_sigmoid(100 * (v - 64.5 / 256)) for v in (0, 0.25, 1))
    zero, one = (_sigmoid(100 * (v - 0.5 / 256)) for v in (0, 1))
    expected = [
        [(0.2 * low + 1) * one, (0.4 + 0.25) * quarter * zero],
        [(0.6 * low + 1) * one, ((1 + 1) * high + 1) * one],
    ]
    layers = torch.stack([first, second, third])[:, None]
    torch.testing.assert_close(SISE().fuse(layers)[0], torch.tensor(expected))
    binary = torch.tensor([[1.0, 0], [1, 3]])
    torch.testing.assert_close(SISE(mask="binary").fuse(layers)[0], binary)
    # The lowest layer has no mask, and the order matters.
    assert torch.equal(SISE().fuse(layers[:1]), layers[0])
    assert not torch.allclose(SISE().fuse(layers.flip(0)), SISE().fuse(layers))


@pytest.mark.parametrize("mask", ["sigmoid", "binary"])
@pytest.mark.parametrize(("without", "rest"), [([0], [1, 2]), ([1], [0, 2]), ([2], [0, 1]), ([0, 1], [2])])
def test_a_layer_without_contrast_is_left_out(mask, without, rest):
    layers = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    layers[without] = 0
    method = SISE(mask=mask)
    torch.testing.assert_close(method.fuse(layers), method.fuse(layers[rest]))


# A plain loop -----------------------------------------------------------------------------------------------------


def _interpolation(small: int, large: int) -> np.ndarray:
    """(large,small): bilinear interpolation at half-pixel centres along one side."""
    matrix = np.zeros((large, small))
    for i in range(large):
        place = min(max((i + 0.5) * small / large - 0.5, 0), small - 1)
        below = int(place)
        matrix[i, below] += 1 - (place - below)
        matrix[i, min(below + 1, small - 1)] += place - below
    return matrix


def _maps_by_walking(
    network: SplitNetwork, image: torch.Tensor, layers: str
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The maps and logits of a small network, child by child."""
    x, maps = network.stem.normalize(image), []
    names = network.stages if layers == "before" else network.reduced
    for prefix, part in (("", network.stem.backbone), ("head.", network.head)):
        for name, child in part.named_children():
            x = child(x)
            if prefix + name in names:
                maps.append(x)
    return maps, x


def _plain(network: SplitNetwork, image: torch.Tensor, target: int, method: SISE) -> np.ndarray:
    """SISE of one image (3,H,W), a channel at a time."""

    def score(x: torch.Tensor) -> torch.Tensor:
        logits = _maps_by_walking(network, x[None], method.layers)[1][0]
        return (logits.sigmoid() if network.multilabel else logits.exp() / logits.exp().sum())[target]

    image = image.clone().requires_grad_(True)
    maps, logits = _maps_by_walking(network, image[None], method.layers)
    psi = (logits.sigmoid() if network.multilabel else logits.softmax(1))[0, target]
    gradients = torch.autograd.grad(psi, maps)
    height, width = image.shape[1:]
    fill = network.mean if method.fill == "mean" else torch.zeros(3, 1, 1)
    layer_maps = []
    for layer, gradient in zip(maps, gradients, strict=True):
        alpha = gradient[0].sum((1, 2)).numpy()
        total = np.zeros((height, width))
        for channel, weight in zip(layer[0].detach().numpy(), alpha, strict=True):
            if weight > method.mu * alpha.max() and channel.max() > channel.min():
                h, w = channel.shape
                large = _interpolation(h, height) @ channel @ _interpolation(w, width).T
                mask = (large - large.min()) / (large.max() - large.min() + 1e-6)
                with torch.no_grad():
                    shown = torch.from_numpy(mask)
                    psi = score(image * shown + fill * (1 - shown)).item()
                total += psi * mask / (mask.sum() + 1e-6)
        layer_maps.append((total - total.min()) / (total.max() - total.min()))
    fused = layer_maps[0]
    for layer in layer_maps[1:]:
        threshold = threshold_otsu(layer)
        if method.threshold == "raised" and (layer >= 1.5 * threshold).mean() < 0.1:
            threshold *= 1.5
        soft = 1 / (1 + np.exp(-100 * (layer - threshold)))
        fused = (fused + layer) * (soft if method.mask == "sigmoid" else layer > threshold)
    return fused


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet", {}),
        ("vgg", {}),
        ("multilabel", {}),
        ("vgg", {"layers": "after"}),
        ("resnet", {"layers": "after", "threshold": "raised"}),
        ("multilabel", {"mu": 0.3, "fill": "mean"}),
        ("vgg", {"mask": "binary", "threshold": "raised"}),
    ],
)
def test_matches_a_plain_loop(networks, images, targets, name, settings):
    # At 48×64 pixels the last map of `after` has two values. Then a layer is a ramp whose pixels lie on the edges of bins.
    network, image = (
        networks[name].double(),
        nn.functional.interpolate(images[1:2].double(), (64, 96), mode="bicubic")[0],
    )
    # A random network hardly tells its inputs apart.
    network.head[-1].weight.data *= 20
    method = SISE(chunk=7, **settings)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    (found,) = method(network, image[None], targets[1:2])
    expected = _plain(network, image, int(targets[1]), method)
    assert expected.max() > expected.min()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


# The network -------------------------------------------------------------------------------------------------------


def test_a_network_without_stages_is_an_error(networks, images, targets):
    bare = SplitNetwork(networks["vgg"].stem, networks["vgg"].head)
    for layers, key in (("before", "stages"), ("after", "reduced")):
        with pytest.raises(ValueError, match=rf"^sise: the network has no {key}; .* SplitNetwork\(\.\.\., {key}="):
            SISE(layers=layers)(bare, images, targets)
        with pytest.raises(ValueError, match=f"sise: the network has no {key}"):
            SISE(layers=layers).stage_cost(StageChannels())


def test_the_cost_is_that_of_the_stages():
    stages = StageChannels((64, 256), (64, 512))
    assert SISE().stage_cost(stages).image == Passes(stem=320, head=320)
    assert SISE(layers="after").stage_cost(stages).image == Passes(stem=576, head=576)
    assert SISE().stage_cost(stages).at_most


def test_a_pass_that_fails_leaves_no_hook(networks, images, targets):
    network = networks["vgg"]
    network.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("stop")))
    with pytest.raises(KeyError, match="stop"):
        SISE()(network, images, targets)
    assert sum(len(module._forward_hooks) for module in network.modules()) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "all"}, "layers must be before or after"),
        ({"mask": "soft"}, "mask must be sigmoid or binary"),
        ({"threshold": "mean"}, "threshold must be otsu or raised"),
        ({"fill": "white"}, "fill must be black or mean"),
        ({"mu": 1}, "mu must be at least 0 and below 1"),
        ({"mu": -0.1}, "mu must be at least 0 and below 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=f"sise: {message}"):
        SISE(**settings)
