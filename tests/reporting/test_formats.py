"""Tables as files: the exact strings of CSV, Markdown and LaTeX."""

import pandas as pd
import pytest
from table_rows import build, cell, group, replicates

from ibsgl.reporting import formats
from ibsgl.reporting.formats import (
    write_comparisons_markdown,
    write_csv,
    write_table,
)
from ibsgl.reporting.tables import VERDICT_RULE

MARKS_LINES = formats.MARKS_LINES


ONE_EACH = [("1", "cat"), ("2", "dog"), ("3", "cat"), ("4", "dog")]
ONE_TRAINING = "over images alone. It holds for these trainings only: another training can give another value."
CROSSED = (
    "- [low, high] is the 95 % t-interval over images and trainings, which are crossed (two-way analysis of variance)."
)


def rows_of(variant, method, label="", **values):
    """A row on one training. Each image has one class, and values are the same on all of them."""
    return group(variant, method, label, pairs=ONE_EACH, **values)


@pytest.fixture
def small():
    """Table 3 with three main rows, one third-party row and awkward characters."""
    return build(
        rows_of("pretrained", "gradcam", average_drop=0.25, average_increase=0.375),
        rows_of("pretrained", "rise", average_drop=0.5, average_increase=0.25),
        rows_of("guided", "gradient", average_drop=0.5, average_increase=0.625),
        rows_of("pretrained", "mine", "A|B_c & 5%", average_drop=0.125, average_increase=0.75),
        number=3,
        deviations=["data set shapes instead of PASCAL VOC 2007", "RISE masks 500 instead of 8000"],
    )


def test_markdown(small, tmp_path):
    small.attrs["not_stated"] = ["guidance steps 5", "guidance step size 0.1"]
    write_table(small, tmp_path / "t.csv", notes=["AD: pixels in the top 15 % kept, the rest black."])
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "**Table 3.** Faithfulness on resnet_small (ResNet-50 in the paper), in percent. Not comparable with the "
        "published values: data set shapes instead of PASCAL VOC 2007; RISE masks 500 instead of 8000.",
        "",
        "| Metric | trainings | AD(%) | published | difference | AI(%) | published | difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| Grad CAM | 1 | <u>25.00</u> [25.00, 25.00] | 35.80 | not comparable | <u>37.50</u> [9.19, 78.06] | 36.58 "
        "| not comparable |",
    ]
    # The only row of its variant has no mark.
    assert lines[11:14] == [
        "| Ours method | 1 | 50.00 [50.00, 50.00] | 33.79 | not comparable | 62.50 [21.94, 90.81] | 39.26 "
        "| not comparable |",
        "| *Rows that the paper does not have* | --- | --- | --- | --- | --- | --- | --- |",
        "| SISE | 0 | not run | 30.92 | not run | not run | 40.22 | not run |",
    ]
    assert lines[27] == (
        "| A\\|B_c & 5% | 1 | **12.50** [12.50, 12.50] | not published | not published | **75.00** [30.06, 95.44] "
        "| not published | not published |"
    )
    assert lines[28:] == [
        "",
        "- 4 test images, 4 (image, class) pairs; mean over the pairs, and over the trainings. The CSV has the value of each "
        "training.",
        f"- [low, high] is the 95 % t-interval {ONE_TRAINING}",
        *(f"- {line}" for line in MARKS_LINES),
        f"- {formats.SHARES_LINE}",
        f"- {VERDICT_RULE}",
        "- AD: pixels in the top 15 % kept, the rest black.",
        "- Stated nowhere, chosen by this run: guidance steps 5; guidance step size 0.1.",
        f"- In every run: {' '.join(small.attrs['differences'])}",
        "- Published values: Zhou et al., Table 3, after Sattarzadeh et al., AAAI 2021; Zhou et al., Table 3; "
        "Sattarzadeh et al., AAAI 2021.",
    ]


def test_markdown_of_a_comparable_run(tmp_path):
    first, second = [0.5, 0.7, 0.6, 0.62], [0.52, 0.7, 0.58, 0.63]
    groups = [
        replicates("pretrained", "gradcam", first, second, pairs=ONE_EACH, miou=0.5),
        rows_of("pretrained", "rise", ebpg=0.5, miou=0.25),
    ]
    write_table(build(*groups), tmp_path / "t.csv")
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("(ResNet-50 in the paper), in percent. Run with the published settings.")
    cells = [part.strip() for part in lines[4].split("|")]
    assert cells[2] == "2"
    assert cells[5] == "+0.55 (agrees)"
    assert cells[6:9] == ["**50.00** [50.00, 50.00]", "32.16", "+17.84 (above)"]
    assert cells[11] == "-10.25 (below)"
    cells = [part.strip() for part in lines[7].split("|")]
    assert cells[1:4] == ["RISE", "1", "<u>50.00</u> [50.00, 50.00]"]
    assert cells[5].endswith("(one training)")
    assert f"{CROSSED} On one training it is {ONE_TRAINING}" in lines
    assert not any(line.startswith("- Stated nowhere") for line in lines)


def test_an_unknown_interval_is_said(tmp_path):
    write_table(build(group("pretrained", "gradcam", pairs=ONE_EACH[:1])), tmp_path / "t.csv")
    assert "| 50.00 [unknown] |" in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_latex(small, tmp_path):
    write_table(small, tmp_path / "t.csv", notes=["L_ib ≥ 0 {x}^2 #1 ~ $ \\"])
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert r"\caption{Faithfulness on resnet\_small (ResNet-50 in the paper), in percent. " in text
    assert r"\begin{tabular}{lrrrrrrr}" in lines
    assert r"Metric & trainings & AD(\%) & published & difference & AI(\%) & published & difference \\" in lines
    assert (
        r"Grad CAM & 1 & \underline{25.00} {[}25.00, 25.00{]} & 35.80 & not comparable "
        r"& \underline{37.50} {[}9.19, 78.06{]} & 36.58 & not comparable \\"
    ) in lines
    assert any(line.startswith(r"A|B\_c \& 5\% & 1 & \textbf{12.50}") for line in lines)
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
    assert len(rows) == 1 + len(small.drop_duplicates(["variant", "method"]))
    assert {line.count("&") for line in rows} == {7}
    assert text.isascii()


def test_csv_is_exact_and_has_no_blank_value(tmp_path):
    values = [0.1, 0.2, 0.4, 0.7]
    groups = [
        replicates("pretrained", "gradcam", values, [0.5, *values[1:]], pairs=ONE_EACH),
        rows_of("pretrained", "rise"),
    ]
    table = build(*groups, deviations=["mu 1 instead of 2"])
    for name in ("a.csv", "b.csv"):
        write_csv(table, tmp_path / name)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == (
        "section,row,variant,method,metric,value,low,high,replicates,by_replicate,n_pairs,n_images,rank,published,difference,"
        "verdict,source"
    )
    row = cell(table, "Grad CAM", "ebpg")
    assert lines[1] == (
        f"main,Grad CAM,pretrained,gradcam,ebpg,{row.value!r},{row.low!r},{row.high!r},2,{row.by_replicate},4,4,second,60.08,"
        'not comparable,not comparable,"Zhou et al., Table 1, after Sattarzadeh et al., AAAI 2021"'
    )
    back = pd.read_csv(tmp_path / "a.csv")
    assert len(back) == len(table)
    assert not back.drop(columns="rank").isna().any().any()
    assert float(back.loc[0, "value"]) == table.loc[0, "value"]
    assert back.loc[3, "value"] == "not run"


def test_a_table_is_written_in_three_formats(small, tmp_path):
    write_table(small, tmp_path / "new" / "t.csv", notes=["A note."])
    write_csv(small, tmp_path / "t.csv")
    assert sorted(path.name for path in (tmp_path / "new").glob("[!.]*")) == ["t.csv", "t.md", "t.tex"]
    assert (tmp_path / "new" / "t.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


def test_an_error_leaves_all_three_files_as_they_were(small, tmp_path, monkeypatch):
    for suffix in ("csv", "md", "tex"):
        (tmp_path / f"t.{suffix}").write_text("old")

    def fail(*_):
        raise KeyError("arch")

    monkeypatch.setattr(formats, "_latex", fail)
    with pytest.raises(KeyError, match="arch"):
        write_table(small, tmp_path / "t.csv")
    assert {path.name: path.read_text() for path in tmp_path.glob("[!.]*")} == {
        "t.csv": "old",
        "t.md": "old",
        "t.tex": "old",
    }


COLUMNS = ["metric", "comparison", "value", "low", "high", "unit", "replicates", "images", "by_replicate"]


def test_comparisons_are_written(tmp_path):
    table = pd.DataFrame(
        [
            ("l_ce", "guided − control", -0.05, -0.06, -0.04, "nats", 2, 6, "-0.04; -0.06"),
            ("l_ss", "guided − control", -0.01, float("nan"), float("nan"), "fraction", 1, 1, "-0.01"),
            ("accuracy", "guided − control", 0.25, -0.5, 1.0, "points", 2, 1096, "0.0; 0.5"),
            ("average_drop", "guided − pretrained", 1 / 3, 0.25, 0.5, "points", 2, 4, "0.25; 0.4166"),
        ],
        columns=COLUMNS,
    )
    write_comparisons_markdown(table, tmp_path / "g.md", model="resnet", notes=["A note."])
    assert (tmp_path / "g.md").read_text(encoding="utf-8").splitlines() == [
        "**What guidance does to resnet.** Paired by image and training.",
        "",
        "| metric | comparison | mean [95 % interval] | unit | trainings | images | each training |",
        "|---|---|---:|---|---:|---:|---|",
        "| L_CE(L^c, L^ib) | guided − control | -0.0500 [-0.0600, -0.0400] | nats | 2 | 6 | -0.0400; -0.0600 |",
        "| L_SS(L^c, L^p) | guided − control | -0.0100 [unknown] | fraction | 1 | 1 | -0.0100 |",
        "| accuracy | guided − control | 0.25 [-0.50, 1.00] | points | 2 | 1096 | 0.00; 0.50 |",
        "| Average Drop | guided − pretrained | 0.33 [0.25, 0.50] | points | 2 | 4 | 0.25; 0.42 |",
        "",
        "- L_CE(L^c, L^ib) and L_SS(L^c, L^p): held-out training images. accuracy: test images, and further images where the "
        "data are generated. All others: test images.",
        f"{CROSSED} On one training it is {ONE_TRAINING}",
        f"- {formats.SHARES_LINE}",
        "- A note.",
    ]
    write_csv(table, tmp_path / "g.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "g.csv"), table, check_dtype=False, check_exact=True)


def test_the_images_of_comparisons_of_maps_alone(tmp_path):
    table = pd.DataFrame([("ebpg", "guided − control", 1.0, 0.5, 1.5, "points", 3, 4, "1; 1; 1")], columns=COLUMNS)
    write_comparisons_markdown(table, tmp_path / "g.md", model="resnet")
    assert (tmp_path / "g.md").read_text(encoding="utf-8").splitlines()[-2:] == ["- All metrics: test images.", CROSSED]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+cmd|'x'!A0", "-2+3+cmd|'x'!A0", "@SUM(A1)", "\t=1"])
def test_a_name_is_no_formula(text, tmp_path):
    write_csv(pd.DataFrame({"class_name": [text], "value": [-1.5]}), tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv")
    assert read["class_name"][0] == f"'{text}"
    assert read["value"][0] == -1.5


@pytest.mark.parametrize("text", ["-0.25", "-1.5e-07; 0.5; -2", "+3", "-inf", "cat", "a=b", ""])
def test_numbers_and_words_stay_in_csv(text, tmp_path):
    write_csv(pd.DataFrame({"x": [text], "y": ["z"]}), tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)["x"][0] == text


def test_a_label_is_no_tag_and_no_line(tmp_path):
    table = build(rows_of("pretrained", "mine", "<script>alert(1)</script>\n# x"), number=1)
    write_table(table, tmp_path / "t.csv")
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script>alert(1)&lt;/script> # x" in text
    assert "\n\\# x" not in (tmp_path / "t.tex").read_text(encoding="utf-8")
