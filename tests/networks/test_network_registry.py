"""Networks by name: built-in ones, weights from files, factories, and names that are wrong."""

import pytest
import torch
from torch import nn
from torchvision import models

from ibsgl.networks import build_network
from ibsgl.networks.split import SplitNetwork


def test_last_layer_of_another_size_is_replaced(monkeypatch):
    """ImageNet weights have a thousand classes; the other layers stay."""

    def pretrained(arch, weights=None, num_classes=1000):
        torch.manual_seed(5)
        return models.resnet18(num_classes=num_classes)

    monkeypatch.setattr(models, "get_model", pretrained)
    network = build_network("resnet18", 4, "imagenet")
    assert network.head.fc.out_features == 4
    torch.testing.assert_close(network.stem.backbone.conv1.weight, pretrained("resnet18").conv1.weight)


@pytest.mark.parametrize("arch", ["resnet_small", "vgg_small"])
def test_small_networks_see_a_6_by_6_map(arch):
    network = build_network(arch, 6)
    assert network.stem(torch.rand(1, 3, 96, 96)).shape == (1, 128, 6, 6)


def test_weights_from_a_file(tmp_path):
    first = build_network("vgg_small", 3, width=8)
    torch.save(first.state_dict(), tmp_path / "w.pt")
    second = build_network("vgg_small", 3, tmp_path / "w.pt", width=8)
    assert torch.equal(first.eval()(torch.ones(1, 3, 48, 48)), second.eval()(torch.ones(1, 3, 48, 48)))


def own(num_classes, bias=0.0):
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return SplitNetwork(stem, head, "conv1", mean=(0.498,) * 3, std=(0.502,) * 3)


def not_split(num_classes):
    return nn.Linear(1, num_classes)


def test_own_factory():
    network = build_network(f"{__name__}:own", 5, multilabel=True, bias=1.0)
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 5)
    assert network.multilabel
    assert not any(getattr(m, "inplace", False) for m in network.modules())
    torch.testing.assert_close(network.mean, torch.full((3, 1, 1), 0.498))
    with pytest.raises(TypeError, match="SplitNetwork"):
        build_network(f"{__name__}:not_split", 5)


@pytest.mark.parametrize(
    ("arch", "message"),
    [("resnet5", "unknown"), ("no_such_module_here:f", "no module"), (f"{__name__}:missing", "no function 'missing'")],
)
def test_unknown_networks(arch, message):
    with pytest.raises(ValueError, match=message):
        build_network(arch, 3)
