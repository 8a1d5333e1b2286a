"""The size of a network, and the FLOPs and seconds of one image."""

from dataclasses import astuple, replace

import pytest
import torch
from plan_configs import SIZE, WIDTH, facts, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ibsgl.attribution import Passes
from ibsgl.guidance import GuidanceSettings
from ibsgl.networks import SplitNetwork, build_network
from ibsgl.plan import UnitCosts, network_facts, random_network


def by_hand(num_classes):
    """3→2 channels of 8×8 by a 3×3 convolution, pooled, and a linear layer."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes))
    return SplitNetwork(nn.Conv2d(3, 2, 3, padding=1), head)


def test_flops_of_a_factorys_network_by_hand():
    model = {"arch": f"{__name__}:by_hand", "image_size": 16}
    settings = tiny(models={"net": model})
    known = network_facts(settings, "net", 5)
    convolution, linear = 2 * 16 * 16 * 2 * 3 * 9, 2 * 2 * 5
    assert known.features == (2, 16, 16)
    assert known.parameters == 2 * 3 * 9 + 2 + 2 * 5 + 5
    assert known.bytes == 4 * known.parameters
    assert astuple(known.flops.full) == (convolution, linear, convolution, linear)
    # To the weights of both and to the head's input. Nothing needs the image's gradient.
    assert known.flops.training == 2 * convolution + 3 * linear
    assert known.flops.guidance.keys() == {"feature", "end_to_end"}


def test_the_papers_networks_cost_what_is_known_of_them():
    """4.09 and 15.5 thousand million multiply-adds with a thousand classes (torchvision's documentation)."""
    for name, billions, parameters in (("resnet50", 4.09, 25_557_032), ("vgg16", 15.47, 138_357_544)):
        settings = tiny(models={"net": {"arch": name}}, methods={"gradcam": {}})
        known = network_facts(settings, "net", 1000)
        assert known.parameters == parameters
        assert (known.flops.full.stem + known.flops.full.head) / 2e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("weights", ["imagenet", "no/such/file.pt"])
def test_no_weights_are_read(weights, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    settings = tiny(models={"net": {"arch": "resnet18", "weights": weights}}, methods={"gradcam": {}})
    with torch.device("meta"):
        network = random_network(settings, "net", 5)
    assert network.head(torch.zeros(1, 512, 7, 7, device="meta")).shape == (1, 5)


@pytest.mark.parametrize("arch", ["resnet_small", "vgg_small"])
def test_flops_are_those_that_torch_counts(arch):
    network = build_network(arch, 4, width=WIDTH).eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    assert counter.get_total_flops() == facts(arch).work(Passes(stem=2, head=2)).flops


def test_time_is_passes_times_their_seconds():
    known = facts("vgg_small")
    seconds = UnitCosts(Passes(1, 10, 100, 1000), Passes(0.1, 0.2), 7, {"feature": 10, "end_to_end": 20})
    timed = replace(known, seconds=seconds, batch=4)
    assert timed.work(Passes(2, 1, 1, 1)).seconds == 1112
    assert timed.work(Passes(2, 1), mixed=True).seconds == pytest.approx(0.4)
    assert timed.training_work(3).seconds == 21
    assert timed.training_work(3, GuidanceSettings(steps=4)).seconds == 3 * (7 + 4 * 10)
    assert timed.training_work(3, GuidanceSettings(steps=4, mode="end_to_end")).seconds == 3 * (7 + 20)
    assert known.training_work(3).seconds is None
