"""Score-CAM against arrays worked out by hand, a plain loop in NumPy, and the grad-cam package's raw-score variant."""

import math

import numpy as np
import pytest
import torch
from pytorch_grad_cam import ScoreCAM as Reference
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from baselines.score_cam import ScoreCAM, ScoreCAMProbability
from ibsgl.networks.split import SplitNetwork


class _Counting(nn.Module):
    """Hands its input on and keeps the size of every batch that passed."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return x


def _hand_network() -> SplitNetwork:
    """A: red, green, and 0.5 everywhere. Logits: ln 3 · Σ red, ln 2 · Σ green; two independent decisions."""
    convolution = nn.Conv2d(3, 3, 1)
    convolution.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]).view(3, 3, 1, 1)
    convolution.bias.data = torch.tensor([0, 0, 0.5])
    linear = nn.Linear(12, 2, bias=False)
    linear.weight.data = torch.zeros(2, 3, 4)
    linear.weight.data[0, 0], linear.weight.data[1, 1] = math.log(3), math.log(2)
    linear.weight.data = linear.weight.data.flatten(1)
    return SplitNetwork(
        nn.Sequential(_Counting(), convolution), nn.Sequential(nn.Flatten(), linear), multilabel=True
    ).eval()


# Red is lit top left, green bottom right; seen through the red channel the image keeps red alone, and so on. Through
# the constant channel nothing is seen: black. The probability of class 0 is 3/4 with red, else 1/2; of class 1 it is
# 2/3 with green, else 1/2.
HAND_IMAGE = torch.tensor([[[[1.0, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]])


@pytest.mark.parametrize(
    ("weight", "target", "weights"),
    [
        ("probability", 0, (3 / 4, 1 / 2, 1 / 2)),
        ("probability", 1, (1 / 2, 2 / 3, 1 / 2)),
        # Increases over black: 1/4, 0, 0; softmax.
        ("increase", 0, tuple(x / (math.exp(1 / 4) + 2) for x in (math.exp(1 / 4), 1, 1))),
        ("increase", 1, tuple(x / (math.exp(1 / 6) + 2) for x in (1, math.exp(1 / 6), 1))),
        # Logits: ln 3, 0, 0; softmax 3/5, 1/5, 1/5. And ln 2: 1/4, 2/4, 1/4.
        ("softmax_scores", 0, (3 / 5, 1 / 5, 1 / 5)),
        ("softmax_scores", 1, (1 / 4, 2 / 4, 1 / 4)),
    ],
)
def test_hand_computed(weight, target, weights):
    red, green, constant = weights
    expected = torch.tensor([[[red + constant / 2, constant / 2], [constant / 2, green + constant / 2]]])
    maps = ScoreCAM(weight=weight)(_hand_network(), HAND_IMAGE, torch.tensor([target]))
    torch.testing.assert_close(maps, expected)


def test_the_probability_weight_is_a_method_of_its_own():
    assert ScoreCAMProbability.label == "Score-CAM (probability weight)"
    network, targets = _hand_network(), torch.tensor([0])
    maps = ScoreCAMProbability()(network, HAND_IMAGE, targets)
    assert torch.equal(maps, ScoreCAM(weight="probability")(network, HAND_IMAGE, targets))
    assert not torch.equal(maps, ScoreCAM()(network, HAND_IMAGE, targets))


def test_passes_are_spent_once_an_image_on_informative_channels_only():
    network = _hand_network()
    images = torch.cat([HAND_IMAGE, HAND_IMAGE, HAND_IMAGE.flip(2)])
    ScoreCAM(chunk=3)(network, images, torch.tensor([0, 1, 0]))
    # The stem on 2 distinct images; the black image; 2 informative channels on each of the 2 images, 3 at a time.
    assert network.stem[0].sizes == [2, 1, 3, 1]


def test_rounding_is_no_contrast():
    # The third channel is 0.1 averaged over windows of several sizes, which is not the same float32 in all of them.
    network = _hand_network()
    network.stem[1].bias.data[2] = 0.1
    network.stem.append(nn.AdaptiveAvgPool2d(7))
    network.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), network.head)
    image = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    constant = network.stem(image)[0, 2]
    assert constant.max() > constant.min()
    network.stem[0].sizes.clear()
    ScoreCAM()(network, image, torch.tensor([0]))
    assert network.stem[0].sizes == [1, 1, 2]


def _bilinear(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h,w) → (height,width) at half-pixel centres, one pixel at a time."""
    h, w = channel.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * h / height - 0.5, 0)
            x = max((j + 0.5) * w / width - 0.5, 0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = channel[y0, x0] * (1 - (x - x0)) + channel[y0, x1] * (x - x0)
            bottom = channel[y1, x0] * (1 - (x - x0)) + channel[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


def _plain(network: SplitNetwork, image: np.ndarray, target: int, weight: str, fill: np.ndarray) -> np.ndarray:
    """Score-CAM of one image (3,H,W), a channel at a time."""

    def score(x: np.ndarray) -> float:
        with torch.no_grad():
            logits = network(torch.from_numpy(x)[None])[0].numpy()
        if weight == "softmax_scores":
            return logits[target]
        if network.multilabel:
            return 1 / (1 + np.exp(-logits[target]))
        return np.exp(logits[target]) / np.exp(logits).sum()

    with torch.no_grad():
        features = network.stem(torch.from_numpy(image)[None])[0].numpy()
    background = np.broadcast_to(fill[:, None, None], image.shape)
    scores = []
    for channel in features:
        mask = np.zeros(image.shape[1:])
        if channel.max() > channel.min():
            large = _bilinear(channel, *image.shape[1:])
            mask = (large - large.min()) / (large.max() - large.min())
        scores.append(score(image * mask + background * (1 - mask)))
    scores = np.array(scores)
    if weight == "increase":
        scores = scores - score(background.copy())
    weights = scores if weight == "probability" else np.exp(scores) / np.exp(scores).sum()
    total = sum(w * channel for w, channel in zip(weights, features, strict=True))
    return _bilinear(np.maximum(total, 0), *image.shape[1:])


@pytest.mark.parametrize("fill", ["black", "mean"])
@pytest.mark.parametrize("weight", ["increase", "probability", "softmax_scores"])
@pytest.mark.parametrize("name", ["vgg", "multilabel"])
def test_matches_a_plain_loop(networks, images, targets, name, weight, fill):
    network, images = networks[name].double(), images[:2].double()
    network.head[-1].weight.data *= 20  # a random network's scores hardly differ between channels
    colour = network.mean.flatten().numpy() if fill == "mean" else np.zeros(3)
    maps = ScoreCAM(weight=weight, fill=fill, chunk=7)(network, images, targets[:2]).numpy()
    for image, target, found in zip(images.numpy(), targets[:2].tolist(), maps, strict=True):
        expected = _plain(network, image, target, weight, colour)
        assert expected.max() > expected.min()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def _scaled(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    assert (high - low > 1e-3).all()
    return (maps - low) / (high - low)


def test_matches_the_grad_cam_package_where_nothing_is_resized():
    # Feature maps as large as the image: the package's own upsampling (align_corners=True) has nothing to do.
    torch.manual_seed(2)
    stem = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(7 * 12, 3))
    head[-1].weight.data *= 10
    network = SplitNetwork(stem, head).eval()
    images = torch.rand(2, 3, 6, 8)
    _assert_matches_package(network, images, [0, 2])


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_matches_the_grad_cam_package_given_our_interpolation(networks, images, name, monkeypatch):
    # The package masks with corner-aligned maps, the authors' code and ours with half-pixel ones. All else must agree.
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))
    networks[name].head[-1].weight.data *= 20
    _assert_matches_package(networks[name], images, [1, 3, 0])


def _assert_matches_package(network: SplitNetwork, images: torch.Tensor, targets: list[int]) -> None:
    ours = ScoreCAM(weight="softmax_scores")(network, images, torch.tensor(targets)).numpy()
    with Reference(network, [network.stem]) as cam:
        reference = cam(images, [ClassifierOutputTarget(target) for target in targets])
    # The package adds 1e-8 to each channel's range and 1e-7 to each map's maximum, and resizes with OpenCV, in float32.
    np.testing.assert_allclose(_scaled(ours), reference, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weight": "logit"}, "weight"), ({"fill": "white"}, "fill"), ({"chunk": 0}, "chunk")],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=f"score_cam: {message}"):
        ScoreCAM(**settings)
