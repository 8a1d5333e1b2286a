"""The paper's own values, and how a run's settings differ from those behind them."""

from dataclasses import dataclass

import pytest
import yaml
from table_rows import PUBLISHED, ROOT

from ibsgl import attribution, config
from ibsgl.bottleneck import Bottleneck
from ibsgl.reporting.published import (
    comparable_settings,
    data_set,
    deviations,
    not_stated,
    read_published,
    read_published_settings,
)
from ibsgl.reporting.tables import table_metrics

# The paper's tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "variant", "method", "metric", "value", "marking"),
    [
        (1, "pretrained", "gradcam", "ebpg", 60.08, "none"),
        (1, "pretrained", "extremal_perturbation", "ebpg", 63.24, "second"),
        (1, "pretrained", "score_cam", "miou", 31.0, "none"),
        (1, "guided", "gradient", "bbox", 58.88, "second"),
        (1, "pretrained", "sise", "ebpg", 66.08, "none"),
        (2, "pretrained", "extremal_perturbation", "ebpg", 61.19, "best"),
        (2, "pretrained", "integrated_gradients", "bbox", 33.97, "none"),
        (2, "guided", "gradient", "miou", 28.32, "best"),
        (3, "pretrained", "fullgrad", "average_drop", 65.99, "none"),
        (3, "guided", "gradient", "average_increase", 39.26, "best"),
        (4, "pretrained", "rise", "average_drop", 39.62, "second"),
        (4, "pretrained", "gradcam_pp", "average_increase", 23.89, "none"),
        (4, "pretrained", "sise", "average_increase", 37.96, "none"),
    ],
)
def test_published_values(number, variant, method, metric, value, marking):
    printed = read_published(PUBLISHED, number).set_index(["variant", "method", "metric"])
    row = printed.loc[variant, method, metric]
    assert (row["value"], row["marking"]) == (value, marking)
    assert row["in_paper"] == (method != "sise")
    assert ("Sattarzadeh" in row["source"]) == (method != "gradient")


def test_published_margins_are_those_of_the_abstract():
    """Average Drop better by 1.57 and 1.43 points, Average Increase by 2.18 and 0.18."""
    for number, drop, increase in ((3, 1.57, 2.18), (4, 1.43, 0.18)):
        printed = read_published(PUBLISHED, number)
        wide = printed[printed["in_paper"]].pivot(index="method", columns="metric", values="value")
        others = wide.drop(index="gradient")
        assert others["average_drop"].min() - wide.loc["gradient", "average_drop"] == pytest.approx(drop)
        assert wide.loc["gradient", "average_increase"] - others["average_increase"].max() == pytest.approx(increase)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_published_tables_are_whole_and_their_best_is_the_best(number):
    printed = read_published(PUBLISHED, number)
    metrics = [metric for metric in table_metrics(number) if metric.in_paper]
    assert len(printed) == 9 * len(metrics)
    for metric in metrics:
        paper = printed[printed["in_paper"] & (printed["metric"] == metric.key)].set_index("method")
        best = paper["value"].idxmax() if metric.higher_is_better else paper["value"].idxmin()
        assert paper.index[paper["marking"] == "best"].tolist() == [best]


# Deviations -----------------------------------------------------------------------------------------------------------


def test_deviations_are_phrases():
    published = read_published_settings(PUBLISHED, 1)
    assert (published["network"]["arch"], published["rise"]["masks"], published["suppression"]["r"]) == (
        "resnet50",
        8000,
        0.35,
    )
    assert read_published_settings(PUBLISHED, 4)["rise"]["masks"] == 4000
    same = {key: value for key, value in published.items() if key != "labels"} | {"held_out": 0.1}
    assert deviations(same | {"epochs": 3}, published) == []
    assert deviations(same | {"held_out": 0.05}, published) == []
    changed = same | {
        "data": "shapes",
        "guidance": published["guidance"] | {"mu": 1},
        "rise": published["rise"] | {"masks": 500},
        "score_cam": {"fill": "black"},
    }
    assert deviations(changed, published) == [
        "data set shapes instead of PASCAL VOC 2007",
        "mu 1 instead of 2",
        "RISE masks 500 instead of 8000",
        "Score-CAM weight not set instead of increase",
    ]
    # The row of a method that was not run says so, and the caption does not.
    del changed["integrated_gradients"]
    assert len(deviations(changed, published)) == 4
    assert deviations({"a": {"b_c": 1}}, {"a": {"b_c": 2}}) == ["a b c 1 instead of 2"]
    assert deviations({"a": {"b": True}}, {"a": {"b": False}, "labels": {"a": "A"}}) == ["A b true instead of false"]
    assert deviations({}, {"a": {"at_most": 1}}) == ["a not set instead of at most 1"]


def test_the_states_of_settings():
    paper = read_published_settings(PUBLISHED, 2, states=["paper"])
    inferred = read_published_settings(PUBLISHED, 2, states=["inferred"])
    assert paper["network"] == {"image_size": 224, "arch": "vgg16"}
    assert inferred["network"] == {"source": "torchray", "weights": "vgg16_voc-b050e8c3.pth.tar"}
    # The test set's description belongs to both.
    assert paper["test_set"] == inferred["test_set"]
    assert "rise" not in paper
    assert "alpha" not in inferred["bottleneck"]


def test_the_published_data_set_is_recognised_by_content_not_by_name():
    published = read_published_settings(PUBLISHED, 1)
    names = published["test_set"]["class_names"]
    assert data_set(4952, names, "anything", published) == "PASCAL VOC 2007"
    assert data_set(10, names, "voc2007", published) == "voc2007 (10 test images, 20 classes)"
    assert data_set(4952, names[::-1], "voc2007", published) == "voc2007 (4952 test images, 20 classes)"


# A run's settings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def minimal():
    return yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text(encoding="utf-8"))


def read_config(*names):
    values = {}
    for name in names:
        values = config.merge(values, yaml.safe_load((ROOT / "config" / name).read_text(encoding="utf-8")))
    return values


TORCHRAY = read_config("voc2007.yaml", "torchray.yaml")


def phrases(values, number=1):
    """The deviations of the config ``values`` on the published data."""
    reference = read_published_settings(PUBLISHED, number)
    loaded = config.parse(values)
    settings = comparable_settings(loaded, list(loaded.models)[(number - 1) % 2])
    return deviations(settings | {"data": reference["data"]}, reference)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_published_settings_can_be_had(number):
    assert phrases(TORCHRAY, number) == []


def test_other_networks_are_not_comparable():
    assert phrases(read_config("voc2007.yaml")) == [
        "network of torchvision instead of torchray",
        "weights IMAGENET1K_V1 instead of resnet50_voc-9ca920d6.pth.tar",
        "classifier epochs 10 instead of 0",
    ]


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"bottleneck": {"reduction": "sum"}}, "bottleneck reduction sum instead of mean"),
        ({"bottleneck": {"steps": 1}}, "bottleneck steps 1 instead of 10"),
        ({"bottleneck": {"lr": 0.1}}, "bottleneck lr 0.1 instead of 1"),
        ({"bottleneck": {"samples": 1}}, "bottleneck samples 1 instead of 10"),
        ({"guidance": {"mode": "end_to_end"}}, "guidance mode end_to_end instead of feature"),
        ({"guidance": {"bottleneck_network": "current"}}, "network of L^ib current instead of pretrained"),
        ({"guidance": {"teacher": "shuffled"}}, "guidance teacher shuffled instead of bottleneck"),
        ({"guidance": {"loss": "none"}}, "guidance loss none instead of localization"),
        ({"data": {"multilabel": False}}, "multi-label false instead of true"),
        ({"data": {"held_out": 0.9}}, "held-out share 0.9 instead of at most 0.1"),
        ({"data": {"difficult": "drop"}}, "difficult objects drop instead of keep"),
        ({"data": {"splits": {"train": "train"}}}, "training list train instead of trainval"),
        ({"deletion": {"fill": "mean"}}, "deletion fill mean instead of black"),
        ({"metrics": {"kept": {"fill": "mean"}}}, "AD and AI fill mean instead of black"),
        ({"methods": {"score_cam": {"fill": "mean"}}}, "Score-CAM fill mean instead of black"),
        ({"methods": {"rise": {"fill": "mean"}}}, "RISE fill mean instead of black"),
        ({"methods": {"extremal_perturbation": {"smooth": 0.1}}}, "Extremal Perturbation smooth 0.1 instead of 0"),
        ({"suppression": {"when": "never"}}, "suppression never instead of always"),
        ({"classifier": {"epochs": 1}}, "classifier epochs 1 instead of 0"),
        (
            {"models": {"resnet50": {"weights": "data/mine.pth"}}},
            "weights mine.pth instead of resnet50_voc-9ca920d6.pth.tar",
        ),
        (
            {"models": {"resnet50": {"weights": None}}},
            "weights random instead of resnet50_voc-9ca920d6.pth.tar",
        ),
        ({"models": {"resnet50": {"source": "torchvision"}}}, "network of torchvision instead of torchray"),
        ({"models": {"resnet50": {"override": {"bottleneck": {"steps": 1}}}}}, "bottleneck steps 1 instead of 10"),
    ],
)
def test_no_setting_escapes(change, phrase):
    assert phrases(config.merge(TORCHRAY, change)) == [phrase]


def leaves(settings, path=()):
    """The dotted keys of nested settings."""
    for key, value in settings.items():
        if isinstance(value, dict) and set(value) != {"at_most"}:
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key))


def test_every_setting_has_one_state():
    reference = [read_published_settings(PUBLISHED, 1, states=[state]) for state in ("paper", "inferred")]
    descriptions = {"labels", "test_set", "ours", "differences", "data"}
    paper, inferred = (set(leaves({k: v for k, v in part.items() if k not in descriptions})) for part in reference)
    ours = reference[0]["ours"]
    settings = set(leaves(comparable_settings(config.parse(TORCHRAY), "resnet50")))
    chosen = {key for key in settings if any(key == each or key.startswith(f"{each}.") for each in ours)}
    assert paper | inferred | chosen == settings
    assert len(paper) + len(inferred) + len(chosen) == len(settings)
    assert all(any(key == each or key.startswith(f"{each}.") for key in settings) for each in ours)


def test_settings_that_are_stated_nowhere_are_listed():
    loaded = config.parse(config.merge(TORCHRAY, {"guidance": {"steps": 7}}))
    listed = not_stated(comparable_settings(loaded, "resnet50"), read_published_settings(PUBLISHED, 1))
    assert "guidance steps 7" in listed
    assert "guidance training optimizer sgd" in listed
    assert "guidance divergence normalise softmax" in listed
    assert "Extremal Perturbation padded false" in listed
    assert not any("alpha" in phrase or "RISE" in phrase for phrase in listed)


def test_what_every_run_does_otherwise_is_said():
    text = " ".join(read_published_settings(PUBLISHED, 1)["differences"])
    for word in ("RISE, Score-CAM and SISE", "held-out", "augmentation", "binary cross-entropy of the target alone"):
        assert word in text


def test_a_runs_settings_have_defaults_and_overrides(minimal):
    minimal["models"]["resnet"]["override"] = {"suppression": {"r": 0.5}, "methods": {"rise": {"masks": 5}}}
    minimal["methods"]["score_cam"] = None
    settings = comparable_settings(config.load(minimal), "resnet")
    assert (settings["network"]["arch"], settings["network"]["image_size"]) == ("resnet_small", 32)
    assert settings["suppression"] == {"r": 0.5, "beta": 1, "when": "always"}
    assert (settings["test_list"], settings["difficult"], settings["average"]) == ("test", "keep", "pairs")
    # Given in the override, in the config, and nowhere.
    assert [settings["rise"][key] for key in ("masks", "cells", "p")] == [5, 3, 0.5]
    assert settings["score_cam"] == {"weight": "increase", "fill": "black"}
    assert settings["metrics"]["bbox"] == {"ties": "strict"}


def test_a_methods_settings_are_read_whatever_its_class(minimal, monkeypatch):
    @dataclass(frozen=True)
    class WithTuple:
        areas: tuple[float, ...] = (0.1, 0.2)

    minimal["methods"] = {"rise": None, "gradcam": None, "fullgrad": None}
    loaded = config.load(minimal)
    made = {"rise": WithTuple(), "gradcam": Bottleneck(alpha=10), "fullgrad": object()}
    monkeypatch.setattr(attribution, "row", lambda name, _: attribution.Row(made[name], name, name))
    settings = comparable_settings(loaded, "resnet")
    assert settings["rise"] == {"areas": [0.1, 0.2]}
    assert settings["gradcam"]["alpha"] == 10
    assert settings["fullgrad"] == {}
