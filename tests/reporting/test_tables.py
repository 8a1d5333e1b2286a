"""Tables from tiny score frames: rows, values, ranks, verdicts and refusals."""

import numpy as np
import pandas as pd
import pytest
import yaml
from score_rows import PAIRS, PUBLISHED, ROOT, build, cell, group, write

from ibsgl import config
from ibsgl.reporting.scores import read_scores
from ibsgl.reporting.statistics import bootstrap_interval
from ibsgl.reporting.tables import table_of_run


def test_rows_are_the_papers_and_then_ours():
    mine = group("pretrained", "mine", "My method")
    table = build(mine, mine.assign(variant="guided"), group("control", "gradcam", "Grad-CAM"))
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
    ]
    assert set(rows[rows["section"] == "main"]["variant"][:-1]) == {"pretrained"}
    ours = cell(table, "Ours method", "ebpg")
    assert (ours.variant, ours.method) == ("guided", "gradient")


def test_value_and_interval():
    values = np.array([0.9, 0.1, 0.3, 0.7])
    table = build(group("pretrained", "gradcam", ebpg=values))
    row = cell(table, "Grad CAM", "ebpg")
    low, high = bootstrap_interval(values, ["1", "2", "3", "3"], seed=0)
    assert row.value == pytest.approx(50)
    assert (row.low, row.high) == (100 * low, 100 * high)
    assert (row.n_pairs, row.n_images) == (4, 3)


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
        assert (row.value, row.low, row.high, row.verdict) == ("not run",) * 4
        assert (row.n_pairs, row.n_images, row.rank) == (0, 0, "")
    assert cell(table, "SISE", "miou").published == 31.37
    assert cell(table, "SISE", "miou").source == "Sattarzadeh et al., AAAI 2021"
    assert cell(table, "Oracle (sanity method)", "miou").published == "not published"


def test_ranks_follow_the_direction_and_ties_share():
    groups = [
        group("pretrained", "gradcam", average_drop=0.25, average_increase=0.25),
        group("pretrained", "gradcam_pp", average_drop=0.25, average_increase=0.5),
        group("pretrained", "rise", average_drop=0.5, average_increase=0.5),
        group("guided", "gradient", average_drop=0.75, average_increase=0.125),
        group("pretrained", "oracle", average_drop=0.0, average_increase=1.0),  # below the line: not ranked
    ]
    table = build(*groups, number=3)
    rank = {(row.method, row.metric): row.rank for row in table[table["rank"] != ""].itertuples()}
    assert rank == {
        ("gradcam", "average_drop"): "best",
        ("gradcam_pp", "average_drop"): "best",
        ("rise", "average_drop"): "second",
        ("gradcam_pp", "average_increase"): "best",
        ("rise", "average_increase"): "best",
        ("gradcam", "average_increase"): "second",
    }


def test_verdicts():
    spread = [0.5, 0.7, 0.6, 0.62]  # around the published 60.08
    groups = [
        group("pretrained", "gradcam", ebpg=spread, miou=0.5, bbox=0.125),
        group("pretrained", "mine", "My method"),
    ]
    table = build(*groups)
    found = {metric: cell(table, "Grad CAM", metric) for metric in ("ebpg", "miou", "bbox")}
    assert {metric: row.verdict for metric, row in found.items()} == {
        "ebpg": "within interval",
        "miou": "above",
        "bbox": "below",
    }
    assert found["miou"].difference == pytest.approx(50 - 32.16)
    assert found["bbox"].difference == pytest.approx(12.5 - 60.25)
    assert cell(table, "My method", "ebpg").verdict == "not published"

    table = build(*groups, deviations=["data set shapes instead of PASCAL VOC 2007"])
    row = cell(table, "Grad CAM", "ebpg")
    assert (row.published, row.difference, row.verdict) == (60.08, "not comparable", "not comparable")
    assert cell(table, "Score CAM", "ebpg").verdict == "not run"


def test_build_refuses():
    one = group("pretrained", "gradcam")
    with pytest.raises(ValueError, match="a table needs the scores of one model, not of 2: resnet, vgg"):
        build(one, one.assign(model="vgg"))
    with pytest.raises(ValueError, match="resnet/pretrained/gradcam: miou has values that are NaN"):
        build(one.assign(miou=np.nan))
    with pytest.raises(ValueError, match=r"pretrained/rise and .*pretrained/gradcam .* 1 are in one only.*'3', 'dog'"):
        build(one, group("pretrained", "rise", pairs=PAIRS[:3]))
    with pytest.raises(ValueError, match="average must be"):
        build(one, average="images")
    with pytest.raises(ValueError, match="Tables 1, 2, 3 and 4, not 5"):
        build(one, number=5)


def test_the_table_of_a_run(tmp_path):
    """Deviations come from the run's config and its scores, the rest from its ``tables`` and ``seed``."""
    values = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text(encoding="utf-8"))
    loaded = config.load(values | {"seed": 3, "tables": {"average": "classes", "resamples": 150}})
    ebpg = [0.9, 0.1, 0.3, 0.7]
    scores = read_scores([write(tmp_path / "a.parquet", group("pretrained", "rise", ebpg=ebpg))])
    table = table_of_run(scores, 1, loaded, "resnet", PUBLISHED)
    assert table.attrs["deviations"] == [
        "data set minimal (3 test images, 2 classes) instead of PASCAL VOC 2007",
        "image size 32 instead of 224",
        "mean over classes instead of pairs",
        "RISE cells 3 instead of 7",
        "RISE masks 8 instead of 8000",
        "network resnet_small instead of resnet50",
    ]
    row = cell(table, "RISE", "ebpg")
    images, classes = zip(*PAIRS, strict=True)
    low, high = bootstrap_interval(ebpg, images, seed=3, resamples=150, groups=classes)
    assert row.value == pytest.approx(50)
    assert (row.low, row.high) == (100 * low, 100 * high)
    assert row.verdict == "not comparable"
