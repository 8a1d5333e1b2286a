"""Measurements: files are read and checked, and per-image values have the reported value as their mean."""

import numpy as np
import pandas as pd
import pytest
import torch
from score_rows import run, write

from ibsgl.metrics.classification import mean_average_precision
from ibsgl.reporting.measurements import Measurements, Quantity, check_rows, read_measurements


def of(**frames):
    """Measurements with the given frames; the others are empty."""
    empty = pd.DataFrame({"variant": [], "replicate": []})
    parts = dict.fromkeys(("scores", "losses", "predictions", "curves", "diagnostics"), empty)
    return Measurements("resnet", "resnet_small", **(parts | frames), metadata={})


def scores(values, replicate=0):
    """EBPG of Eq. 3 on three images, of which the last shows two classes."""
    pairs = [("1", "cat"), ("2", "cat"), ("3", "cat"), ("3", "dog")]
    rows = pd.DataFrame(pairs, columns=["image_id", "class_name"])
    names = {"variant": "guided", "scored_on": "guided", "method": "gradient", "label": "Eq. 3"}
    return rows.assign(replicate=replicate, ebpg=values, **names)


# Values ---------------------------------------------------------------------------------------------------------------


def test_pairs_and_classes_are_averaged():
    measurements = of(scores=pd.concat([scores([0.2, 0.4, 0.6, 0.8]), scores([0.1] * 4, replicate=1)]))
    quantity = Quantity("ebpg", "guided")
    pairs = measurements.values(quantity)
    assert pairs.index.tolist() == ["1", "2", "3"]
    assert pairs.columns.tolist() == [0, 1]
    # An image's value is the mean, 50, plus I/N times the sum of its pairs' distances from it.
    assert pairs[0].tolist() == pytest.approx([50 - 30 * 3 / 4, 50 - 10 * 3 / 4, 50 + (10 + 30) * 3 / 4])
    # A constant has no variance, although one image has two pairs.
    assert pairs[1].tolist() == pytest.approx([10, 10, 10])
    assert pairs.mean().tolist() == pytest.approx([50, 10])
    classes = measurements.values(quantity, "classes")
    assert classes.mean().tolist() == pytest.approx([100 * (0.4 + 0.8) / 2, 10])
    with pytest.raises(ValueError, match="average must be"):
        measurements.values(quantity, "images")


def test_losses_have_their_own_unit():
    measurements = run({}, replicates=2, images=4)
    for metric, mean in (("l_ce", 6), ("l_ss", 0.14), ("overlap", 0.5)):
        assert measurements.values(Quantity(metric, "guided")).mean().mean() == pytest.approx(mean, abs=0.1)
    accuracy = measurements.values(Quantity("accuracy", "guided"))
    assert accuracy[0].tolist() == [100, 100, 100, 100]


def test_deletion_areas():
    curve = {"0": [0.8, 0.4, 0.2], "1": [0.4, 0.4, 0.0]}
    rows = [
        {
            "variant": "guided",
            "replicate": 0,
            "image_id": i,
            "class_name": "cat",
            "repeat": 0,
            "fraction": f,
            "probability": p,
        }
        for i, values in curve.items()
        for f, p in zip((0, 0.5, 1), values, strict=True)
    ]
    measurements = of(curves=pd.DataFrame(rows))
    area = measurements.values(Quantity("deletion_area", "guided"))
    assert area[0].tolist() == pytest.approx([45, 30])
    relative = measurements.values(Quantity("deletion_area_relative", "guided"))
    ratio = 37.5 / 60
    assert relative[0].mean() == pytest.approx(100 * ratio)
    linear = [ratio + (area - start * ratio) / 0.6 for area, start in ((0.45, 0.8), (0.3, 0.4))]
    assert relative[0].tolist() == pytest.approx([100 * value for value in linear])
    dead = of(curves=pd.DataFrame(rows).assign(probability=0.0))
    assert dead.values(Quantity("deletion_area_relative", "guided"))[0].tolist() == [100, 100]


@pytest.mark.parametrize("images", [1, 2, 30])
def test_map_is_a_mean_of_pseudo_values(images):
    rng = np.random.default_rng(images)
    # Rounded scores, so that some are equal. The last class has one image or none.
    logits = rng.integers(0, 5, (images, 4)).astype(float)
    labels = rng.integers(0, 2, (images, 4)).astype(float)
    labels[:, 3] = 0
    labels[0, :3] = 1
    labels[1:, 2] = 0
    frame = pd.DataFrame({"variant": "guided", "replicate": 0, "image_id": [f"{i:02}" for i in range(images)]})
    frame = frame.assign(
        **{f"logit_{k}": logits[:, k] for k in range(4)}, **{f"label_{k}": labels[:, k] for k in range(4)}
    )
    values = of(predictions=frame).values(Quantity("map", "guided"))[0].to_numpy()
    mean = mean_average_precision(torch.tensor(logits), torch.tensor(labels))
    assert values.mean() == pytest.approx(100 * mean)
    if images == 30:
        without = [
            mean_average_precision(torch.tensor(np.delete(logits, i, 0)), torch.tensor(np.delete(labels, i, 0)))
            for i in range(images)
        ]
        pseudo = images * mean - (images - 1) * np.array(without)
        np.testing.assert_allclose(values, 100 * (pseudo - pseudo.mean() + mean))


def test_values_that_are_missing_are_explained():
    measurements = run({}, replicates=2, images=4, variants=["pretrained", "control", "guided"], methods=["rise"])
    assert measurements.variants == ["pretrained", "control", "guided"]
    assert set(measurements.scores["replicate"]) == {0, 1}
    assert measurements.methods("pretrained") == ["gradient", "rise"]
    assert measurements.missing(Quantity("ebpg", "pretrained", "rise")) == ""
    assert measurements.missing(Quantity("ebpg", "guided", "rise")) == "RISE was not run on guided"
    assert measurements.missing(Quantity("ebpg", "guided", "sise")) == "sise was not run on guided"
    assert measurements.missing(Quantity("ebpg", "boxes")) == "no variant boxes in this run"
    assert measurements.missing(Quantity("insertion", "guided")) == "no metric insertion in this run"
    with pytest.raises(ValueError, match="resnet: no variant boxes in this run"):
        measurements.values(Quantity("ebpg", "boxes"))


@pytest.mark.parametrize("values", [[np.nan, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, np.nan], [0.1, np.inf, 0.1, 0.1]])
def test_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match=r"resnet/guided/gradient: ebpg has values that are NaN or infinite"):
        of(scores=scores(values)).values(Quantity("ebpg", "guided"))


# Files ----------------------------------------------------------------------------------------------------------------


def test_shards_and_replicates_are_read(tmp_path):
    measurements = run({"guided": 0.1}, replicates=2, images=5, methods=["rise"])
    read = read_measurements(reversed(write(measurements, tmp_path, shards=2)))
    assert (read.model, read.arch, [*read.metadata["replicates"]]) == ("resnet", "resnet_small", [0, 1])
    for quantity in (
        Quantity("ebpg", "guided"),
        Quantity("average_drop", "pretrained", "rise"),
        Quantity("l_ce", "boxes"),
    ):
        pd.testing.assert_frame_equal(read.values(quantity), measurements.values(quantity))
    assert read.metadata["class_names"] == ["cat", "dog"]
    assert len(read.diagnostics) == 10


@pytest.mark.parametrize("key", ["data_digest", "seed", "class_names", "weights_digest"])
def test_files_that_disagree_are_refused(tmp_path, key):
    measurements = run({}, replicates=1, images=4)
    folders = write(measurements, tmp_path / "a") + write(measurements, tmp_path / "b", **{key: "other"})
    with pytest.raises(
        ValueError, match=rf"disagree on {key}.*a.*scores\.parquet has .*b.*scores\.parquet has \"other\""
    ):
        read_measurements(folders)


def test_replicates_have_other_weights(tmp_path):
    first, second = (run({}, replicates=n, images=4) for n in (1, 2))
    later = Measurements(
        "resnet",
        "resnet_small",
        *(
            frame[frame["replicate"] == 1]
            for frame in (second.scores, second.losses, second.predictions, second.curves)
        ),
        second.diagnostics[second.diagnostics["replicate"] == 1],
        {},
    )
    folders = write(first, tmp_path) + write(later, tmp_path, weights_digest={"guided": "w2"})
    assert [*read_measurements(folders).metadata["replicates"]] == [0, 1]


def test_incomplete_and_doubled_files_are_refused(tmp_path):
    measurements = run({}, replicates=2, images=4)
    folders = write(measurements, tmp_path, shards=2)
    with pytest.raises(ValueError, match="no measurements to read"):
        read_measurements([])
    with pytest.raises(ValueError, match=r"several rows for variant .*; give each folder only once"):
        read_measurements([*folders, folders[0]])
    with pytest.raises(ValueError, match=r"not measured on the same rows: .* in one only"):
        read_measurements(folders[:3])
    scores_file = folders[0] / "scores.parquet"
    pd.read_parquet(scores_file).drop(columns="p_kept").to_parquet(scores_file)
    with pytest.raises(ValueError, match=r"scores\.parquet lacks the columns p_kept; delete the folder"):
        read_measurements(folders)


def test_files_without_a_record_or_of_two_models_are_refused(tmp_path):
    folders = write(run({}, replicates=1, images=4), tmp_path)
    other = write(run({}, model="vgg", replicates=1, images=4), tmp_path)
    with pytest.raises(ValueError, match="one model, not of 2: resnet, vgg"):
        read_measurements([*folders, *other])
    frame = pd.read_parquet(folders[0] / "scores.parquet")
    frame.to_parquet(folders[0] / "scores.parquet")
    with pytest.raises(ValueError, match="has no 'ibsgl' record"):
        read_measurements(folders)


def test_rows_are_checked_by_group():
    rows = pd.DataFrame({"variant": ["a", "a", "b"], "image_id": ["1", "2", "1"]})
    with pytest.raises(ValueError, match=r"x of b and x of a were not measured on the same rows: 1 .* \('2',\)"):
        check_rows(rows, ["variant", "image_id"], "x")
