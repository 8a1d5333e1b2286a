"""The split network and what every method does with it."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from ibsgl.networks import build_network
from ibsgl.networks.split import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SplitNetwork,
    check_batch,
    evaluating,
    same_image_groups,
)


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
        "from ibsgl import attribution; [attribution.METHODS.load(n) for n in attribution.names()];"
        "print([m for m in ('mlflow', 'snakemake', 'torchvision', 'skimage.data') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# Stages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "source", "before", "after"),
    [
        # (channels, side) of each map, for an image of 64 pixels.
        (
            *("resnet18", "torchvision"),
            [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
            [(64, 16), (128, 8), (256, 4), (512, 2), (512, 2)],
        ),
        (
            *("vgg16", "torchvision"),
            [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)],
            [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)],
        ),
        (
            *("vgg11_bn", "torchvision"),
            [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)],
            [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)],
        ),
        (
            *("resnet50", "torchray"),
            [(64, 32), (256, 16), (512, 8), (1024, 4), (2048, 2)],
            [(64, 16), (512, 8), (1024, 4), (2048, 2), (2048, 2)],
        ),
        (
            *("resnet_small", "torchvision"),
            [(16, 32), (32, 16), (64, 8), (128, 4)],
            [(16, 32), (32, 16), (64, 8), (128, 4)],
        ),
        (
            *("vgg_small", "torchvision"),
            [(16, 64), (32, 32), (64, 16), (128, 8), (128, 4)],
            [(16, 32), (32, 16), (64, 8), (128, 4), (128, 2)],
        ),
    ],
)
def test_every_family_names_the_maps_around_each_reduction(arch, source, before, after):
    with torch.device("meta"):
        network = build_network(arch, 3, source=source).eval()
        images = torch.rand(1, 3, 64, 64)
    for layers, expected in (("before", before), ("after", after)):
        maps, logits = network.stage_maps(images, layers)
        assert [(found.shape[1], found.shape[2]) for found in maps] == expected
        assert logits.shape == (1, 3)


def test_the_maps_of_a_vgg_are_the_inputs_and_outputs_of_its_pooling_layers():
    network = build_network("vgg11", 3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, logits = network.stage_maps(images)
        after, _ = network.stage_maps(images, "after")
        assert torch.equal(before[-1], network.stem(images))
        assert torch.equal(logits, network(images))
    for a, b in zip(before, after, strict=True):
        assert (a >= 0).all()
        assert torch.equal(nn.functional.max_pool2d(a, 2), b)


def test_logits_can_be_differentiated_with_respect_to_every_map():
    network = build_network("resnet_small", 3, width=8).double().eval()
    with evaluating(network):
        images = torch.rand(1, 3, 48, 48, dtype=torch.float64).requires_grad_(True)
        maps, logits = network.stage_maps(images)
        gradients = torch.autograd.grad(logits[0, 1], maps)
        # By a step along the gradient of the lowest map, from which the rest of the stem follows.
        step = 1e-6
        with torch.no_grad():
            rest = network.stem.backbone[2:]
            moved = network.head(rest(maps[0] + step * gradients[0]))[0, 1]
    assert ((moved - logits[0, 1]) / step).item() == pytest.approx((gradients[0] ** 2).sum().item(), rel=1e-4)


def _stem() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.ReLU())


def _head() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("normalised", [{}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}])
@pytest.mark.parametrize("last", ["4", ""])
def test_users_name_the_modules_of_their_stem(normalised, last):
    network = SplitNetwork(_stem(), _head(), stages=["1", last], reduced=["2", "head.0"], **normalised).eval()
    maps, _ = network.stage_maps(torch.rand(1, 3, 16, 16))
    assert [tuple(found.shape[1:]) for found in maps] == [(2, 14, 14), (4, 5, 5)]
    maps, _ = network.stage_maps(torch.rand(1, 3, 16, 16), "after")
    assert [tuple(found.shape[1:]) for found in maps] == [(2, 7, 7), (4, 1, 1)]
    # The names are of the copy's own modules, and the state dict has nothing twice.
    twin = copy.deepcopy(network)
    nn.init.zeros_(twin.stem.get_submodule("backbone" if normalised else "")[0].weight)
    assert (
        twin.stage_maps(torch.rand(1, 3, 16, 16))[0][0].std() < network.stage_maps(torch.rand(1, 3, 16, 16))[0][0].std()
    )
    assert len(network.state_dict()) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ["relu", "4"]}, "stages: the stem has no submodule 'relu'; at its top it has 0, 1, 2, 3, 4"),
        ({"reduced": ["7"]}, "reduced: the stem has no submodule '7'"),
        ({"reduced": ["head.pool"]}, "reduced: the head has no submodule 'pool'; at its top it has 0, 1, 2"),
    ],
)
def test_names_of_no_module_are_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitNetwork(_stem(), _head(), **arguments)


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(self.convolution(x)))


def test_stages_that_a_pass_does_not_run_in_order_are_an_error():
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="run each of the 2 once and in this order; it ran number 2, 1"):
        SplitNetwork(_stem(), _head(), stages=["4", "1"]).stage_maps(images)
    with pytest.raises(ValueError, match="it ran number 1, 1"):
        SplitNetwork(_Twice(), _head(), stages=["relu"]).stage_maps(images)
    with pytest.raises(ValueError, match="the last one must be the end of the stem"):
        SplitNetwork(_stem(), _head(), stages=["0", "1"]).stage_maps(images)
    with pytest.raises(ValueError, match=r"the network has no stages; .*SplitNetwork\(\.\.\., stages="):
        SplitNetwork(_stem(), _head()).stage_maps(images)


def test_stage_maps_leaves_no_hook_also_after_an_exception():
    network = SplitNetwork(_stem(), _head(), stages=["1", "4"])
    network.stage_maps(torch.rand(1, 3, 16, 16))
    with pytest.raises(RuntimeError):
        network.stage_maps(torch.rand(1, 5, 16, 16))
    assert not any(module._forward_hooks for module in network.modules())
