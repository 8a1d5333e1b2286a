"""Accuracy and mAP against a hand-computed case and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ibsgl.metrics.classification import (
    accuracy,
    average_precision,
    average_precision_11,
    classification_metrics,
    classification_score,
    mean_average_precision,
)


def test_accuracy():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert accuracy(logits, labels).tolist() == [1, 0, 1]
    assert classification_score(logits, labels, multilabel=False) == ("accuracy", pytest.approx(2 / 3))


def test_average_precision_by_hand():
    # Ranked: hit, miss, hit. Precision 1 at recall ½ and 2/3 at recall 1.
    scores, labels = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([1.0, 1.0, 0.0])
    assert average_precision(scores, labels).item() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(torch.zeros(4), torch.tensor([1.0, 0, 0, 0])).item() == pytest.approx(0.25)
    assert average_precision(scores, torch.zeros(3)).isnan()


def test_average_precision_equals_scikit_learn():
    g = torch.Generator().manual_seed(0)
    # Few distinct scores, so that ties matter.
    scores = torch.randint(0, 12, (200, 5), generator=g).float()
    labels = (torch.rand(200, 5, generator=g) < 0.3).float()
    expected = [average_precision_score(labels[:, k].numpy(), scores[:, k].numpy()) for k in range(5)]
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))
    labels[:, 0] = 0
    assert classification_score(scores, labels, multilabel=True) == ("map", pytest.approx(np.mean(expected[1:])))


def devkit(scores, truth):
    """VOCevalcls.m in a plain loop: truth is 1, -1, or 0 for an image with difficult objects only."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    tp = fp = 0
    curve = []
    for i in order:
        tp += truth[i] > 0
        fp += truth[i] < 0
        # Before the first image that counts there is no precision; the devkit's NaN loses every max.
        curve.append((tp, tp / (tp + fp) if tp + fp else 0.0))
    total = sum(t > 0 for t in truth)
    return sum(max([p for hits, p in curve if 10 * hits >= n * total], default=0.0) for n in range(11)) / 11


def test_eleven_points_by_hand():
    scores, labels = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([1.0, 1.0, 0.0])
    # Precision 1 up to recall ½ (0 … 0.5: six points), then 2/3 (0.6 … 1: five points).
    assert average_precision_11(scores, labels).item() == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # The miss between them is difficult: a perfect ranking.
    assert average_precision_11(scores, labels, torch.tensor([False, False, True])).item() == pytest.approx(1)
    # Last of four: precision ¼ at the only recall there is, 1, and so at all of them.
    assert average_precision_11(torch.arange(4.0), torch.tensor([1.0, 0, 0, 0])).item() == pytest.approx(0.25)
    assert average_precision_11(scores, torch.zeros(3)).isnan()
    assert average_precision_11(scores, labels, labels.bool()).isnan()


def test_eleven_points_are_the_devkits():
    g = torch.Generator().manual_seed(1)
    for number in (3, 10, 30, 200):
        scores = torch.randint(0, 40, (number,), generator=g).float()
        truth = torch.randint(-1, 2, (number,), generator=g)
        truth[0] = 1
        expected = devkit(scores.tolist(), truth.tolist())
        labels = (truth >= 0).float()
        assert average_precision_11(scores, labels, truth == 0).item() == pytest.approx(expected)
        assert average_precision_11(scores, 1 - (truth <= 0).float(), truth == 0).item() == pytest.approx(expected)


def test_figures_of_every_class():
    logits = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.2, 0.0], [0.7, 0.3, 0.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    ignored = torch.tensor([[False, True, False], [False, False, False], [False, False, False]])
    found = classification_metrics(logits, labels, ["cat", "dog", "cow"], multilabel=True, ignored=ignored)
    cat, cat11 = 0.5 + 0.5 * 2 / 3, (6 + 5 * 2 / 3) / 11
    assert found == {
        "map": pytest.approx((cat + 0.5 * (1 + 2 / 3)) / 2),
        "map11": pytest.approx((cat11 + 1) / 2),
        **{"ap/cat": pytest.approx(cat), "ap/dog": pytest.approx(0.5 * (1 + 2 / 3))},
        **{"ap11/cat": pytest.approx(cat11), "ap11/dog": pytest.approx(1)},
    }
    assert next(iter(found)) == "map"
    assert classification_metrics(logits, labels, ["cat", "dog", "cow"], multilabel=False).keys() == {"accuracy"}
