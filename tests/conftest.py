"""Small networks and images shared by the tests; every call builds them anew from fixed seeds."""

import os

# Before torch is loaded: on tensors this small a second thread only waits, and on a busy machine it spins.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ibsgl.data.loading import ImageDataset
from ibsgl.data.sources.shapes import generate
from ibsgl.data.sources.voc import build_index
from ibsgl.networks import build_network
from ibsgl.networks.split import SplitNetwork


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a run on several cores ends when its last file ends."""
    first = ("test_graph.py", "test_reproduction.py", "test_rules.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


def _stir(network: SplitNetwork) -> SplitNetwork:
    """Give batch norm statistics and parameters as after training; at their initial values they hide errors."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


@pytest.fixture
def networks() -> dict[str, SplitNetwork]:
    """By name: a ResNet and a VGG of 4 classes and width 8, and a multi-label ResNet; in evaluation mode, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = {
            "resnet": build_network("resnet_small", 4, width=8),
            "vgg": build_network("vgg_small", 4, width=8),
            "multilabel": build_network("resnet_small", 4, width=8, multilabel=True),
        }
        return {name: _stir(network).eval() for name, network in built.items()}


@pytest.fixture
def images() -> torch.Tensor:
    """Three images (3,3,48,64) in [0,1], smooth with some noise; not square, so that swapped sides show."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, 3, 5, 6, generator=g)
    smooth = nn.functional.interpolate(coarse, size=(48, 64), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=g)).clamp(0, 1)


@pytest.fixture
def targets() -> torch.Tensor:
    """A class for each of ``images``."""
    return torch.tensor([2, 0, 3])


@pytest.fixture(scope="session")
def small_shapes(tmp_path_factory) -> Callable[..., ImageDataset]:
    """``small_shapes(trainval, test)`` → the built-in data at 32 pixels, a third of its training images held out."""

    def make(trainval: int, test: int) -> ImageDataset:
        root = tmp_path_factory.mktemp("shapes") / "VOC2007"
        generate(root, seed=0, trainval=trainval, test=test, size=32, progress=False)
        splits = {"train": "trainval", "test": "test"}
        return ImageDataset(build_index(root, splits=splits, held_out=1 / 3, seed=0), root, 32)

    return make
