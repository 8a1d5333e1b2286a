"""The registry of metrics: the paper's come first, and a class that lacks a fact is named."""

from typing import ClassVar

import pytest

from ibsgl import metrics
from ibsgl.metrics import METRICS, Metric


def test_the_papers_metrics_come_first_with_their_facts():
    facts = {
        key: (metric.label, metric.higher_is_better, metric.table) for key, metric in METRICS.items() if metric.in_paper
    }
    assert list(METRICS)[: len(facts)] == list(facts)
    assert facts == {
        "ebpg": ("EBPG", True, "localization"),
        "miou": ("mIoU", True, "localization"),
        "bbox": ("Bbox", True, "localization"),
        "average_drop": ("AD(%)", False, "faithfulness"),
        "average_increase": ("AI(%)", True, "faithfulness"),
    }


def test_every_metric_has_a_table_and_a_range():
    for metric in METRICS.values():
        assert metric.table in ("localization", "faithfulness")
        low, high = metric.range
        assert low < high


def test_a_class_without_a_label_is_named(monkeypatch):
    class Nameless(Metric):
        key: ClassVar[str] = "nameless"

        def __call__(self, evidence):
            return evidence.p_full

    monkeypatch.setattr(metrics.localization, "Nameless", Nameless, raising=False)
    with pytest.raises(TypeError, match=r"Nameless: give the class attribute 'label'"):
        metrics._find()
