"""What every registered saliency method promises, whatever it computes. A new method is tested as soon as it is registered."""

from dataclasses import replace

import pytest
import torch
from small_methods import METHODS
from torch import nn

from ibsgl import attribution
from ibsgl.attribution import Cost
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator

_METHODS = {name: attribution.get(name, **settings) for name, settings in METHODS.items()}
WITHOUT_NETWORK = {name for name, method in _METHODS.items() if hasattr(method, "cost") and method.cost(8) == Cost()}
CHUNKED = [name for name, method in _METHODS.items() if hasattr(method, "chunk")]

every_method = pytest.mark.parametrize("name", METHODS)


class Case:
    """A method with a network, a batch of images shown to it, and whatever else the method requires."""

    def __init__(self, name: str, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor):
        self.method = attribution.get(name, **METHODS[name])
        self.name, self.network, self.images, self.targets = name, network, images, targets
        # Seeded by image, so that one image has the same draws wherever it stands.
        self.identities = list(range(len(images)))
        self.region = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        for i in self.identities:
            self.region[i, 5 : 20 + i, 10:30] = True
        with torch.no_grad():
            self.statistics = FeatureStatistics().update(network.stem(images))

    def __call__(self, method=None, index=slice(None), targets=None) -> torch.Tensor:
        """The maps of the images at ``index`` (a slice or a list)."""
        index = torch.arange(len(self.images))[index]
        context = {"region": self.region[index], "statistics": self.statistics}
        return (method or self.method)(
            self.network,
            self.images[index],
            self.targets[index] if targets is None else targets,
            [generator(0, self.name, self.identities[i]) for i in index.tolist()],
            **{key: context[key] for key in self.method.requires},
        )


@pytest.fixture
def case(networks, images, targets):
    """Builds a :class:`Case` by method and network name, in float64: what differs then is not rounding."""

    def build(name: str, network: str = "resnet", dtype: torch.dtype = torch.float64) -> Case:
        chosen = networks[network].to(dtype)
        # A random network hardly tells its inputs apart; louder logits make every difference show.
        chosen.head[-1].weight.data *= 10
        return Case(name, chosen, images.to(dtype), targets)

    return build


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-6 of the largest value: sums in another order in float64, or in float32 inside a method."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-6 * expected.max().item() + 1e-30)


@pytest.mark.parametrize("network", ["resnet", "vgg", "multilabel"])
@every_method
def test_map_is_finite_nonnegative_and_plain(case, name, network):
    case = case(name, network, torch.float32)
    maps = case()
    assert maps.shape == (3, 48, 64)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert (maps >= 0).all()
    assert not maps.requires_grad
    assert not maps.is_inference()
    maps.mul_(2)  # a tensor of its own, not an expanded view


@every_method
def test_black_and_uniform_images_have_finite_maps(case, name):
    case = case(name, "vgg", torch.float32)
    case.images = torch.stack([torch.zeros_like(case.images[0]), torch.full_like(case.images[0], 0.5)])
    case.targets = case.targets[:2]
    maps = case()
    assert maps.isfinite().all()
    assert (maps >= 0).all()


@pytest.mark.parametrize("network", ["resnet", "vgg"])
@every_method
def test_alone_as_in_a_batch(case, name, network):
    case = case(name, network)
    batch = case()
    for i in range(3):
        assert_same(case(index=[i]), batch[i : i + 1])


@every_method
def test_one_generator_is_shared_by_the_batch(case, name):
    case = case(name)
    context = {"statistics": case.statistics} if "statistics" in case.method.requires else {}
    maps = []
    for index in ([0, 1, 2], [1]):
        if "region" in case.method.requires:
            context["region"] = case.region[index]
        g = torch.Generator().manual_seed(4)
        maps.append(case.method(case.network, case.images[index], case.targets[index], g, **context))
    assert_same(maps[1], maps[0][1:2])


@every_method
def test_twice_the_same_to_the_bit_and_without_the_global_generator(case, name):
    case = case(name, dtype=torch.float32)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = case()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(case(), first)


@every_method
def test_several_classes_of_an_image_as_separately(case, name):
    case = case(name)
    index, targets = [0, 0, 0, 1], torch.tensor([1, 3, 0, 2])
    together = case(index=index, targets=targets)
    for place, (i, target) in enumerate(zip(index, targets, strict=True)):
        assert_same(together[place : place + 1], case(index=[i], targets=target[None]))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunk_size_does_not_matter(case, name, chunk):
    case = case(name)
    expected = case(index=[0, 0, 1, 2], targets=torch.tensor([1, 3, 0, 2]))
    found = case(replace(case.method, chunk=chunk), index=[0, 0, 1, 2], targets=torch.tensor([1, 3, 0, 2]))
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("name", "most"),
    [("score_cam", 3), ("sise", 3), ("rise", 3), ("integrated_gradients", 3), ("extremal_perturbation", 2)],
)
def test_chunks_are_halved_until_they_fit_into_memory(case, name, most):
    case = case(name)
    case.method = replace(case.method, chunk=8)
    expected = case()
    refused = []

    def refuse(module, inputs):
        if len(inputs[0]) > most:
            refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError

    case.network.register_forward_pre_hook(refuse)
    assert_same(case(), expected)
    assert refused


def test_methods_of_each_kind_are_found():
    assert {"center", "random", "oracle"} <= WITHOUT_NETWORK
    assert {"score_cam", "sise", "rise", "extremal_perturbation", "integrated_gradients"} <= set(CHUNKED)


@every_method
def test_under_no_grad(case, name):
    case = case(name)
    expected = case()
    with torch.no_grad():
        found = case()
    assert torch.equal(found, expected)


class _Failing(nn.Module):
    """Takes the place of a part of the network and raises."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        raise RuntimeError("out of order")


def _state(network: nn.Module, images: torch.Tensor) -> list:
    """Everything about a network and its input that a method might leave changed."""
    return [
        [module.training for module in network.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in network.parameters()],
        [value.tolist() for value in network.state_dict().values()],
        [list(module.__dict__) for module in network.modules()],
        images.requires_grad,
        images.tolist(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("fails", [None, "stem", "head"])
@every_method
def test_network_is_left_as_it_was(case, name, fails):
    case = case(name, dtype=torch.float32)
    network = case.network
    if fails == "stem":
        network.stem = _Failing(network.stem)
    elif fails == "head":
        network.head = _Failing(network.head)
    network.train()
    network.head.eval()
    first, second, *_ = network.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    before = _state(network, case.images)
    if fails and name not in WITHOUT_NETWORK:
        with pytest.raises(RuntimeError, match="out of order"):
            case()
    else:
        case()
    assert _state(network, case.images) == before


@every_method
def test_train_mode_does_not_change_the_map(case, name):
    case = case(name)
    expected = case()
    case.network.train()
    assert torch.equal(case(), expected)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([0, 1]), torch.tensor([0, 1, 2, 3]), torch.tensor([[0, 1, 2]]), torch.tensor([0.0, 1, 2])]
)
@every_method
def test_wrong_targets_are_an_error(case, name, wrong):
    with pytest.raises(ValueError, match="targets must"):
        case(name)(targets=wrong)


@every_method
def test_wrong_images_are_an_error(case, name):
    case = case(name)
    case.images = case.images[:, :1]
    with pytest.raises(ValueError, match="images must have the shape"):
        case()


@every_method
def test_unknown_setting_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}' has no setting 'colour'"):
        attribution.get(name, colour="red")
