"""Weights from a file: whoever saved them, they load or one line says why not."""

import urllib.error

import pytest
import torch
from torch import nn
from torchvision import models

from ibsgl.networks import build_network
from ibsgl.networks.weights import read_state


class SlimVGG(nn.Module):
    """torchvision's modules and names of a VGG, at a size that is drawn at once."""

    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(8 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, classes))

    def forward(self, images):
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def vgg(classes=7):
    torch.manual_seed(3)
    return SlimVGG(classes)


def resnet(classes=7):
    torch.manual_seed(3)
    return models.resnet18(num_classes=classes)


def same(network, model, size=64):
    """The network is ``model`` after normalisation."""
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        seen = network.stem.normalize(images)
        torch.testing.assert_close(network.eval()(images), model.eval()(seen), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "model", "module", "old"],
)
def test_torchvisions_state_dicts(tmp_path, wrap):
    torch.save(wrap(resnet().state_dict()), tmp_path / "w.pt")
    same(build_network("resnet18", 7, tmp_path / "w.pt", new_classes=False), resnet())


def test_torchvisions_vgg_and_this_projects_own_names(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "get_model", lambda arch, weights=None, num_classes=1000: SlimVGG(num_classes))
    torch.save(vgg().state_dict(), tmp_path / "w.pt")
    network = build_network("vgg11", 7, tmp_path / "w.pt", new_classes=False)
    same(network, vgg())
    torch.save(network.state_dict(), tmp_path / "own.pt")
    same(build_network("vgg11", 7, tmp_path / "own.pt", new_classes=False), vgg())


def test_another_number_of_classes_gets_a_new_last_layer_or_is_refused(tmp_path, caplog):
    torch.save(resnet(1000).state_dict(), tmp_path / "w.pt")
    network = build_network("resnet18", 4, tmp_path / "w.pt")
    assert network.head.fc.weight.shape == (4, 512)
    assert "w.pt: it has another number of classes, so its last layer is not used" in caplog.text
    torch.testing.assert_close(network.stem.backbone.layer4[1].conv2.weight, resnet(1000).layer4[1].conv2.weight)
    with pytest.raises(ValueError, match=r"another shape: fc\.weight 1000×512 in the file, 4×512 here, fc\.bias"):
        build_network("resnet18", 4, tmp_path / "w.pt", new_classes=False)


def test_a_mismatch_names_the_layers(tmp_path):
    state = resnet().state_dict()
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["surplus"] = state.pop("bn1.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt") as error:
        build_network("resnet18", 7, tmp_path / "w.pt")
    assert str(error.value).endswith(
        "these are not the weights of torchvision's resnet18; missing: bn1.bias; unexpected: surplus; another shape: "
        "conv1.weight 64×3×3×3 in the file, 64×3×7×7 here"
    )
    torch.save(vgg().state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"missing: conv1.weight, bn1.weight, bn1.bias and 99 more; unexpected: features"
    ):
        build_network("resnet18", 7, tmp_path / "w.pt")
    torch.save(build_network("vgg_small", 3, width=2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"not the weights of vgg_small; another shape: stem.backbone.0.0.weight 2×3×3×3"
    ):
        build_network("vgg_small", 3, tmp_path / "w.pt", width=8)


class Danger:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "w.pt: "),
        (b"no weights at all", "w.pt: "),
        (Danger(), "w.pt: torch.load cannot read it as a file of tensors alone"),
        ([torch.zeros(2)], r"w.pt: it must hold a state dict \(names and dense tensors\)"),
        ({"state_dict": {}}, "w.pt: it must hold a state dict"),
        ({"epoch": 3}, "w.pt: it must hold a state dict"),
        ({1: torch.zeros(2)}, "w.pt: it must hold a state dict"),
        ({"a": torch.zeros(2).to_sparse()}, "w.pt: it must hold a state dict"),
    ],
)
def test_files_that_hold_no_weights_are_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_state(path)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_a_truncated_file_is_one_line(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(resnet().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"w.pt: .*check that the file is complete") as error:
        read_state(path)
    assert "\n" not in str(error.value)


def test_no_network_for_torchvisions_weights(monkeypatch):
    def get_model(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(models, "get_model", get_model)
    with pytest.raises(ValueError, match="resnet50: torchvision's ImageNet weights could not be downloaded") as error:
        build_network("resnet50", 1000, "IMAGENET1K_V1")
    said = str(error.value)
    assert "Name or service not known" in said
    assert "https://download.pytorch.org/models/resnet50-0676ba61.pth as resnet50-0676ba61.pth into " in said
    assert said.endswith("/checkpoints by hand")
    assert "\n" not in said


def test_torchvisions_weights_by_name(monkeypatch):
    asked = []

    def get_model(arch, weights=None, **_):
        asked.append(weights)
        return resnet(1000)

    monkeypatch.setattr(models, "get_model", get_model)
    build_network("resnet18", 1000, "IMAGENET1K_V1", new_classes=False)
    build_network("resnet50", 1000, "imagenet")
    assert asked == [models.ResNet18_Weights.IMAGENET1K_V1, models.ResNet50_Weights.DEFAULT]
    with pytest.raises(ValueError, match="torchvision has IMAGENET1K_V1 for resnet18, not IMAGENET1K_V2"):
        build_network("resnet18", 1000, "IMAGENET1K_V2")
    with pytest.raises(ValueError, match=r"imagenet has 1000 classes and the data 4, .*classifier.epochs to 1 or more"):
        build_network("resnet18", 4, "imagenet", new_classes=False)
