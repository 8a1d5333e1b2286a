"""The FLOPs that the plan states for a method are those that torch counts when the method runs."""

from dataclasses import replace

import pytest
import small_methods
import torch
from plan_configs import SIZE, WIDTH, facts
from torch import nn

from ibsgl import attribution
from ibsgl.attribution import Cost, Passes, StageChannels
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.sources import Split
from ibsgl.errors import ConfigError
from ibsgl.networks import SplitNetwork, build_network
from ibsgl.plan import flops_of, method_work
from ibsgl.plan.steps import images_passed
from ibsgl.randomness import generator

# Several areas and chunks count too. All nodes of the integral fit into one chunk: a chunk of one node has no matrix product.
METHODS = small_methods.METHODS | {
    "extremal_perturbation": {"iterations": 3, "areas": (0.1, 0.3)},
    "integrated_gradients": {"steps": 5, "chunk": 30},
}


class Ramp(nn.Module):
    """Adds a ramp, so that no channel is constant: Score-CAM leaves constant channels out."""

    def forward(self, features):
        ramp = torch.linspace(0, 1, features.shape[-1])
        return features + ramp + ramp[:, None]


@pytest.fixture(scope="module", params=["resnet_small", "vgg_small"])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def network(arch):
    torch.manual_seed(0)
    built = build_network(arch, 4, width=WIDTH).eval()
    return SplitNetwork(
        nn.Sequential(built.stem, Ramp()),
        built.head,
        stages=[*(f"0.backbone.{name}" for name in built.stages[:-1]), "1"],
    )


def own_arithmetic(method, name, channels, side, pairs):
    """FLOPs of the matrix products that a method needs besides its passes, by hand."""
    pixels = SIZE**2
    return (
        pairs
        * {
            # Masks, weighted by scores.
            "rise": lambda: 2 * method.masks * pixels,
            # Channels, weighted by scores.
            "score_cam": lambda: 2 * channels * side**2,
            "score_cam_probability": lambda: 2 * channels * side**2,
            # Gradients, weighted by the quadrature.
            "integrated_gradients": lambda: 2 * method.steps * 3 * pixels,
            # λ blurred, by one matrix for small maps: in every step, its gradient too, and once at the end.
            "bottleneck": lambda: (2 * method.steps + 1) * channels * 2 * side**4,
            # Each blurred level of the image, along both sides.
            "extremal_perturbation": lambda: len(method.areas) * (method.levels - 1) * 3 * 2 * 2 * SIZE**3,
        }.get(name, lambda: 0)()
    )


def test_every_registered_method_is_tested():
    # Methods of other libraries state no cost.
    assert sorted(METHODS) == [name for name in attribution.names() if not attribution.library_of(name)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_costs_what_it_states(name, arch, network):
    """Three images, the first and the last with several classes, in one batch."""
    image = torch.tensor([0, 0, 1, 2, 2, 2])
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))[image]
    targets = torch.tensor([2, 0, 3, 0, 1, 2])
    with torch.no_grad():
        features = network.stem(images)
    context = {
        "region": torch.ones(6, SIZE, SIZE, dtype=torch.bool),
        "statistics": FeatureStatistics().update(features),
    }
    method = attribution.get(name, **METHODS[name])
    generators = [generator(0, name, i) for i in image.tolist()]
    counted = flops_of(
        lambda: method(network, images, targets, generators, **{key: context[key] for key in method.requires})
    )
    work, at_most = method_work(method, facts(arch), Split(images=3, pairs=6), batch_size=6)
    _, channels, side, _ = features.shape
    if name == "sise":
        # Which channels are passed depends on the gradients, and these do not go down to the image.
        assert work.flops / 4 < counted < work.flops
    else:
        assert counted == work.flops + own_arithmetic(method, name, channels, side, pairs=6)
    assert at_most == (name in ("score_cam", "score_cam_probability", "sise"))
    assert (work.flops > 0) == (name not in ("center", "random", "oracle"))


def test_score_cam_may_need_less_than_it_states(arch):
    """A channel that is constant in an image is not passed."""
    torch.manual_seed(0)
    network = build_network(arch, 4, width=WIDTH).eval()
    flat = SplitNetwork(nn.Sequential(network.stem, nn.Threshold(1e9, 0)), network.head)
    method = attribution.get("score_cam")
    images, targets = torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1])
    network_facts = facts(arch)
    # What remains: the stem of each image, the black image, and the sum of channels.
    needed = network_facts.work(Passes(stem=3, head=1)).flops
    channels, side, _ = network_facts.features
    assert flops_of(lambda: method(flat, images, targets)) == needed + 2 * 2 * channels * side**2
    assert needed < method_work(method, network_facts, Split(2, 2), 2)[0].flops


def test_sise_is_planned_from_the_channels_of_all_stages(arch):
    stages = {"resnet_small": (8, 16, 32, 64), "vgg_small": (8, 16, 32, 64, 64)}[arch]
    assert facts(arch).stages.before == facts(arch).stages.after == stages
    work, _ = method_work(attribution.get("sise"), facts(arch), Split(images=2, pairs=3), batch_size=3)
    assert (work.passes.stem, work.passes.stem_backward) == (3 + 2 * sum(stages), 3)


def test_sise_cannot_be_planned_on_a_network_without_stages():
    bare = replace(facts("vgg_small"), stages=StageChannels())
    with pytest.raises(ConfigError, match=r"models\.net: sise: the network has no stages; name its submodules"):
        method_work(attribution.get("sise"), bare, Split(2, 2), 2)


def test_images_cut_by_the_end_of_a_batch_are_passed_twice():
    assert images_passed(Split(images=6, pairs=6), 4) == 6
    # Every second place between two pairs lies within an image.
    assert images_passed(Split(images=2, pairs=4), 3) == 2.5
    assert images_passed(Split(images=2, pairs=4), 4) == 2


def test_passes_and_unit_costs():
    two = Passes(stem=1) + Passes(head=1, head_backward=2) * 3
    assert two == Passes(stem=1, head=3, head_backward=6)
    assert two.weighted_by(Passes(100, 10, 7, 1)) == 136
    assert attribution.get("rise").cost(2048) == Cost(image=Passes(8000, 8000), mixed=True, within_bound=True)
    assert attribution.get("extremal_perturbation").cost(2048).pair == Passes(800, 800, 800, 800)
    assert attribution.get("integrated_gradients").cost(2048).pair == Passes(50, 50, 50, 50)
    assert attribution.get("score_cam").cost(2048).image == Passes(stem=2049, head=2048)
