"""Accuracy and mAP against a hand-computed case and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ibsgl.metrics.classification import accuracy, average_precision, classification_score, mean_average_precision


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
