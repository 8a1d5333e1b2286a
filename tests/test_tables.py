"""Tables from tiny score frames: the exact strings, ranks, refusals, and the published figures themselves."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ibsgl import tables
from ibsgl.metrics import METRICS
from ibsgl.statistics import bootstrap_interval

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
RECORD = {"data_digest": "d1", "seed": 0, "class_names": ["cat", "dog"], "weights_digest": "w1", "commit": "c1"}
# Three images, the last with two classes.
PAIRS = [("1", "cat"), ("2", "dog"), ("3", "cat"), ("3", "dog")]


def group(network, method, label="", pairs=PAIRS, **values):
    """Score rows of one (network, method); a metric given as a number is the same on every pair, default 0.5."""
    rows = pd.DataFrame(pairs, columns=["image_id", "class_name"])
    constant = dict.fromkeys([*METRICS, "p_full", "p_kept"], 0.5)
    return rows.assign(
        model="resnet", arch="resnet_small", network=network, method=method, label=label, target=0, **constant | values
    )


def build(*groups, number=1, deviations=(), **settings):
    scores = pd.concat(groups, ignore_index=True)
    return tables.build_table(scores, number, PUBLISHED, seed=0, deviations=list(deviations), **settings)


def cell(table, label, metric):
    (row,) = table[(table["row"] == label) & (table["metric"] == metric)].itertuples()
    return row


def write(path, rows, **record):
    table = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({b"ibsgl": json.dumps(RECORD | record).encode()}), path)
    return path


# The published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "network", "method", "metric", "value", "marking"),
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
def test_published_figures(number, network, method, metric, value, marking):
    printed = tables.read_published(PUBLISHED, number).set_index(["network", "method", "metric"])
    row = printed.loc[network, method, metric]
    assert (row["value"], row["marking"]) == (value, marking)
    assert row["in_paper"] == (method != "sise")
    assert ("Sattarzadeh" in row["source"]) == (method != "gradient")


def test_published_margins_are_those_of_the_abstract():
    """Average Drop better by 1.57 and 1.43 points, Average Increase by 2.18 and 0.18."""
    for number, drop, increase in ((3, 1.57, 2.18), (4, 1.43, 0.18)):
        printed = tables.read_published(PUBLISHED, number)
        wide = printed[printed["in_paper"]].pivot(index="method", columns="metric", values="value")
        others = wide.drop(index="gradient")
        assert others["average_drop"].min() - wide.loc["gradient", "average_drop"] == pytest.approx(drop)
        assert wide.loc["gradient", "average_increase"] - others["average_increase"].max() == pytest.approx(increase)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_published_tables_are_whole_and_their_best_is_the_best(number):
    printed = tables.read_published(PUBLISHED, number)
    metrics = tables.table_metrics(number)
    assert len(printed) == 9 * len(metrics)
    for metric in metrics:
        paper = printed[printed["in_paper"] & (printed["metric"] == metric.key)].set_index("method")
        best = paper["value"].idxmax() if metric.higher_is_better else paper["value"].idxmin()
        assert paper.index[paper["marking"] == "best"].tolist() == [best]


# Building -------------------------------------------------------------------------------------------------------------


def test_rows_are_the_papers_and_then_ours():
    mine = group("pretrained", "mine", "My method")
    table = build(mine, mine.assign(network="guided"), group("control", "gradcam", "Grad-CAM"))
    rows = table.drop_duplicates(["network", "method"])
    main = ["Grad CAM", "Grad CAM++", "Extremal Perturbation", "RISE", "Score CAM", "Integrated Gradient", "FullGrad"]
    assert rows[rows["section"] == "main"]["row"].tolist() == [*main, "Ours method"]
    assert rows[rows["section"] == "extra"]["row"].tolist() == [
        "SISE",
        "Eq. 3, unguided network",
        "Eq. 3, control network",
        "Information bottleneck (Eq. 9)",
        *(f"{label}, guided network" for label in main),
        *("Centre (control)", "Random (control)", "Oracle (control)"),
        "My method",
        "My method, guided network",
        "Grad-CAM, control network",
    ]
    assert set(rows[rows["section"] == "main"]["network"][:-1]) == {"pretrained"}
    ours = cell(table, "Ours method", "ebpg")
    assert (ours.network, ours.method) == ("guided", "gradient")


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


def test_not_run_is_said_everywhere():
    table = build(group("pretrained", "gradcam"))
    for label in ("Score CAM", "Ours method", "SISE", "Oracle (control)"):
        row = cell(table, label, "miou")
        assert (row.value, row.low, row.high, row.verdict) == ("not run",) * 4
        assert (row.n_pairs, row.n_images, row.rank) == (0, 0, "")
    assert cell(table, "SISE", "miou").published == 31.37
    assert cell(table, "SISE", "miou").source == "Sattarzadeh et al., AAAI 2021"
    assert cell(table, "Oracle (control)", "miou").published == "not published"


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
    with pytest.raises(ValueError, match="a table is of one model; these scores are of 2: resnet, vgg"):
        build(one, one.assign(model="vgg"))
    with pytest.raises(ValueError, match="resnet/pretrained/gradcam: miou has values that are NaN"):
        build(one.assign(miou=np.nan))
    with pytest.raises(ValueError, match=r"pretrained/rise and .*pretrained/gradcam .* 1 are in one only.*'3', 'dog'"):
        build(one, group("pretrained", "rise", pairs=PAIRS[:3]))
    with pytest.raises(ValueError, match="average must be"):
        build(one, average="images")
    with pytest.raises(ValueError, match="Tables 1, 2, 3 and 4, not 5"):
        build(one, number=5)


# Reading --------------------------------------------------------------------------------------------------------------


def test_read_scores_sorts_and_keeps_the_records(tmp_path):
    rise = write(tmp_path / "a.parquet", group("pretrained", "rise").sample(frac=1, random_state=0))
    gradcam = write(tmp_path / "b.parquet", group("pretrained", "gradcam"))
    ours = write(tmp_path / "c.parquet", group("guided", "gradient"), weights_digest="w2")
    scores = tables.read_scores([gradcam, ours, rise])
    assert scores["method"].tolist() == ["gradient"] * 4 + ["gradcam"] * 4 + ["rise"] * 4
    assert list(zip(scores["image_id"], scores["class_name"], strict=True)) == PAIRS * 3
    assert scores.attrs["metadata"][str(ours)]["weights_digest"] == "w2"
    table = tables.build_table(scores, 1, PUBLISHED, seed=0, deviations=[])
    assert cell(table, "RISE", "ebpg").value == 50


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"seed": 1}, r"disagree on seed: .*a\.parquet has 0; .*b\.parquet has 1"),
        ({"data_digest": "d2"}, r'disagree on data_digest: .*a\.parquet has "d1"; .*b\.parquet has "d2"'),
        ({"class_names": ["cat"]}, r"disagree on class_names: .*a\.parquet has .*b\.parquet has"),
        ({"weights_digest": "w2"}, r"disagree on weights_digest of resnet's pretrained network: .*a\.parquet has"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, record, message):
    first = write(tmp_path / "a.parquet", group("pretrained", "gradcam"))
    second = write(tmp_path / "b.parquet", group("pretrained", "rise"), **record)
    with pytest.raises(ValueError, match=message):
        tables.read_scores([first, second])


def test_incomplete_files_are_refused(tmp_path):
    whole = write(tmp_path / "a.parquet", group("pretrained", "gradcam"))
    with pytest.raises(ValueError, match=r"rise .*b\.parquet.* and .*gradcam .*a\.parquet.* 2 are in one only"):
        tables.read_scores([whole, write(tmp_path / "b.parquet", group("pretrained", "rise", pairs=PAIRS[:2]))])
    with pytest.raises(ValueError, match=r"a\.parquet.*has several rows for \('1', 'cat'\)"):
        tables.read_scores([whole, whole])
    with pytest.raises(ValueError, match=r"c\.parquet lacks the columns miou, p_kept"):
        tables.read_scores(
            [write(tmp_path / "c.parquet", group("pretrained", "rise").drop(columns=["miou", "p_kept"]))]
        )
    group("pretrained", "rise").to_parquet(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"d\.parquet has no 'ibsgl' record"):
        tables.read_scores([tmp_path / "d.parquet"])
    with pytest.raises(ValueError, match="no score files"):
        tables.read_scores([])


# Deviations -----------------------------------------------------------------------------------------------------------


def test_deviations_are_sentences():
    published = tables.read_published_settings(PUBLISHED, 1)
    assert (published["arch"], published["rise"], published["r"]) == (
        "resnet50",
        {"cells": 7, "p": 0.5, "masks": 8000},
        0.35,
    )
    assert tables.read_published_settings(PUBLISHED, 4)["rise"]["masks"] == 4000
    same = {key: value for key, value in published.items() if key != "labels"}
    assert tables.deviations(same | {"epochs": 3, "alpha": 1000.0}, published) == []
    changed = same | {"data": "shapes", "rise": published["rise"] | {"masks": 500}, "score_cam": {}, "mu": 1}
    assert tables.deviations(changed, published) == [
        "data set shapes instead of PASCAL VOC 2007",
        "mu 1 instead of 2",
        "RISE masks 500 instead of 8000",
        "Score-CAM weight not set instead of increase",
    ]
    # A method that was not run says so in its row, not in the caption.
    del changed["integrated_gradients"]
    assert len(tables.deviations(changed, published)) == 4
    assert tables.deviations({"a": {"b_c": 1}}, {"a": {"b_c": 2}}) == ["a b c 1 instead of 2"]


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    """Table 3 with two main rows, one third-party row and awkward characters."""
    return build(
        group("pretrained", "gradcam", average_drop=0.25, average_increase=0.375),
        group("guided", "gradient", average_drop=0.5, average_increase=0.625),
        group("pretrained", "mine", "A|B_c & 5%", average_drop=0.125, average_increase=0.75),
        number=3,
        deviations=["data set shapes instead of PASCAL VOC 2007", "RISE masks 500 instead of 8000"],
    )


def test_markdown(small, tmp_path):
    tables.write_markdown(small, tmp_path / "t.md", notes=["AD: pixels in the top 15 % kept, the rest black."])
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "**Table 3.** Faithfulness on resnet_small (ResNet-50 in the paper), in percent. Not comparable with the "
        "published figures: data set shapes instead of PASCAL VOC 2007; RISE masks 500 instead of 8000.",
        "",
        "| Metric | AD(%) | published | difference | AI(%) | published | difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| Grad CAM | **25.00** [25.00, 25.00] | 35.80 | not comparable | <u>37.50</u> [37.50, 37.50] | 36.58 "
        "| not comparable |",
    ]
    assert lines[11:14] == [
        "| Ours method | <u>50.00</u> [50.00, 50.00] | 33.79 | not comparable | **62.50** [62.50, 62.50] | 39.26 "
        "| not comparable |",
        "| *Rows that the paper does not have* | --- | --- | --- | --- | --- | --- |",
        "| SISE | not run | 30.92 | not run | not run | 40.22 | not run |",
    ]
    assert lines[27] == (
        "| A\\|B_c & 5% | 12.50 [12.50, 12.50] | not published | not published | 75.00 [75.00, 75.00] | not published "
        "| not published |"
    )
    assert lines[28:] == [
        "",
        "- 3 test images, 4 (image, class) pairs; mean over the pairs.",
        "- [low, high] is the 95 % percentile bootstrap interval, images resampled; seeds: 1; the intervals are over "
        "test images, not over training runs.",
        "- Best in bold, second best underlined, by our values above the line; difference is ours minus published.",
        f"- {tables.VERDICT_RULE}",
        "- AD: pixels in the top 15 % kept, the rest black.",
        "- Published figures: Zhou et al., Table 3, after Sattarzadeh et al., AAAI 2021; Zhou et al., Table 3; "
        "Sattarzadeh et al., AAAI 2021.",
    ]


def test_markdown_of_a_comparable_run(tmp_path):
    spread = [0.5, 0.7, 0.6, 0.62]
    tables.write_markdown(build(group("pretrained", "gradcam", ebpg=spread, miou=0.5)), tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("(ResNet-50 in the paper), in percent. Run with the published settings.")
    cells = [part.strip() for part in lines[4].split("|")]
    assert cells[4] == "+0.42 (within interval)"
    assert cells[5:8] == ["**50.00** [50.00, 50.00]", "32.16", "+17.84 (above)"]
    assert cells[10] == "-10.25 (below)"


def test_latex(small, tmp_path):
    tables.write_latex(small, tmp_path / "t.tex", notes=["L_ib ≥ 0 {x}^2 #1 ~ $ \\"])
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert r"\caption{Faithfulness on resnet\_small (ResNet-50 in the paper), in percent. " in text
    assert r"\begin{tabular}{lrrrrrr}" in lines
    assert r"Metric & AD(\%) & published & difference & AI(\%) & published & difference \\" in lines
    assert (
        r"Grad CAM & \textbf{25.00} {[}25.00, 25.00{]} & 35.80 & not comparable & \underline{37.50} {[}37.50, 37.50{]} "
        r"& 36.58 & not comparable \\"
    ) in lines
    assert any(line.startswith(r"A|B\_c \& 5\% & 12.50") for line in lines)
    note = r"L\_ib $\geq$ 0 \{x\}\textasciicircum{}2 \#1 \textasciitilde{} \$ \textbackslash{}\par"
    assert note in lines
    assert [line for line in lines if line.startswith("\\") and "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\midrule",
        r"\bottomrule",
    ]
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    body = lines[lines.index(r"\toprule") : lines.index(r"\bottomrule")]
    rows = [line.replace(r"\&", "") for line in body if line.endswith(r"\\")]
    assert len(rows) == 1 + len(small.drop_duplicates(["network", "method"]))
    assert {line.count("&") for line in rows} == {6}
    assert text.isascii()


def test_csv_is_exact_and_has_no_blank_figure(tmp_path):
    table = build(group("pretrained", "gradcam", ebpg=[0.1, 0.2, 0.4, 0.7]), deviations=["seeds 1 instead of 3"])
    for name in ("a.csv", "b.csv"):
        tables.write_csv(table, tmp_path / name)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == (
        "section,row,network,method,metric,value,low,high,n_pairs,n_images,rank,published,difference,verdict,source"
    )
    row = cell(table, "Grad CAM", "ebpg")
    assert lines[1] == (
        f"main,Grad CAM,pretrained,gradcam,ebpg,{row.value!r},{row.low!r},{row.high!r},4,3,best,60.08,not comparable,"
        'not comparable,"Zhou et al., Table 1, after Sattarzadeh et al., AAAI 2021"'
    )
    back = pd.read_csv(tmp_path / "a.csv")
    assert len(back) == len(table)
    assert not back.drop(columns="rank").isna().any().any()
    assert float(back.loc[0, "value"]) == table.loc[0, "value"]
    assert back.loc[3, "value"] == "not run"


# What guidance does ---------------------------------------------------------------------------------------------------


def effects():
    images = [f"{i:03}" for i in range(6)]
    base = np.array([6.0, 6.5, 6.2, 6.1, 6.4, 6.6])
    shift = {"pretrained": 0.1, "control": 0.0, "guided": -0.05}
    return pd.concat(
        pd.DataFrame({"network": network, "image_id": images, "l_ce": base + by, "l_ss": 0.14 + by / 10})
        for network, by in shift.items()
    )


def predictions():
    correct = {"pretrained": [1, 1, 1, 0], "control": [1, 1, 1, 1], "guided": [1, 1, 0, 1]}
    return pd.concat(
        pd.DataFrame({"network": network, "image_id": list("abcd"), "correct": np.array(right, dtype=bool)})
        for network, right in correct.items()
    )


def test_guidance_table():
    table = tables.guidance_table(effects(), predictions(), seed=0).set_index(["metric", "network"])
    assert table.loc[("l_ce", "guided"), "value"] == pytest.approx(6.25)
    # Every image moves by the same amount, so the paired interval is a point, far narrower than either network's own.
    row = table.loc[("l_ce", "guided - control")]
    assert [row["value"], row["low"], row["high"]] == pytest.approx([-0.05] * 3)
    assert table.loc[("l_ce", "guided"), "high"] - table.loc[("l_ce", "guided"), "low"] > 0.2
    assert table.loc[("l_ss", "guided - control"), "value"] == pytest.approx(-0.005)
    assert table.loc[("accuracy", "control"), ["value", "low", "high"]].tolist() == [100, 100, 100]
    assert table.loc[("accuracy", "guided - control"), "value"] == -25
    assert table.loc[("accuracy", "guided - control"), "high"] == 0
    assert table["n_images"].tolist() == [6] * 8 + [4] * 4


def test_guidance_is_written(tmp_path):
    table = tables.guidance_table(effects(), predictions(), seed=0)
    tables.write_guidance_markdown(table, tmp_path / "g.md", model="resnet", notes=["A note."])
    lines = (tmp_path / "g.md").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == [
        "**What guidance does to resnet.** Losses on held-out training images, accuracy or mAP on test images.",
        "",
        "| metric | network | mean [95 % interval] | images |",
        "|---|---|---:|---:|",
    ]
    assert "| L_CE(L^c, L^ib) | guided - control | -0.0500 [-0.0500, -0.0500] | 6 |" in lines
    assert "| accuracy (%) | control | 100.00 [100.00, 100.00] | 4 |" in lines
    assert lines[-2:] == ["- A note.", f"- Percentile bootstrap, images resampled; {tables.SEEDS_LINE}"]
    tables.write_csv(table, tmp_path / "g.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "g.csv"), table, check_dtype=False, check_exact=True)


def test_guidance_rows_are_clustered_by_image():
    # Two classes an image: as many rows again, no more images.
    twice = pd.concat(effects().assign(class_name=name) for name in ("cat", "dog"))
    once = tables.guidance_table(effects(), predictions(), seed=0)
    table = tables.guidance_table(twice, predictions(), seed=0)
    assert table.loc[0, ["n_rows", "n_images"]].tolist() == [12, 6]
    np.testing.assert_allclose(table[["value", "low", "high"]], once[["value", "low", "high"]], atol=1e-12)


def test_guidance_table_refuses_unpaired_rows():
    with pytest.raises(ValueError, match=r"l_ce: .*lacks rows that another network has"):
        tables.guidance_table(effects().iloc[:-1], predictions(), seed=0)
    with pytest.raises(ValueError, match="accuracy: more than one row"):
        tables.guidance_table(effects(), pd.concat([predictions()] * 2), seed=0)


def test_the_published_data_set_is_recognised_by_content_not_by_name():
    published = tables.read_published_settings(PUBLISHED, 1)
    names = published["test_set"]["class_names"]
    scores = pd.DataFrame({"image_id": [str(i) for i in range(4952)]})
    scores.attrs["metadata"] = {"a": {"class_names": names}}
    assert tables.data_set(scores, "anything", published) == "PASCAL VOC 2007"
    few = scores.head(10)
    few.attrs = scores.attrs
    assert tables.data_set(few, "voc2007", published) == "voc2007 (10 test images, 20 classes)"


def test_guidance_on_a_multilabel_set_is_scored_by_map():
    losses = pd.DataFrame(
        [(n, str(i), 1.0 + (n == "control"), 0.1) for n in ("guided", "control") for i in range(4)],
        columns=["network", "image_id", "l_ce", "l_ss"],
    )
    labels = [(1, 0), (0, 1), (1, 1), (1, 0)]
    # Guided ranks both classes perfectly; the control ranks class 0 hit, miss, hit, hit.
    logits = {"guided": [(3, 0), (0, 3), (2, 2), (1, 0)], "control": [(3, 0), (2, 3), (1, 2), (0, 0)]}
    predictions = pd.DataFrame(
        [(n, str(i), 1.0, *logits[n][i], *labels[i]) for n in logits for i in range(4)],
        columns=["network", "image_id", "correct", "logit_0", "logit_1", "label_0", "label_1"],
    ).astype({"logit_0": float, "logit_1": float})
    table = tables.guidance_table(losses, predictions, multilabel=True, seed=0, resamples=200)
    rows = table[table["metric"] == "map"].set_index("network")
    control = 100 * np.mean([(1 + 2 / 3 + 3 / 4) / 3, 1])
    assert rows.loc["guided", "value"] == pytest.approx(100)
    assert rows.loc["control", "value"] == pytest.approx(control)
    assert rows.loc["guided - control", "value"] == pytest.approx(100 - control)
    assert rows.loc["guided", "low"] == pytest.approx(100)
    assert rows.loc["control", "low"] <= control <= rows.loc["control", "high"]
    assert "accuracy" not in set(table["metric"])


def test_classification_of_every_class():
    rows = {"pretrained": [(3, 0), (2, 3), (1, 2), (0, 0)], "guided": [(3, 0), (0, 3), (2, 2), (1, 0)]}
    labels = [(1, 0), (0, 1), (1, 1), (1, 0)]
    predictions = pd.DataFrame(
        [(n, str(i), *rows[n][i], *labels[i]) for n in rows for i in range(4)],
        columns=["network", "image_id", "logit_0", "logit_1", "label_0", "label_1"],
    ).astype({"logit_0": float, "logit_1": float})
    difficult = np.zeros((4, 2), dtype=bool)
    table = tables.classification_table(predictions, ["cat", "dog"], difficult, multilabel=True)
    assert table[["network", "class", "images"]].to_numpy().tolist() == [
        *(["pretrained", "cat", 3], ["pretrained", "dog", 2], ["guided", "cat", 3], ["guided", "dog", 2])
    ]
    # Hit, miss, hit, hit: precision 1 at recalls 0 … 0.3, then 3/4, the best of what follows.
    assert table["ap"].tolist() == pytest.approx([100 * (1 + 2 / 3 + 3 / 4) / 3, 100, 100, 100])
    assert table["ap11"].tolist() == pytest.approx([100 * (4 + 7 * 3 / 4) / 11, 100, 100, 100])
    difficult[1, 0] = True
    table = tables.classification_table(predictions, ["cat", "dog"], difficult, multilabel=True)
    assert table["ap11"].tolist() == pytest.approx([100] * 4)
    single = predictions.assign(label_0=[1, 0, 0, 1] * 2, label_1=[0, 1, 1, 0] * 2)
    table = tables.classification_table(single, ["cat", "dog"], difficult, multilabel=False)
    assert table["accuracy"].tolist() == [100, 100, 100, 50]
