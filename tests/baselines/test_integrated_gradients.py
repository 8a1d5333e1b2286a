"""Integrated Gradients against integrals solved by hand, its completeness, and captum."""

import pytest
import torch
from captum.attr import IntegratedGradients as Reference
from torch import nn

from baselines.integrated_gradients import IntegratedGradients
from ibsgl.networks.split import SplitNetwork


class _Polynomial(nn.Module):
    """Logits of an image (3,1,2) with pixels (r0,g0,b0) and (r1,g1,b1): [5 + r0·g0·b1,  r0² − 2 g0² + r1³]."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x):
        r0, g0, b1, r1 = x[:, 0, 0, 0], x[:, 1, 0, 0], x[:, 2, 0, 1], x[:, 0, 0, 1]
        return torch.stack([5 + self.one * r0 * g0 * b1, r0**2 - 2 * g0**2 + r1**3], 1)


# r0 = 0.5, g0 = 0.4, b1 = 0.6, r1 = 0.2, b0 = 0.9, g1 = 0.7
IMAGE = torch.tensor([[[[0.5, 0.2]], [[0.4, 0.7]], [[0.9, 0.6]]]], dtype=torch.float64)


def test_hand_computed():
    # Class 0: ∂f/∂r0 at t x is t² g0 b1, its integral g0 b1 / 3; each of the three factors gets r0 g0 b1 / 3 = 0.04.
    # Class 1: r0 gets r0² = 0.25, g0 −2 g0² = −0.32, r1 r1³ = 0.008. The integrands are at most quadratic in t: 2 nodes
    # are exact.
    network = SplitNetwork(nn.Identity(), _Polynomial()).double()
    method = IntegratedGradients(steps=2)
    images, targets = IMAGE.repeat(2, 1, 1, 1), torch.tensor([0, 1])
    expected = torch.zeros(2, 3, 1, 2, dtype=torch.float64)
    expected[0, 0, 0, 0] = expected[0, 1, 0, 0] = expected[0, 2, 0, 1] = 0.04
    expected[1, 0, 0, 0], expected[1, 1, 0, 0], expected[1, 0, 0, 1] = 0.25, -0.32, 0.008
    torch.testing.assert_close(method.attributions(network, images, targets), expected)
    # Summed over colour first, rectified then: |0.25 − 0.32| = 0.07, not 0.57.
    maps = torch.tensor([[[0.08, 0.04]], [[0.07, 0.008]]], dtype=torch.float64)
    torch.testing.assert_close(method(network, images, targets), maps)


def test_attributions_are_complete():
    # A smooth network, so that 50 nodes leave no quadrature error; f(0) is not zero.
    torch.manual_seed(3)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Softplus())
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 4, 5), nn.Tanh(), nn.Linear(5, 3))
    network = SplitNetwork(stem, head, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).double()
    images, targets = torch.rand(3, 3, 7, 9, dtype=torch.float64), torch.tensor([0, 1, 2])
    with torch.no_grad():
        gain = (network(images) - network(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    found = IntegratedGradients().attributions(network, images, targets).sum((1, 2, 3))
    assert gain.abs().min() > 1e-3
    torch.testing.assert_close(found, gain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet", "vgg", "multilabel"])
def test_matches_captum(networks, images, targets, name):
    network, images = networks[name].double().eval(), images.double()
    reference = Reference(network).attribute(
        images, baselines=0, target=targets, n_steps=50, method="gausslegendre", internal_batch_size=30
    )
    found = IntegratedGradients(chunk=7).attributions(network, images, targets)
    # captum keeps the nodes' weights in float32: each of the gradients that add up is off by one part in 1e7.
    assert reference.abs().max() > 1e-4
    torch.testing.assert_close(found, reference.detach(), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("field", ["steps", "chunk"])
def test_impossible_settings_are_named(field):
    with pytest.raises(ValueError, match=f"integrated_gradients: {field}"):
        IntegratedGradients(**{field: 0})
