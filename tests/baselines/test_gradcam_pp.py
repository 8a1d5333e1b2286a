"""Grad-CAM++ against arrays worked out by hand, a plain loop over the paper's formula, and the grad-cam package."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAMPlusPlus as Reference
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from baselines.gradcam import GradCAM
from baselines.gradcam_pp import GradCAMPlusPlus
from ibsgl.networks.split import SplitNetwork, upsample


def _identity_network(gradients) -> SplitNetwork:
    """A = the image; the logit of class c has the gradient ``gradients[c]`` (3,h,w) everywhere."""
    weight = torch.tensor(gradients, dtype=torch.float32).flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return SplitNetwork(nn.Identity(), nn.Sequential(nn.Flatten(), linear))


def test_hand_computed_with_negative_gradients_and_zero_denominators():
    # Sums of the channels: 2, 4, 0. With g the gradient, the denominator 2g² + ΣA g³ is zero
    #   in channel 1 at g = −1 (2 − 2) and at g = 0; in channel 2 at g = −½ (½ − ½) and at g = 0.
    # Channel 1, g > 0: g = 1: α = 1/(2 + 2) = 1/4;  g = 2: α = 4/(8 + 2·8) = 1/6.   w = 1·1/4 + 2·1/6 = 7/12
    # Channel 2, g > 0: g = ½: α = ¼/(½ + 4·⅛) = 1/4.                                 w = ½·1/4 = 1/8
    # Channel 3 has A = 0 (α = 1/2 at g = 3) and adds nothing.
    # 7/12 [[1,0],[0,1]] + 1/8 [[0,2],[1,1]] = [[7/12, 1/4], [1/8, 17/24]]
    image = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 2], [1, 1]], [[0, 0], [0, 0]]]])
    network = _identity_network([[[[1, -1], [0, 2]], [[-0.5, 0.5], [0, -2]], [[3, -3], [0, 0]]]])
    target = torch.tensor([0])
    expected = torch.tensor([[[7 / 12, 1 / 4], [1 / 8, 17 / 24]]])
    torch.testing.assert_close(GradCAMPlusPlus()(network, image, target), expected)
    # Grad-CAM's mean gradients are ½ and −½: another map altogether.
    torch.testing.assert_close(GradCAM()(network, image, target), torch.tensor([[[0.5, 0], [0, 0]]]))


def test_signed_features():
    # Channel 1 sums to −2: at g = 1 the denominator 2 − 2 is zero with g > 0, α is undefined and counts as 0;
    # at g = ½: α = ¼/(½ − 2·⅛) = 1, w = ½. Channel 2 sums to 0: g = 1 everywhere: α = ½, w = 4·½ = 2.
    # ½ [[−3,0],[0,1]] + 2 [[1,−1],[0,0]] = [[½, −2], [0, ½]], rectified [[½, 0], [0, ½]].
    image = torch.tensor([[[[-3.0, 0], [0, 1]], [[1, -1], [0, 0]], [[0, 0], [0, 0]]]])
    network = _identity_network([[[[1, 0.5], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]])
    maps = GradCAMPlusPlus()(network, image, torch.tensor([0]))
    torch.testing.assert_close(maps, torch.tensor([[[0.5, 0], [0, 0.5]]]))


def test_gradients_whose_cubes_vanish_in_float32():
    # g = 1e-20 everywhere, ΣA = 1: g² and g³ underflow to 0; the limit is α = ½, w = 4·½·1e-20 = 2e-20.
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, 0, 0] = 1
    maps = GradCAMPlusPlus()(_identity_network(np.full((1, 3, 2, 2), 1e-20).tolist()), image, torch.tensor([0]))
    torch.testing.assert_close(maps * 1e20, torch.tensor([[[2.0, 0], [0, 0]]]))


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_matches_a_plain_loop_over_the_formula(networks, images, targets, name):
    network, images = networks[name].double(), images.double()
    features = network.stem(images).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network.head(features).gather(1, targets[:, None]).sum(), features)
    a, g = features.detach().numpy(), gradient.numpy()
    expected = np.zeros((len(a), *a.shape[2:]))
    for b in range(len(a)):
        for k in range(a.shape[1]):
            weight = 0.0
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    first = g[b, k, i, j]
                    denominator = 2 * first**2 + a[b, k].sum() * first**3
                    if denominator != 0:
                        weight += first**2 / denominator * max(first, 0)
            expected[b] += weight * a[b, k]
    assert expected.max() > 0
    expected = upsample(torch.from_numpy(np.maximum(expected, 0)), images.shape[-2:])
    torch.testing.assert_close(GradCAMPlusPlus()(network, images, targets), expected, rtol=1e-9, atol=1e-12)


def test_matches_the_grad_cam_package():
    # The package adds 1e-6 to the denominator. Small features with large gradients keep g ΣA, on which the weights
    # depend, of order 1 and more, while 1e-6 / g² is negligible for every gradient that matters.
    torch.manual_seed(5)
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
    head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 4 * 5, 16), nn.ReLU(), nn.Linear(16, 4))
    stem[0].weight.data *= 0.01
    stem[0].bias.data *= 0.01
    head[-1].weight.data *= 1000
    network = SplitNetwork(stem, head).double().eval()
    images = torch.rand(4, 3, 8, 10, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3])
    ours = GradCAMPlusPlus()(network, images, targets).numpy()
    with Reference(network, [network.stem]) as cam:
        reference = cam(images, [ClassifierOutputTarget(int(target)) for target in targets])
    low, high = ours.min((1, 2), keepdims=True), ours.max((1, 2), keepdims=True)
    assert (high - low > 1e-3).all()
    # The package resizes in float32 and adds 1e-7 to the maxima of maps that are about 0.01 high.
    np.testing.assert_allclose((ours - low) / (high - low), reference, rtol=0, atol=1e-4)
