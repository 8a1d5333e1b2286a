"""The note of a parent run: the answer and the tables, never longer than it may be."""

import pytest
from summaries import CONFIG, made

from ibsgl import summary

ROWS = [f"| Method {i} | {i}.00 | 60.00 |" for i in range(100)]


def test_the_note_has_the_answer_and_the_tables(tmp_path):
    note = summary.note(summary.results(CONFIG, made(tmp_path)), 8000)
    answer, caption, table, *missing, more = note.split("\n\n")
    assert answer == "- Guidance improves localisation: supported with <b>resnet</b>.\n- This holds for shapes."
    assert caption.startswith("**Table 1.** Localisation on resnet_small. Not comparable.")
    assert len(caption) <= 120
    # A method that was not run has no row.
    assert table.splitlines()[2:] == ["| Ours method | **65.00** | <u>65.07</u> |"]
    assert missing[0] == "Table 2: vgg: not made yet with this config. Make it with `snakemake table2`."
    assert len(missing) == 3
    assert more == "More is in the artifact `summary.html`; each table is also a run of its own."


@pytest.mark.parametrize("limit", [700, 1000, 2000, 8000])
def test_a_long_table_is_cut_between_rows(tmp_path, limit):
    note = summary.note(summary.results(CONFIG, made(tmp_path, ROWS)), limit)
    assert len(note) <= limit
    shown = [line for line in note.splitlines() if line.startswith("| Method ")]
    assert shown == ROWS[: len(shown)]
    assert note.endswith("More is in the artifact `summary.html`; each table is also a run of its own.")
    if limit == 8000:
        assert len(shown) > 50


def test_without_any_result_the_note_says_what_makes_them():
    note = summary.note(summary.results(CONFIG, []), 8000)
    assert note.startswith("The answer: not made yet with this config. Make it with `snakemake claims`.")
    assert "`snakemake table4`" in note
