"""Eq. 3 against a hand-computed case, the grad-cam package's HiResCAM, and its identity with Grad-CAM."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from ibsgl.networks import build_network
from ibsgl.saliency import Gradient, gradient_saliency


class Square(nn.Module):
    """y_0 = Σ A₀², y_1 = −Σ A₀ + 2 Σ A₁."""

    def forward(self, features):
        first, second = features.flatten(2).unbind(1)
        return torch.stack([first.square().sum(1), -first.sum(1) + 2 * second.sum(1)], dim=1)


def test_hand_computed():
    features = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]], [[4.0, 1.0], [1.0, 0.5]]]])
    # y_0: gradient 2A₀, times A₀ = 2A₀².   y_1: −A₀ + 2A₁, negative where A₀ = 3 and A₁ = ½.
    assert gradient_saliency(Square(), features, torch.tensor([0])).tolist() == [[[2.0, 8.0], [0.0, 18.0]]]
    assert gradient_saliency(Square(), features, torch.tensor([1])).tolist() == [[[7.0, 0.0], [2.0, 0.0]]]


def test_create_graph_can_be_differentiated():
    features = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]], [[4.0, 1.0], [1.0, 0.5]]]], requires_grad=True)
    saliency = gradient_saliency(Square(), features, torch.tensor([0]), create_graph=True)
    (gradient,) = torch.autograd.grad(saliency.sum(), features)
    # d(2a²)/da = 4a on the first channel.
    assert gradient[0, 0].tolist() == [[4.0, 8.0], [0.0, 12.0]]
    assert not gradient[0, 1].any()


def _reference(cam_type, network, images, targets):
    with cam_type(network, [network.stem]) as cam:
        activations = cam.activations_and_grads
        maps = []
        for target, image in zip(targets.tolist(), images, strict=True):
            output = activations(image[None])
            network.zero_grad()
            output[0, target].backward()
            maps.append(
                cam.get_cam_image(
                    image[None],
                    network.stem,
                    [ClassifierOutputTarget(target)],
                    activations.activations[0].numpy(),
                    activations.gradients[0].numpy(),
                    False,
                )[0]
            )
    return np.maximum(np.stack(maps), 0)


@pytest.mark.parametrize("arch", ["resnet_small", "vgg_small"])
def test_equals_hirescam(arch):
    torch.manual_seed(0)
    network = build_network(arch, 4, width=8).eval()
    images, targets = torch.rand(3, 3, 64, 64), torch.tensor([0, 3, 1])
    ours = gradient_saliency(network.head, network.stem(images).detach(), targets)
    np.testing.assert_allclose(ours.numpy(), _reference(HiResCAM, network, images, targets), rtol=1e-4, atol=1e-7)
    assert ours.any()


def test_is_gradcam_on_global_average_pooling_and_a_linear_head():
    torch.manual_seed(1)
    network = build_network("resnet_small", 4, width=8).eval()
    images, targets = torch.rand(3, 3, 64, 64), torch.tensor([0, 3, 1])
    ours = gradient_saliency(network.head, network.stem(images).detach(), targets)
    np.testing.assert_allclose(ours.numpy(), _reference(GradCAM, network, images, targets), rtol=1e-4, atol=1e-7)


def test_is_not_gradcam_on_a_vgg():
    torch.manual_seed(2)
    network = build_network("vgg_small", 4, width=8).eval()
    images, targets = torch.rand(2, 3, 64, 64), torch.tensor([0, 3])
    ours = gradient_saliency(network.head, network.stem(images).detach(), targets)
    other = _reference(GradCAM, network, images, targets)
    assert not np.allclose(
        ours / ours.amax((1, 2), keepdim=True), other / (other.max((1, 2), keepdims=True) + 1e-9), atol=0.1
    )


def test_method_upsamples_and_restores():
    torch.manual_seed(3)
    network = build_network("resnet_small", 4, width=8).train()
    saliency = Gradient()(network, torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))
    assert saliency.shape == (2, 64, 64)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
