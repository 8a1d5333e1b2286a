"""The split network and what every method does with it."""

import pytest
import torch
from torchvision import models

from ibsgl.networks import build_network
from ibsgl.networks.split import IMAGENET_MEAN, IMAGENET_STD, check_batch, evaluating, same_image_groups


@pytest.mark.parametrize(
    ("arch", "layer", "shape"),
    [
        ("resnet18", "layer4", (512, 2, 2)),
        ("resnet50", "layer4", (2048, 2, 2)),
        ("vgg16", "conv5_3", (512, 4, 4)),
        ("vgg11_bn", "conv5_2", (512, 4, 4)),
    ],
)
def test_split_equals_torchvision(arch, layer, shape):
    torch.manual_seed(0)
    network = build_network(arch, 7).eval()
    torch.manual_seed(0)
    whole = models.get_model(arch, weights=None, num_classes=7).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        features = network.stem(images)
        torch.testing.assert_close(network(images), whole((images - mean) / std), rtol=1e-4, atol=1e-5)
    assert network.target_layer_name == layer
    assert features.shape[1:] == shape
    assert (features >= 0).all()
    assert (features == 0).any()


def test_probabilities():
    logits = torch.tensor([[0.0, 2.0]])
    single, multi = build_network("vgg_small", 2, width=1), build_network("vgg_small", 2, width=1, multilabel=True)
    torch.testing.assert_close(single.probabilities(logits).sum(), torch.tensor(1.0))
    torch.testing.assert_close(multi.probabilities(logits), 1 / (1 + torch.exp(-logits)))


def test_evaluating_restores_everything_also_after_an_exception():
    network = build_network("resnet_small", 2, width=8).train()
    network.stem[1][0][1].eval()
    frozen = next(network.parameters()).requires_grad_(False)
    modes = [m.training for m in network.modules()]

    def work():
        with evaluating(network):
            assert not network.training
            assert not any(p.requires_grad for p in network.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert [m.training for m in network.modules()] == modes
    assert not frozen.requires_grad
    assert sum(not p.requires_grad for p in network.parameters()) == 1


def test_check_batch():
    images = torch.rand(2, 3, 4, 4)
    check_batch(images, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="2 images"):
        check_batch(images, torch.tensor([0]))
    with pytest.raises(ValueError, match="int64"):
        check_batch(images, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="shape"):
        check_batch(images[0], torch.tensor([0]))


def test_same_image_groups():
    a, b = torch.rand(2, 3, 4, 4)
    assert same_image_groups(torch.stack([a, a, b, a])).tolist() == [0, 0, 1, 2]
    assert same_image_groups(torch.stack([a])).tolist() == [0]
    assert same_image_groups(torch.empty(0, 3, 4, 4)).tolist() == []


def test_package_imports_without_the_workflow():
    import subprocess
    import sys

    code = (
        "import sys, ibsgl.training.guided, ibsgl.evaluation.held_out, ibsgl.config.steps, ibsgl.cli, ibsgl.reporting.formats;"
        "from ibsgl import attribution; [attribution.get(n) for n in attribution.names()];"
        "print([m for m in ('mlflow', 'snakemake', 'torchvision', 'skimage.data') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
