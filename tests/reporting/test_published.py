"""The paper's own values, and how a run's settings differ from those behind them."""

from dataclasses import dataclass

import pandas as pd
import pytest
import yaml
from score_rows import PUBLISHED, ROOT

from ibsgl import attribution, config
from ibsgl.bottleneck import Bottleneck
from ibsgl.reporting.published import (
    comparable_settings,
    data_set,
    deviations,
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
    assert (published["arch"], published["rise"], published["r"]) == (
        "resnet50",
        {"cells": 7, "p": 0.5, "masks": 8000},
        0.35,
    )
    assert read_published_settings(PUBLISHED, 4)["rise"]["masks"] == 4000
    same = {key: value for key, value in published.items() if key != "labels"}
    assert deviations(same | {"epochs": 3, "alpha": 1000.0}, published) == []
    changed = same | {"data": "shapes", "rise": published["rise"] | {"masks": 500}, "score_cam": {}, "mu": 1}
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


def test_the_published_data_set_is_recognised_by_content_not_by_name():
    published = read_published_settings(PUBLISHED, 1)
    names = published["test_set"]["class_names"]
    scores = pd.DataFrame({"image_id": [str(i) for i in range(4952)]})
    scores.attrs["metadata"] = {"a": {"class_names": names}}
    assert data_set(scores, "anything", published) == "PASCAL VOC 2007"
    few = scores.head(10)
    few.attrs = scores.attrs
    assert data_set(few, "voc2007", published) == "voc2007 (10 test images, 20 classes)"


# A run's settings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def minimal():
    return yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text(encoding="utf-8"))


def test_a_runs_settings_have_defaults_and_overrides(minimal):
    minimal["models"]["resnet"]["override"] = {"suppression": {"r": 0.5}, "methods": {"rise": {"masks": 5}}}
    minimal["methods"]["score_cam"] = None
    settings = comparable_settings(config.load(minimal), "resnet")
    assert (settings["arch"], settings["image_size"], settings["r"], settings["beta"]) == ("resnet_small", 32, 0.5, 1)
    assert (settings["split"], settings["difficult"], settings["average"]) == ("test", "keep", "pairs")
    # Given in the override, in the config, and nowhere.
    assert [settings["rise"][key] for key in ("masks", "cells", "p")] == [5, 3, 0.5]
    assert settings["score_cam"]["weight"] == "increase"
    assert settings["metrics"]["bbox"] == {"ties": "strict"}
    reference = read_published_settings(PUBLISHED, 1)
    assert deviations(settings | {"data": reference["data"]}, reference) == [
        "image size 32 instead of 224",
        "r 0.5 instead of 0.35",
        "RISE cells 3 instead of 7",
        "RISE masks 5 instead of 8000",
        "network resnet_small instead of resnet50",
    ]


def test_a_methods_settings_are_read_whatever_its_class(minimal, monkeypatch):
    @dataclass(frozen=True)
    class WithTuple:
        areas: tuple[float, ...] = (0.1, 0.2)

    minimal["methods"] = {"rise": None, "gradcam": None, "fullgrad": None}
    loaded = config.load(minimal)
    made = {"rise": WithTuple(), "gradcam": Bottleneck(alpha=10), "fullgrad": object()}
    monkeypatch.setattr(attribution, "get", lambda name, **_: made[name])
    settings = comparable_settings(loaded, "resnet")
    assert settings["rise"] == {"areas": [0.1, 0.2]}
    assert settings["gradcam"]["alpha"] == 10
    assert "fullgrad" not in settings
