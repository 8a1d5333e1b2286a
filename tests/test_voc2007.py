"""The reproduction's settings are the published ones. tests/workflow/test_reproduction.py runs its graph."""

import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from ibsgl import attribution, config
from ibsgl.reporting.published import comparable_settings, deviations, read_published_settings

ROOT = Path(__file__).parents[1]
VOC2007 = ROOT / "config" / "voc2007.yaml"


@pytest.fixture(scope="module")
def voc2007():
    return config.parse(yaml.safe_load(VOC2007.read_text(encoding="utf-8")))


def settings(loaded, model, method):
    return asdict(attribution.get(method, **loaded.for_model(model).method_settings(method)))


def test_the_methods_have_their_papers_settings(voc2007):
    for model, masks in (("resnet50", 8000), ("vgg16", 4000)):
        # Petsiuk et al. 2018, Section 4.1: N = 4000 for VGG-16 and 8000 for ResNet-50, 7 cells, p = 0.5.
        rise = settings(voc2007, model, "rise")
        assert (rise["masks"], rise["cells"], rise["p"]) == (masks, 7, 0.5)
        # Fong et al. 2019, Section 3.3 and the authors' code: 800 iterations of SGD at 0.01, λ from 300, by 1.0035 a step,
        # a mask of step 7 and sigma 21, eight degrees of blur up to 20 pixels, 10 % of the image.
        assert settings(voc2007, model, "extremal_perturbation") == {
            "areas": (0.1,),
            "iterations": 800,
            "lr": 0.01,
            "weight": 300.0,
            "growth": 1.0035,
            "grid_spacing": 7,
            "sigma": 21.0,
            "levels": 8,
            "blur": 20.0,
            "smooth": 0.0,
            "padded": False,
            "chunk": 64,
        }
        # Wang et al. 2020, Eq. 8: the increase over a baseline, here black.
        score_cam = settings(voc2007, model, "score_cam")
        assert (score_cam["weight"], score_cam["fill"]) == ("increase", "black")
        assert settings(voc2007, model, "integrated_gradients")["steps"] == 50
        # Sattarzadeh et al. 2021: the maps before each reduction, and every channel with a positive gradient.
        sise = settings(voc2007, model, "sise")
        assert (sise["layers"], sise["mu"], sise["mask"], sise["threshold"]) == ("before", 0, "sigmoid", "otsu")
        for method in ("gradcam", "gradcam_pp", "fullgrad"):
            assert settings(voc2007, model, method) == {}
    assert len(voc2007.methods) == 8


def test_the_paper_gives_these(voc2007):
    assert (voc2007.suppression.r, voc2007.suppression.beta, voc2007.suppression.when) == (0.35, 1, "always")
    assert voc2007.guidance.mu == 2
    assert (voc2007.bottleneck.alpha, voc2007.bottleneck.gamma, voc2007.bottleneck.sigma) == (1000, 5, 1)
    assert {model.arch: model.image_size for model in voc2007.models.values()} == {"resnet50": 224, "vgg16": 224}
    assert list(voc2007.models) == ["resnet50", "vgg16"]
    assert voc2007.metrics.miou.top == 0.2
    assert voc2007.metrics.kept.top == 0.15
    assert voc2007.data.multilabel


@pytest.fixture(scope="module")
def torchray():
    overlay = yaml.safe_load(VOC2007.with_name("torchray.yaml").read_text(encoding="utf-8"))
    return config.parse(config.merge(yaml.safe_load(VOC2007.read_text(encoding="utf-8")), overlay))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_only_with_torchrays_networks_are_its_tables_comparable(voc2007, torchray, number):
    reference = read_published_settings(ROOT / "results" / "published", number)
    model = list(voc2007.models)[(number - 1) % 2]
    ours = comparable_settings(torchray, model) | {"data": reference["data"]}
    assert deviations(ours, reference) == []
    # A setting that differs is named.
    assert deviations(ours | {"rise": ours["rise"] | {"masks": 7}}, reference) != []
    assert deviations(comparable_settings(voc2007, model) | {"data": reference["data"]}, reference) != []


def test_torchrays_networks_go_on_top(voc2007, torchray):
    assert [(model.arch, model.source) for model in torchray.models.values()] == [
        ("resnet50", "torchray"),
        ("vgg16", "torchray"),
    ]
    assert torchray.classifier.epochs == 0
    assert torchray.data == voc2007.data
    for model in torchray.models:
        assert settings(torchray, model, "rise") == settings(voc2007, model, "rise")


def test_the_archives_are_those_that_torchvision_knows(voc2007):
    # Its text is enough: importing it takes seconds.
    record = Path(find_spec("torchvision").origin).with_name("datasets") / "voc.py"
    checksums = dict(re.findall(r'"filename": "(.*)",\n\s+"md5": "(.*)"', record.read_text(encoding="utf-8")))
    archives = voc2007.data.download.archives
    assert [archive.name for archive in archives] == ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    for archive in archives:
        assert checksums[archive.name] == archive.md5
    # http://host.robots.ox.ac.uk/pascal/VOC/history.html: 9963 images in train, validation and test.
    assert sum(voc2007.data.download.images.values()) == 9963
    assert voc2007.test_images == 4952
