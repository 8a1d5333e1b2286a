"""Gradients of the feature map, and methods that share one pass."""

import torch

from ibsgl.networks.gradients import features_and_gradient, shared_gradient


def test_methods_asked_about_one_batch_share_its_pass(networks, images, targets):
    network, passes = networks["resnet"], []
    network.stem.register_forward_hook(lambda *_: passes.append(1))
    alone = features_and_gradient(network, images, targets)
    with shared_gradient():
        first, second = (features_and_gradient(network, images, targets) for _ in range(2))
        assert len(passes) == 2
        other = features_and_gradient(network, images.flip(0), targets)
        assert len(passes) == 3
    for one, two, three in zip(alone, first, second, strict=True):
        assert torch.equal(one, two)
        assert two is three
    assert not torch.equal(other[0], alone[0])
    features_and_gradient(network, images, targets)
    assert len(passes) == 4
