"""The names that everything hangs on: arguments, shapes and ranges as the design gives them.

What the values are is tested beside each function; here a renamed argument, a moved default or another shape is noticed.
"""

import importlib
import inspect

import pytest
import torch

from ibsgl import attribution, guidance
from ibsgl.bottleneck import FeatureStatistics, bottleneck_saliency
from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.guidance.localization import saliency_cross_entropy
from ibsgl.metrics.faithfulness import average_drop, average_increase
from ibsgl.metrics.localization import bbox, ebpg, miou
from ibsgl.networks import build_network
from ibsgl.networks.split import SplitNetwork
from ibsgl.saliency import gradient_saliency
from ibsgl.suppression import suppression_loss, top_fraction_mask

# A room may add optional arguments to what stands here, and nothing else.
# fmt: off
CONTRACTS = {
    "networks.SplitNetwork": lambda stem, head: ...,
    "networks.build_network": lambda arch, num_classes, weights=None, **kw: ...,
    "saliency.gradient_saliency": lambda head, features, target, create_graph=False: ...,
    "suppression.top_fraction_mask": lambda saliency, r: ...,
    "suppression.suppression_loss": lambda l_c, l_p, r=0.35: ...,
    "bottleneck.FeatureStatistics": lambda: ...,
    "bottleneck.bottleneck_saliency":
        lambda head, features, target, statistics, *, alpha=1000.0, gamma=5.0, sigma=1.0, steps=10, lr=1.0, samples=10,
        generator=None: ...,
    "guidance.saliency_cross_entropy": lambda l_c, l_ib: ...,
    "guidance.guidance_target": lambda head, features, target, l_ib, *, beta, r, step_size, steps: ...,
    "guidance.feature_divergence": lambda features, features_target: ...,
    "metrics.localization.ebpg": lambda saliency, region: ...,
    "metrics.localization.miou": lambda saliency, region, top=0.20: ...,
    "metrics.localization.bbox": lambda saliency, region: ...,
    "metrics.faithfulness.average_drop": lambda p_full, p_kept: ...,
    "metrics.faithfulness.average_increase": lambda p_full, p_kept: ...,
    "attribution.get": lambda name, **params: ...,
    "attribution.names": lambda: ...,
}
# fmt: on


def arguments(signature):
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


def assert_kept(found, promised):
    """``found`` has the arguments of ``promised`` in their places, and beyond them only optional ones."""
    by_position = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    kept = arguments(promised)
    named = {p.name for p in promised.parameters.values()}
    assert [p for p in arguments(found) if p[0] in named] == kept
    places = [p.name for p in found.parameters.values() if p.kind in by_position]
    assert places[: sum(kind in by_position for _, kind, _ in kept)] == [
        n for n, kind, _ in kept if kind in by_position
    ]
    for parameter in found.parameters.values():
        assert parameter.name in named or parameter.default is not inspect.Parameter.empty, parameter


@pytest.mark.parametrize("name", CONTRACTS)
def test_arguments(name):
    module, _, function = name.rpartition(".")
    found = getattr(importlib.import_module(f"ibsgl.{module}"), function)
    assert_kept(inspect.signature(found), inspect.signature(CONTRACTS[name]))


@pytest.mark.parametrize("name", attribution.names())
def test_every_method_is_called_alike(name):
    method = attribution.METHODS.load(name)
    call = inspect.signature(method.__call__)
    required = {p.name for p in call.parameters.values() if p.default is p.empty} - {"self"}
    assert_kept(
        call.replace(parameters=[p for p in call.parameters.values() if p.name not in method.requires]),
        inspect.signature(lambda self, network, images, targets, generator=None: ...),
    )
    # What is required beyond these is what the method says that it requires.
    assert required == {"network", "images", "targets"} | method.requires


@pytest.fixture(params=["resnet", "vgg"])
def network(networks, request):
    return networks[request.param]


@pytest.fixture
def features(network, images):
    with torch.no_grad():
        return network.stem(images)


def assert_map(found, features, low=0.0, high=torch.inf):
    assert found.shape == (len(features), *features.shape[2:])
    assert_values(found, low, high)


def assert_values(found, low, high):
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert low <= found.min()
    assert found.max() <= high
    assert not found.requires_grad


def test_a_network_is_its_head_after_its_stem(network, images, features):
    assert isinstance(network, SplitNetwork)
    assert features.ndim == 4
    assert network.target_layer_name in ("stage4", "conv5")
    with torch.no_grad():
        logits = network(images)
        torch.testing.assert_close(network.head(features), logits)
    assert logits.shape == (len(images), 4)
    assert logits.dtype == torch.float32


def small(num_classes, width):
    """What a user's own factory looks like."""
    return build_network("resnet_small", num_classes, width=width)


@pytest.mark.parametrize("arch", ["resnet_small", "vgg_small", f"{__name__}:small"])
def test_networks_by_name_and_by_factory(arch, tmp_path):
    built = build_network(arch, 7, width=8)
    assert built(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    torch.save(built.state_dict(), tmp_path / "weights.pt")
    again = build_network(arch, 7, tmp_path / "weights.pt", width=8)
    for key, value in built.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize(("arch", "layer"), [("resnet50", "layer4"), ("vgg16", "conv5_3")])
def test_the_papers_networks_are_split_where_the_design_says(arch, layer):
    with torch.device("meta"):
        network = build_network(arch, 20)
        images = torch.rand(2, 3, 224, 224)
        features = network.stem(images)
    assert network.target_layer_name == layer
    assert features.shape[1:] == {"layer4": (2048, 7, 7), "conv5_3": (512, 14, 14)}[layer]
    assert network.head(features).shape == (2, 20)


def test_gradient_saliency(network, features, targets):
    saliency = gradient_saliency(network.head, features, targets)
    assert_map(saliency, features)
    graph = gradient_saliency(network.head, features, targets, create_graph=True)
    assert graph.requires_grad
    torch.testing.assert_close(graph.detach(), saliency)


def test_suppression(network, features, targets):
    l_c = gradient_saliency(network.head, features, targets)
    l_p = gradient_saliency(network.head, features, guidance.other_class(network.head(features), targets))
    mask = top_fraction_mask(l_c, 0.35)
    assert mask.shape == l_c.shape
    assert mask.dtype == torch.bool
    loss = suppression_loss(l_c, l_p)
    assert loss.shape == (len(l_c),)
    assert_values(loss, 0, 0.5)
    assert torch.equal(loss, suppression_loss(l_c, l_p, 0.35))


def test_bottleneck(network, features, targets):
    statistics = FeatureStatistics().update(features[:2])
    merged = FeatureStatistics().merge(statistics).merge(FeatureStatistics().update(features[2:]))
    for value in (merged.mean, merged.std):
        assert value.shape == features.shape[1:]
        assert value.dtype == torch.float32
    torch.testing.assert_close(merged.mean, features.mean(0))
    torch.testing.assert_close(merged.std, features.std(0))

    def saliency(seed):
        g = torch.Generator().manual_seed(seed)
        return bottleneck_saliency(network.head, features, targets, merged, steps=3, samples=2, generator=g)

    assert_map(saliency(0), features)
    assert torch.equal(saliency(0), saliency(0))
    assert not torch.equal(saliency(0), saliency(1))


def test_guidance(network, features, targets):
    l_c = gradient_saliency(network.head, features, targets)
    l_ib = torch.rand(l_c.shape, generator=torch.Generator().manual_seed(0))
    cross_entropy = saliency_cross_entropy(l_c, l_ib)
    assert cross_entropy.shape == targets.shape
    assert_values(cross_entropy, 0, torch.inf)
    moved = guidance_target(network.head, features, targets, l_ib, beta=1.0, r=0.35, step_size=0.05, steps=2)
    assert moved.shape == features.shape
    assert_values(moved, 0, torch.inf)
    divergence = feature_divergence(features, moved)
    assert divergence.shape == targets.shape
    assert_values(divergence, 0, torch.inf)
    torch.testing.assert_close(feature_divergence(features, features), torch.zeros(len(features)))


def test_metrics(images):
    g = torch.Generator().manual_seed(0)
    saliency = torch.rand(images.shape[0], *images.shape[2:], generator=g)
    region = torch.zeros_like(saliency, dtype=torch.bool)
    region[:, 5:20, 10:30] = True
    for metric in (ebpg, miou, bbox):
        value = metric(saliency, region)
        assert value.shape == (len(images),)
        assert_values(value, 0, 1)
    assert torch.equal(miou(saliency, region), miou(saliency, region, top=0.2))
    p_full, p_kept = torch.rand(2, 8, generator=g)
    for metric in (average_drop, average_increase):
        value = metric(p_full, p_kept)
        assert value.shape == (8,)
        assert_values(value, 0, 1)
