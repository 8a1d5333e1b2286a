"""What every registered saliency method promises, whatever it computes. A new method is tested as soon as it is registered."""

from dataclasses import replace

import pytest
import torch
from method_contract import Case, assert_plain, assert_same, assert_same_twice, make_case, run_on_a_used_network
from small_methods import METHODS

from ibsgl import attribution
from ibsgl.attribution import Cost
from ibsgl.networks import upsample

_METHODS = {name: attribution.get(name, **settings) for name, settings in METHODS.items()}
WITHOUT_NETWORK = {name for name, method in _METHODS.items() if hasattr(method, "cost") and method.cost(8) == Cost()}
COARSE = [name for name in _METHODS if attribution.is_coarse(name)]
CHUNKED = [name for name, method in _METHODS.items() if hasattr(method, "chunk")]

every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def case(networks, images, targets):
    """Builds a :class:`Case` by method and network name, in float64: what differs then is not rounding."""

    def build(name: str, network: str = "resnet", dtype: torch.dtype = torch.float64) -> Case:
        return make_case(name, METHODS[name], networks[network], images, targets, dtype)

    return build


@pytest.mark.parametrize("network", ["resnet", "vgg", "multilabel"])
@every_method
def test_map_is_finite_nonnegative_and_plain(case, name, network):
    case = case(name, network, torch.float32)
    assert_plain(case(), (3, 48, 64))


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
    assert_same_twice(case(name, dtype=torch.float32))


@every_method
def test_several_classes_of_an_image_as_separately(case, name):
    case = case(name)
    index, targets = [0, 0, 0, 1], torch.tensor([1, 3, 0, 2])
    together = case(index=index, targets=targets)
    for place, (i, target) in enumerate(zip(index, targets, strict=True)):
        assert_same(together[place : place + 1], case(index=[i], targets=target[None]))


@pytest.mark.parametrize("network", ["resnet", "vgg"])
@pytest.mark.parametrize("name", COARSE)
def test_small_maps_resized_are_the_map_to_the_bit(case, name, network):
    """Of images that are not square, one of them with several classes."""
    case = case(name, network, torch.float32)
    pairs = {"index": [0, 0, 0, 1], "targets": torch.tensor([1, 3, 0, 2])}
    small = case(case.method.coarse, **pairs)
    with torch.no_grad():
        assert small.shape == (4, *case.network.stem(case.images).shape[2:])
    assert (small >= 0).all()
    assert torch.equal(upsample(small, (48, 64)), case(**pairs))


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
    assert set(COARSE) == {"bottleneck", "gradcam", "gradcam_pp", "gradient", "score_cam", "score_cam_probability"}
    assert {"center", "random", "oracle"} <= WITHOUT_NETWORK
    assert {"score_cam", "sise", "rise", "extremal_perturbation", "integrated_gradients"} <= set(CHUNKED)


@every_method
def test_under_no_grad(case, name):
    case = case(name)
    expected = case()
    with torch.no_grad():
        found = case()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("fails", [None, "stem", "head"])
@every_method
def test_network_is_left_as_it_was(case, name, fails):
    before, after, message = run_on_a_used_network(case(name, dtype=torch.float32), fails)
    assert message == ("out of order" if fails and name not in WITHOUT_NETWORK else None)
    assert after == before


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
