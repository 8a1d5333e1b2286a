"""Tables from tiny measurements: rows, values, marks, verdicts and refusals."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from table_rows import PAIRS, PUBLISHED, ROOT, build, cell, group, many, measurements, replicates

from ibsgl import config
from ibsgl.reporting.measurements import Quantity
from ibsgl.reporting.statistics import crossed_estimate
from ibsgl.reporting.tables import table_of_run


def test_rows_are_the_papers_and_then_ours():
    mine = group("pretrained", "mine", "My method")
    groups = [mine, mine.assign(variant="guided", scored_on="guided"), group("control", "gradcam", "Grad-CAM")]
    table = build(*groups, group("shuffled", "gradient", "Gradient"))
    rows = table.drop_duplicates(["variant", "method"])
    main = ["Grad CAM", "Grad CAM++", "Extremal Perturbation", "RISE", "Score CAM", "Integrated Gradient", "FullGrad"]
    assert rows[rows["section"] == "main"]["row"].tolist() == [*main, "Ours method"]
    assert rows[rows["section"] == "extra"]["row"].tolist() == [
        "SISE",
        "Eq. 3, unguided network",
        "Eq. 3, control network",
        "Information bottleneck (Eq. 9)",
        *(f"{label}, guided network" for label in main),
        *("Centre (sanity method)", "Random (sanity method)", "Oracle (sanity method)"),
        "My method",
        "Grad-CAM, control network",
        "My method, guided network",
        "Eq. 3, shuffled network",
    ]
    assert set(rows[rows["section"] == "main"]["variant"][:-1]) == {"pretrained"}
    ours = cell(table, "Ours method", "ebpg")
    assert (ours.variant, ours.method) == ("guided", "gradient")


def test_a_row_on_one_replicate():
    # Four images with one class each: a t-interval with 3 degrees of freedom.
    pairs, values = [("1", "cat"), ("2", "cat"), ("3", "dog"), ("4", "dog")], [0.9, 0.1, 0.3, 0.7]
    row = cell(build(group("pretrained", "gradcam", pairs=pairs, ebpg=values)), "Grad CAM", "ebpg")
    half = 100 * stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert row.value == pytest.approx(50)
    assert (row.low, row.high) == (pytest.approx(max(50 - half, 0)), pytest.approx(min(50 + half, 100)))
    assert (row.replicates, row.by_replicate, row.n_pairs, row.n_images) == (1, repr(row.value), 4, 4)


def test_images_with_several_classes_count_once():
    row = cell(build(group("pretrained", "gradcam", ebpg=[0.9, 0.1, 0.3, 0.7])), "Grad CAM", "ebpg")
    assert row.value == pytest.approx(50)
    assert (row.n_pairs, row.n_images) == (4, 3)


def test_a_row_on_several_replicates():
    first, second = [0.9, 0.1, 0.3, 0.7], [0.8, 0.2, 0.2, 0.4]
    rows = replicates("pretrained", "gradcam", first, second)
    row = cell(build(rows), "Grad CAM", "ebpg")
    expected = crossed_estimate(measurements(rows).values(Quantity("ebpg", "pretrained", "gradcam")).to_numpy().T)
    assert row.value == pytest.approx(45)
    assert (row.low, row.high) == (pytest.approx(max(expected.low, 0)), pytest.approx(min(expected.high, 100)))
    assert row.replicates == 2
    assert [float(value) for value in row.by_replicate.split("; ")] == pytest.approx([50, 40])


def test_rows_may_rest_on_different_numbers_of_replicates():
    table = build(replicates("pretrained", "gradcam", 0.2, 0.4, 0.6), group("pretrained", "rise"))
    assert (cell(table, "Grad CAM", "ebpg").replicates, cell(table, "RISE", "ebpg").replicates) == (3, 1)
    assert cell(table, "Grad CAM", "ebpg").value == pytest.approx(40)


def test_maps_scored_by_another_variant_are_in_no_row():
    crossed = group("guided", "gradient", scored_on="pretrained", ebpg=0.9)
    table = build(group("guided", "gradient", ebpg=0.1), crossed)
    assert cell(table, "Ours method", "ebpg").value == pytest.approx(10)
    assert cell(build(group("pretrained", "rise"), crossed), "Ours method", "ebpg").value == "not run"


def test_one_image_and_one_replicate_have_no_interval():
    table = build(group("pretrained", "gradcam", pairs=PAIRS[:1], ebpg=0.3))
    row = cell(table, "Grad CAM", "ebpg")
    assert (row.value, row.low, row.high) == (pytest.approx(30), "unknown", "unknown")
    assert row.verdict == "one training"
    table = build(replicates("pretrained", "gradcam", 0.3, 0.4, pairs=PAIRS[:1]))
    assert cell(table, "Grad CAM", "ebpg").verdict == "not comparable"


def test_average_over_classes():
    # Class means (0.9 + 0.3 + 0.3) / 3 = 0.5 and 0.1.
    pairs = [("1", "cat"), ("2", "cat"), ("3", "cat"), ("4", "dog")]
    scores = group("pretrained", "rise", pairs=pairs, ebpg=[0.9, 0.3, 0.3, 0.1])
    assert cell(build(scores), "RISE", "ebpg").value == pytest.approx(40)
    row = cell(build(scores, average="classes"), "RISE", "ebpg")
    assert row.value == pytest.approx(30)
    assert row.low < 30 < row.high


def test_row_order_does_not_matter():
    rows = (
        group("pretrained", "gradcam", ebpg=[0.9, 0.1, 0.3, 0.7]),
        group("guided", "gradient", ebpg=[0.2, 0.5, 0.1, 0]),
    )
    pd.testing.assert_frame_equal(build(*rows), build(*(part.sample(frac=1, random_state=1) for part in rows[::-1])))


def test_what_was_not_run_is_marked_in_every_column():
    table = build(group("pretrained", "gradcam"))
    for label in ("Score CAM", "Ours method", "SISE", "Oracle (sanity method)"):
        row = cell(table, label, "miou")
        assert (row.value, row.low, row.high, row.by_replicate, row.verdict) == ("not run",) * 5
        assert (row.n_pairs, row.n_images, row.replicates, row.rank) == (0, 0, 0, "")
    assert cell(table, "SISE", "miou").published == 31.37
    assert cell(table, "SISE", "miou").source == "Sattarzadeh et al., AAAI 2021"
    assert cell(table, "Oracle (sanity method)", "miou").published == "not published"


# Marks ----------------------------------------------------------------------------------------------------------------


def ranks(table):
    return {(row.variant, row.method, row.metric): row.rank for row in table[table["rank"] != ""].itertuples()}


def test_ranks_follow_the_direction_and_ties_share():
    groups = [
        group("pretrained", "gradcam", average_drop=0.25, average_increase=0.25),
        group("pretrained", "gradcam_pp", average_drop=0.25, average_increase=0.5),
        group("pretrained", "rise", average_drop=0.5, average_increase=0.5),
        group("pretrained", "oracle", average_drop=0.0, average_increase=1.0),  # a sanity method: not ranked
    ]
    assert ranks(build(*groups, number=3)) == {
        ("pretrained", "gradcam", "average_drop"): "best",
        ("pretrained", "gradcam_pp", "average_drop"): "best",
        ("pretrained", "rise", "average_drop"): "second",
        ("pretrained", "gradcam_pp", "average_increase"): "best",
        ("pretrained", "rise", "average_increase"): "best",
        ("pretrained", "gradcam", "average_increase"): "second",
    }


def test_marks_compare_rows_of_one_variant():
    """The control is better than "Ours", and Eq. 3 on the pretrained network better than the baselines."""
    groups = [
        group("pretrained", "gradcam", average_drop=0.4),
        group("pretrained", "gradient", average_drop=0.3),
        group("pretrained", "rise", average_drop=0.5),
        group("guided", "gradient", average_drop=0.2),
        group("guided", "gradcam", average_drop=0.25),
        group("control", "gradient", average_drop=0.1),  # the only row of its variant: nothing to compare with
    ]
    found = {key[:2]: rank for key, rank in ranks(build(*groups, number=3)).items() if key[2] == "average_drop"}
    assert found == {
        ("pretrained", "gradient"): "best",
        ("pretrained", "gradcam"): "second",
        ("guided", "gradient"): "best",
        ("guided", "gradcam"): "second",
    }
    alone = [group("pretrained", "gradcam", average_drop=0.4), group("guided", "gradient", average_drop=0.2)]
    assert ranks(build(*alone, number=3)) == {}


def test_marks_compare_on_the_trainings_that_all_rows_have():
    # Grad-CAM is better on average, and worse on the one training that RISE has too.
    groups = [replicates("pretrained", "gradcam", 0.4, 0.9), group("pretrained", "rise", ebpg=0.5)]
    table = build(*groups)
    assert cell(table, "Grad CAM", "ebpg").value > cell(table, "RISE", "ebpg").value
    found = {key[1]: rank for key, rank in ranks(table).items() if key[2] == "ebpg"}
    assert found == {"rise": "best", "gradcam": "second"}
    # Without a common training there is nothing to compare.
    apart = group("pretrained", "gradcam", replicate=1), group("pretrained", "rise", ebpg=0.6)
    assert ranks(build(*apart)) == {}


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_verdicts():
    pairs = [(str(i), "cat") for i in range(4)]
    spread = [0.5, 0.7, 0.6, 0.62]  # around the published 60.08
    other = [0.52, 0.7, 0.58, 0.63]
    values = {"miou": 0.5, "bbox": 0.125, "pairs": pairs}
    groups = [
        replicates("pretrained", "gradcam", spread, other, **values),
        group("pretrained", "mine", "My method", pairs=pairs),
    ]
    table = build(*groups)
    found = {metric: cell(table, "Grad CAM", metric) for metric in ("ebpg", "miou", "bbox")}
    assert {metric: row.verdict for metric, row in found.items()} == {
        "ebpg": "agrees",
        "miou": "above",
        "bbox": "below",
    }
    assert found["miou"].difference == pytest.approx(50 - 32.16)
    assert found["bbox"].difference == pytest.approx(12.5 - 60.25)
    assert cell(table, "My method", "ebpg").verdict == "not published"
    assert cell(table, "Score CAM", "ebpg").verdict == "not run"

    table = build(*groups, deviations=["data set shapes instead of PASCAL VOC 2007"])
    row = cell(table, "Grad CAM", "ebpg")
    assert (row.published, row.difference, row.verdict) == (60.08, "not comparable", "not comparable")


def test_one_training_cannot_agree():
    row = cell(build(group("pretrained", "gradcam", ebpg=[0.5, 0.7, 0.6, 0.62])), "Grad CAM", "ebpg")
    assert row.verdict == "one training"
    assert row.difference == pytest.approx(row.value - 60.08)


def test_a_network_that_was_not_trained_needs_one_replicate():
    groups = [group(variant, "gradcam", ebpg=[0.5, 0.7, 0.6, 0.62]) for variant in ("pretrained", "guided")]
    ours = group("guided", "gradient")
    table = build(*groups, ours, untrained=["pretrained"])
    assert cell(table, "Grad CAM", "ebpg").verdict == "agrees"
    assert cell(table, "Ours method", "ebpg").verdict == "one training"


@pytest.mark.parametrize(("epochs", "verdict"), [(0, "above"), (1, "one training")])
def test_the_run_says_whether_the_network_was_trained(monkeypatch, epochs, verdict):
    values = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text(encoding="utf-8"))
    loaded = config.load(config.merge(values, {"classifier": {"epochs": epochs}}))
    monkeypatch.setattr("ibsgl.reporting.tables.deviations", lambda *_: [])
    pairs, scores = many(4, value=0.9)
    measured = measurements(group("pretrained", "rise", pairs=pairs, ebpg=scores))
    assert cell(table_of_run(measured, 1, loaded, "resnet", PUBLISHED), "RISE", "ebpg").verdict == verdict


def test_training_variance_and_the_published_error_count():
    """A value that differs by 3 points: it agrees if trainings vary as much, and also if the published value is uncertain."""
    pairs, values = many(50, value=0.6308, spread=0.0001)
    same = replicates("pretrained", "gradcam", values, values, pairs=pairs)
    assert cell(build(same), "Grad CAM", "ebpg").verdict == "above"
    other = [value + 0.01 for value in values]
    assert cell(build(replicates("pretrained", "gradcam", values, other, pairs=pairs)), "Grad CAM", "ebpg").verdict == (
        "agrees"
    )


def test_the_published_error_is_ours_scaled_to_its_images():
    # Images that differ by ± 30 points. Trainings do not differ, so our error is that of 50 images.
    pairs, values = many(50, spread=0.3)
    table = build(replicates("pretrained", "gradcam", values, values, pairs=pairs))
    row = cell(table, "Grad CAM", "ebpg")
    estimate = crossed_estimate(np.array([values, values]) * 100)
    sd = np.std(values, ddof=1) * 100
    quantile = (estimate.high - estimate.low) / 2 / estimate.standard_error
    tolerance = quantile * np.hypot(estimate.standard_error, sd / np.sqrt(4952))
    assert abs(row.value - 60.08) > tolerance
    assert row.verdict == "below"
    # Just inside of the tolerance, where our own interval alone would not reach.
    moved = [value + (60.08 - row.value - tolerance * 0.999) / 100 for value in values]
    row = cell(build(replicates("pretrained", "gradcam", moved, moved, pairs=pairs)), "Grad CAM", "ebpg")
    assert row.high < 60.08
    assert row.verdict == "agrees"


# A run ----------------------------------------------------------------------------------------------------------------


def test_build_refuses():
    one = group("pretrained", "gradcam")
    with pytest.raises(ValueError, match="resnet/pretrained/gradcam: miou has values that are NaN"):
        build(one.assign(miou=np.nan))
    with pytest.raises(ValueError, match="average must be"):
        build(one, average="images")
    with pytest.raises(ValueError, match="Tables 1, 2, 3 and 4, not 5"):
        build(one, number=5)
    with pytest.raises(ValueError, match="resnet: a table needs scores"):
        build(one.iloc[:0])


def test_the_table_of_a_run():
    """Deviations come from the run's config and its measurements."""
    values = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text(encoding="utf-8"))
    loaded = config.load(values | {"tables": {"average": "classes"}})
    measured = measurements(group("pretrained", "rise", ebpg=[0.9, 0.1, 0.3, 0.7]))
    table = table_of_run(measured, 1, loaded, "resnet", PUBLISHED)
    assert table.attrs["deviations"] == [
        "data set minimal (3 test images, 2 classes) instead of PASCAL VOC 2007",
        "image size 32 instead of 224",
        "network resnet_small instead of resnet50",
        "network of torchvision instead of torchray",
        "weights random instead of resnet50_voc-9ca920d6.pth.tar",
        "bottleneck steps 2 instead of 10",
        "bottleneck samples 2 instead of 10",
        "data source shapes instead of voc",
        "training list that of shapes instead of trainval",
        "held-out share 0.3 instead of at most 0.1",
        "multi-label false instead of true",
        "mean over classes instead of pairs",
        "classifier epochs 1 instead of 0",
        "RISE cells 3 instead of 7",
        "RISE masks 8 instead of 8000",
    ]
    assert "guidance steps 5" in table.attrs["not_stated"]
    row = cell(table, "RISE", "ebpg")
    assert row.value == pytest.approx(50)
    assert row.verdict == "not comparable"
