"""The split, its builders and what surrounds a method's work on it."""

import pytest
import torch
from torch import nn
from torchvision import models

from ibsgl.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SplitNetwork,
    build_network,
    check_batch,
    chunked,
    evaluating,
    features_and_gradient,
    same_image_groups,
    shared_gradient,
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
    first = build_network("vgg_small", 3, width=2)
    torch.save(first.state_dict(), tmp_path / "w.pt")
    second = build_network("vgg_small", 3, tmp_path / "w.pt", width=2)
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


def test_probabilities():
    logits = torch.tensor([[0.0, 2.0]])
    single, multi = build_network("vgg_small", 2, width=1), build_network("vgg_small", 2, width=1, multilabel=True)
    torch.testing.assert_close(single.probabilities(logits).sum(), torch.tensor(1.0))
    torch.testing.assert_close(multi.probabilities(logits), 1 / (1 + torch.exp(-logits)))


def test_evaluating_restores_everything_also_after_an_exception():
    network = build_network("resnet_small", 2, width=2).train()
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
        "import sys, ibsgl.training, ibsgl.evaluation, ibsgl.cli, ibsgl.data.loading, ibsgl.tables;"
        "from ibsgl import attribution; [attribution.get(n) for n in attribution.names()];"
        "print([m for m in ('mlflow', 'snakemake', 'torchvision', 'skimage.data') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_chunks_cover_everything_once_in_order():
    seen = list(chunked(lambda start, stop: (start, stop), 7, 3, torch.device("cpu")))
    assert seen == [(0, 3), (3, 6), (6, 7)]
    assert list(chunked(lambda start, stop: (start, stop), 0, 3, torch.device("cpu"))) == []


def test_chunks_that_do_not_fit_are_run_again_in_halves():
    asked = []

    def run(start, stop):
        asked.append((start, stop))
        if stop - start > 2:
            raise torch.OutOfMemoryError
        return stop

    assert list(chunked(run, 9, 8, torch.device("cpu"))) == [2, 4, 6, 8, 9]
    assert asked[:3] == [(0, 8), (0, 4), (0, 2)]
    with pytest.raises(torch.OutOfMemoryError):
        list(chunked(lambda start, stop: run(0, 3), 1, 1, torch.device("cpu")))


def test_chunks_that_did_not_fit_once_stay_small(monkeypatch):
    """On a card that says it has room for more, and has not."""
    sizes = []

    def run(start, stop):
        sizes.append(stop - start)
        if stop - start > 6:
            raise torch.OutOfMemoryError

        return stop - start

    for name, value in (("_memory", 0), ("_forget", None)):
        monkeypatch.setattr(f"ibsgl.network.{name}", lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    for name in ("max_memory_allocated", "memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    assert sum(list(chunked(run, 30, 2, torch.device("cuda")))) == 30
    assert sizes == [2, 4, 8, 4, 4, 4, 4, 4, 4][: len(sizes)]
    assert sizes.count(8) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_chunks_grow_on_cuda_while_memory_lasts():
    def run(start, stop):
        torch.empty((stop - start) << 20, device="cuda")
        return stop - start

    sizes = list(chunked(run, 100, 4, torch.device("cuda")))
    assert sizes[:4] == [4, 8, 16, 32]
    assert sum(sizes) == 100


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
