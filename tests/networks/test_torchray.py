"""TorchRay's networks against a forward pass written from their files' tensors alone: BGR, Caffe means, ceiling pools."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines.fullgrad import FullGrad
from ibsgl.networks import build_network, torchray
from ibsgl.networks.torchray import TorchRayFamily

# What the published files hold, apart from the values.
VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
RESNET = (3, 4, 6, 3)


def draw(*shape, scale=1.0):
    # The last axes are a filter's inputs: He's scale keeps the activations alive.
    fan = torch.Size(shape[1:]).numel()
    return scale * torch.randn(shape) * (2 / fan) ** 0.5


def vgg_state(classes):
    state, inputs, index = {}, 3, 0
    for width in VGG:
        if width != "M":
            state[f"features.{index}.weight"] = draw(width, inputs, 3, 3)
            state[f"features.{index}.bias"] = 0.1 * torch.randn(width)
            inputs, index = width, index + 1
        index += 1
    for index, shape in ((0, (4096, 512, 7, 7)), (2, (4096, 4096, 1, 1)), (4, (classes, 4096, 1, 1))):
        state[f"classifier.{index}.weight"] = draw(*shape)
        state[f"classifier.{index}.bias"] = 0.1 * torch.randn(shape[0])
    return state


def resnet_state(classes):
    state = {"conv1.weight": draw(64, 3, 7, 7, scale=0.02), "conv1.bias": torch.randn(64)}

    def norm(name, width, scale=1.0):
        state[f"{name}.0.running_mean"] = 0.1 * torch.randn(width)
        state[f"{name}.0.running_var"] = 0.5 + torch.rand(width)
        state[f"{name}.1.weight"] = scale * (0.5 + torch.rand(width))
        state[f"{name}.1.bias"] = 0.1 * torch.randn(width)

    norm("bn1", 64)
    inputs = 64
    for stage, blocks in enumerate(RESNET, 1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for n, shape in enumerate([(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], 1):
                state[f"{name}.conv{n}.weight"] = draw(*shape)
                # Small at the end of a block, as residuals are.
                norm(f"{name}.bn{n}", shape[0], scale=0.3 if n == 3 else 1.0)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = draw(4 * width, inputs, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    state["fc.weight"], state["fc.bias"] = draw(classes, 2048), 0.1 * torch.randn(classes)
    return state


def caffe_input(images):
    """RGB in [0,1] → BGR in 0…255 less Caffe's means."""
    blue, green, red = (255 * images[:, channel] for channel in (2, 1, 0))
    return torch.stack([blue - 103.939, green - 116.779, red - 123.68], 1)


def vgg(state, images):
    x, index = caffe_input(images), 0
    for width in VGG:
        if width == "M":
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        else:
            x = F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
            index += 1
        index += 1
    for index in (0, 2, 4):
        x = F.conv2d(x, state[f"classifier.{index}.weight"], state[f"classifier.{index}.bias"])
        x = x if index == 4 else F.relu(x)
    return x


def resnet(state, images):
    def norm(x, name):
        x = (x - state[f"{name}.0.running_mean"].view(-1, 1, 1)) / torch.sqrt(
            state[f"{name}.0.running_var"].view(-1, 1, 1) + 1e-5
        )
        return x * state[f"{name}.1.weight"].view(-1, 1, 1) + state[f"{name}.1.bias"].view(-1, 1, 1)

    x = F.conv2d(caffe_input(images), state["conv1.weight"], state["conv1.bias"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(norm(x, "bn1")), 3, 2, ceil_mode=True)
    for stage, blocks in enumerate(RESNET, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride), f"{name}.bn1"))
            y = F.relu(norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2"))
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each network's tensors and a file of them in the format of their time."""
    torch.manual_seed(0)
    made = {}
    for arch, state in (("resnet50", resnet_state(20)), ("vgg16", vgg_state(20))):
        path = tmp_path_factory.mktemp("weights") / f"{arch}_voc.pth.tar"
        torch.save(state, path, _use_new_zipfile_serialization=False)
        made[arch] = state, path
    yield made
    for _, path in made.values():
        path.unlink()


def load(files, arch, classes=20, **changes):
    settings = {"source": "torchray", "multilabel": True} | changes
    return build_network(arch, classes, files[arch][1], **settings).eval()


def test_vgg_is_the_networks_own_forward_pass(files):
    network = load(files, "vgg16")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = vgg(files["vgg16"][0], images)
        # One place: what slides over larger images is here a plain classifier.
        assert expected.shape == (1, 20, 1, 1)
        torch.testing.assert_close(network(images), expected.flatten(1), rtol=1e-3, atol=1e-3)
    assert network.target_layer_name == "conv5_3"
    assert network.multilabel


@pytest.mark.parametrize("size", [(224, 224), (97, 120)])
def test_resnet_is_the_networks_own_forward_pass(files, size):
    network = load(files, "resnet50")
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = resnet(files["resnet50"][0], images)
        torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-3)
        # The channels are told apart.
        assert not torch.allclose(network(images.flip(1)), expected, rtol=1e-2, atol=1e-2)
    assert network.stem(images).shape[1] == 2048


def test_the_mean_colour_is_caffes(files):
    network = load(files, "resnet50")
    colour = network.mean.view(1, 3, 1, 1)
    torch.testing.assert_close(caffe_input(colour), torch.zeros(1, 3, 1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(network.stem.normalize(colour.expand(1, 3, 4, 4)), torch.zeros(1, 3, 4, 4))


def test_fullgrad_finds_every_bias(files):
    network = load(files, "resnet50").double()
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    targets = torch.tensor([3])
    terms = FullGrad().decompose(network, images, targets)
    total = terms.input.sum() + sum(term.sum() for _, term in terms.biases)
    torch.testing.assert_close(total, network(images)[0, 3], rtol=1e-8, atol=1e-10)


def test_a_saved_network_is_loaded_as_it_was(files, tmp_path):
    network = load(files, "resnet50")
    torch.save(network.state_dict(), tmp_path / "pretrained.pt")
    again = build_network("resnet50", 20, tmp_path / "pretrained.pt", source="torchray", new_classes=False).eval()
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))  # noqa: B905


def test_another_source_is_one_line(files):
    with pytest.raises(
        ValueError, match=r"resnet50_voc.pth.tar: these are not the weights of torchvision's resnet50; .*"
    ) as error:
        load(files, "resnet50", source="torchvision")
    assert "unexpected: conv1.bias, bn1.0.running_mean" in str(error.value)
    assert "missing: bn1.weight, bn1.bias, bn1.running_mean and 209 more" in str(error.value)
    assert "\n" not in str(error.value)


def test_eighty_classes_are_trained_anew_or_refused(files):
    state = files["resnet50"][0]
    network = load(files, "resnet50", classes=5)
    assert network.head.fc.out_features == 5
    torch.testing.assert_close(network.stem.backbone.conv1.weight, state["conv1.weight"][:, [2, 1, 0]])
    with pytest.raises(ValueError, match=r"fc.weight 20×2048 in the file, 5×2048 here.*classifier.epochs"):
        load(files, "resnet50", classes=5, new_classes=False)


def test_classes_must_be_vocs_in_their_order():
    names = list(torchray.VOC_CLASSES)
    assert names == sorted(names)
    assert len(names) == 20
    TorchRayFamily().check_classes(names)
    with pytest.raises(ValueError, match=r"the data set has 19; set data.classes to aeroplane, bicycle"):
        TorchRayFamily().check_classes(names[:-1])
    with pytest.raises(ValueError, match=r"the data set has 20 \(1\. 'bicycle' instead of 'aeroplane'\)"):
        TorchRayFamily().check_classes([names[1], names[0], *names[2:]])


def test_parameters_are_as_many_as_in_the_file(files):
    for arch, (state, _) in files.items():
        with torch.device("meta"):
            network = build_network(arch, 20, source="torchray")
        count = sum(value.numel() for key, value in network.state_dict().items() if "num_batches" not in key)
        assert count == sum(value.numel() for value in state.values())
        ceiling = [module.ceil_mode for module in network.modules() if isinstance(module, nn.MaxPool2d)]
        assert ceiling
        assert all(ceiling)
