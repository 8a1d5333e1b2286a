"""Tables as files: the exact strings of CSV, Markdown and LaTeX."""

import pandas as pd
import pytest
from score_rows import build, cell, group

from ibsgl.reporting import formats
from ibsgl.reporting.formats import (
    SEEDS_LINE,
    write_csv,
    write_guidance_markdown,
    write_latex,
    write_markdown,
    write_table,
)
from ibsgl.reporting.tables import VERDICT_RULE


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
    write_markdown(small, tmp_path / "t.md", notes=["AD: pixels in the top 15 % kept, the rest black."])
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "**Table 3.** Faithfulness on resnet_small (ResNet-50 in the paper), in percent. Not comparable with the "
        "published values: data set shapes instead of PASCAL VOC 2007; RISE masks 500 instead of 8000.",
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
        f"- {VERDICT_RULE}",
        "- AD: pixels in the top 15 % kept, the rest black.",
        "- Published values: Zhou et al., Table 3, after Sattarzadeh et al., AAAI 2021; Zhou et al., Table 3; "
        "Sattarzadeh et al., AAAI 2021.",
    ]


def test_markdown_of_a_comparable_run(tmp_path):
    spread = [0.5, 0.7, 0.6, 0.62]
    write_markdown(build(group("pretrained", "gradcam", ebpg=spread, miou=0.5)), tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("(ResNet-50 in the paper), in percent. Run with the published settings.")
    cells = [part.strip() for part in lines[4].split("|")]
    assert cells[4] == "+0.42 (within interval)"
    assert cells[5:8] == ["**50.00** [50.00, 50.00]", "32.16", "+17.84 (above)"]
    assert cells[10] == "-10.25 (below)"


def test_latex(small, tmp_path):
    write_latex(small, tmp_path / "t.tex", notes=["L_ib ≥ 0 {x}^2 #1 ~ $ \\"])
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
    assert len(rows) == 1 + len(small.drop_duplicates(["variant", "method"]))
    assert {line.count("&") for line in rows} == {6}
    assert text.isascii()


def test_csv_is_exact_and_has_no_blank_value(tmp_path):
    table = build(group("pretrained", "gradcam", ebpg=[0.1, 0.2, 0.4, 0.7]), deviations=["seeds 1 instead of 3"])
    for name in ("a.csv", "b.csv"):
        write_csv(table, tmp_path / name)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == (
        "section,row,variant,method,metric,value,low,high,n_pairs,n_images,rank,published,difference,verdict,source"
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


def test_a_table_is_written_in_three_formats(small, tmp_path):
    write_table(small, tmp_path / "new" / "t.csv", notes=["A note."])
    write_csv(small, tmp_path / "t.csv")
    write_markdown(small, tmp_path / "t.md", notes=["A note."])
    write_latex(small, tmp_path / "t.tex", notes=["A note."])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["t.csv", "t.md", "t.tex"]
    for path in (tmp_path / "new").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_an_error_leaves_all_three_files_as_they_were(small, tmp_path, monkeypatch):
    for suffix in ("csv", "md", "tex"):
        (tmp_path / f"t.{suffix}").write_text("old")

    def fail(*_):
        raise KeyError("arch")

    monkeypatch.setattr(formats, "_latex", fail)
    with pytest.raises(KeyError, match="arch"):
        write_table(small, tmp_path / "t.csv")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "t.csv": "old",
        "t.md": "old",
        "t.tex": "old",
    }


def test_guidance_is_written(tmp_path):
    table = pd.DataFrame(
        [
            ("l_ce", "guided", 6.25, 6.1, 6.4, 12, 6),
            ("l_ce", "guided - control", -0.05, -0.05, -0.05, 12, 6),
            ("accuracy", "control", 100.0, 100.0, 100.0, 4, 4),
            ("map", "control", 1 / 3, 0.25, 0.5, 4, 4),
        ],
        columns=["metric", "variant", "value", "low", "high", "n_rows", "n_images"],
    )
    write_guidance_markdown(table, tmp_path / "g.md", model="resnet", notes=["A note."])
    assert (tmp_path / "g.md").read_text(encoding="utf-8").splitlines() == [
        "**What guidance does to resnet.** Losses on held-out training images, accuracy or mAP on test images.",
        "",
        "| metric | variant | mean [95 % interval] | images |",
        "|---|---|---:|---:|",
        "| L_CE(L^c, L^ib) | guided | 6.2500 [6.1000, 6.4000] | 6 |",
        "| L_CE(L^c, L^ib) | guided - control | -0.0500 [-0.0500, -0.0500] | 6 |",
        "| accuracy (%) | control | 100.00 [100.00, 100.00] | 4 |",
        "| mAP (%) | control | 0.33 [0.25, 0.50] | 4 |",
        "",
        "- A note.",
        f"- Percentile bootstrap, images resampled; {SEEDS_LINE}",
    ]
    write_csv(table, tmp_path / "g.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "g.csv"), table, check_dtype=False, check_exact=True)
