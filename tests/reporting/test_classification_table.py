"""The classification of every variant, class by class."""

import numpy as np
import pandas as pd
import pytest

from ibsgl.reporting.classification import classification_table
from ibsgl.reporting.measurements import Measurements


def measurements(predictions):
    empty = pd.DataFrame({"variant": []})
    frames = {"scores": empty, "losses": empty, "curves": empty, "diagnostics": empty}
    return Measurements("resnet", "r", **frames, predictions=predictions, metadata={"class_names": ["cat", "dog"]})


def predictions(labels=((1, 0), (0, 1), (1, 1), (1, 0)), replicate=0):
    rows = {"pretrained": [(3, 0), (2, 3), (1, 2), (0, 0)], "guided": [(3, 0), (0, 3), (2, 2), (1, 0)]}
    names = ["variant", "image_id", "logit_0", "logit_1", "label_0", "label_1"]
    frame = pd.DataFrame([(n, str(i), *rows[n][i], *labels[i]) for n in rows for i in range(4)], columns=names)
    return frame.astype({"logit_0": float, "logit_1": float}).assign(replicate=replicate, split="test")


def test_average_precision_of_every_class():
    table = classification_table(measurements(predictions()), multilabel=True)
    assert table[["variant", "class", "images"]].to_numpy().tolist() == [
        *(["pretrained", "cat", 3], ["pretrained", "dog", 2], ["guided", "cat", 3], ["guided", "dog", 2])
    ]
    # Hit, miss, hit, hit: precision 1 at recalls 0 … 0.3, then 3/4, the best of what follows.
    assert table["ap"].tolist() == pytest.approx([100 * (1 + 2 / 3 + 3 / 4) / 3, 100, 100, 100])
    assert table["ap11"].tolist() == pytest.approx([100 * (4 + 7 * 3 / 4) / 11, 100, 100, 100])
    # Images in another order than those of the predictions.
    difficult = pd.DataFrame({"cat": [False, False, True, False], "dog": False}, index=["3", "2", "1", "0"])
    table = classification_table(measurements(predictions()), difficult, multilabel=True)
    assert table["ap11"].tolist() == pytest.approx([100] * 4)


def test_accuracy_is_the_mean_over_the_replicates():
    single = ((1, 0), (0, 1), (0, 1), (1, 0))
    second = predictions(single, replicate=1).assign(logit_0=1.0, logit_1=0.0)
    table = classification_table(measurements(pd.concat([predictions(single), second])), multilabel=False)
    assert table["accuracy"].tolist() == [100, 50, 100, 25]
    assert table["replicates"].tolist() == [2] * 4


def test_further_images_do_not_count_and_absent_classes_are_nan():
    further = predictions().assign(split="further", label_0=0, label_1=1)
    table = classification_table(measurements(pd.concat([predictions(((1, 0),) * 4), further])), multilabel=False)
    assert table["images"].tolist() == [4, 0, 4, 0]
    assert np.isnan(table["accuracy"].tolist()[1])
