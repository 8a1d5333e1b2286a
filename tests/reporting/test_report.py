"""The report's page: what it says, that text from the data is only text, and that it loads nothing from elsewhere."""

import hashlib
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from small_report import HOSTILE, LABEL, small_report

from ibsgl.reporting import figures
from ibsgl.reporting.page import build, content


class Parsed(HTMLParser):
    """The page's text, ids, and the addresses that it refers to."""

    def __init__(self, text):
        super().__init__()
        self.words, self.ids, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[key] for key in ("href", "src") if key in found]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return small_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def parsed(report):
    return Parsed(report.read_text(encoding="utf-8"))


def test_the_page_has_everything_in_order(parsed):
    text = " ".join(" ".join(parsed.words).split())
    assert [name for name in parsed.ids if name in ("answer", "tables", "figures", "maps", "again")] == [
        "answer",
        "tables",
        "figures",
        "maps",
        "again",
    ]
    assert len(parsed.ids) == len(set(parsed.ids))
    for words in (
        "Guidance improves localisation: no relevant effect with resnet",
        "no relevant effect",
        "Table 3.",
        "35.80",
        "guided - control",
        "Sparseness (Gini)",
        "0.2500 [0.1250, 0.3750] 2 6 is marked",
        "– 0 too many passes",
        "abc with changes",
        "1.0 hours",
        "data set shapes",
    ):
        assert words in text, words


def test_text_from_the_data_is_text(report, parsed):
    assert LABEL in "".join(parsed.words)
    assert parsed.tags.count("script") == 4
    # Class names are in the browser's data alone, which is a script of its own.
    assert HOSTILE not in report.read_text(encoding="utf-8")
    script = (report.parent / "maps.js").read_text(encoding="utf-8")
    maps = json.loads(script.removeprefix("const MAPS = ").removesuffix(";\n"))
    assert maps["resnet"]["pairs"][1]["class_name"] == HOSTILE
    assert "innerHTML" not in (report.parent / "browser.js").read_text(encoding="utf-8")


def test_every_address_is_in_the_folder(report, parsed):
    for address in parsed.addresses:
        if not address.startswith(("#", "data:")):
            assert (report.parent / address).is_file(), address
    styles = "".join(path.read_text(encoding="utf-8") for path in report.parent.glob("*.css"))
    assert not re.findall(r"url\(['\"]?(?!data:|['\"]?data:)[a-z]+:", styles)


def test_the_browser_has_the_scores_of_each_map(report):
    scores = pd.DataFrame(
        {
            "image_id": "a",
            "target": 3,
            "variant": "guided",
            "scored_on": ["guided", "pretrained", "guided"],
            "replicate": [0, 0, 1],
            "method": "gradient",
            "ebpg": [0.25, 0.5, 0.75],
            "p_full": 0.9,
            "p_kept": 0.12345678,
        }
    )
    folder = report.parent / "other"
    folder.mkdir()
    listing = {
        "side": 8,
        "columns": 8,
        "maps": [["guided", "gradient", "Eq. 3"]],
        "pairs": [{"file": "0.webp", "sha256": hashlib.sha256(b"picture").hexdigest(), "image_id": "a", "target": 3}],
    }
    (folder / "maps.json").write_text(json.dumps(listing), encoding="utf-8")
    (folder / "0.webp").write_bytes(b"picture")
    found = content.browser(folder, scores)
    assert found["pairs"][0].keys() == {"file", "image_id", "target", "scores"}
    assert found["metrics"] == [["ebpg", "EBPG", True]]
    assert found["pairs"][0]["scores"] == [[0.25, 0.9, 0.1235]]
    (folder / "0.webp").write_bytes(b"pictuse")
    with pytest.raises(ValueError, match=r"other/0\.webp has changed since it was written; delete the folder .*/other"):
        content.browser(folder, scores)


def test_facts_of_a_run():
    record = {"started": 86400.0, "seconds": 1800.0, "tags": {"commit": "a", "dirty": False, "device": "x"}}
    facts = content.run_facts([record, record, record | {"started": 0.0}])
    assert (facts["commits"], facts["devices"]) == (["a"], ["x"])
    # Two records of one job count once.
    assert (facts["hours"], facts["first"], facts["last"], facts["records"]) == (1.0, "1970-01-01", "1970-01-02", 3)
    assert content.run_facts([])["hours"] == 0


def test_itables_has_its_script_in_the_expected_form():
    script, styles = build._datatables()
    assert re.search(r"window\.DataTable=[\w$]+;", script)
    assert "export{" not in script
    assert "</script" not in script
    assert styles


def test_training_curves_are_those_of_the_records():
    history = [{"epoch": 1.0, "held_out_accuracy": 0.5}, {"epoch": 2.0, "held_out_accuracy": 0.75}]
    records = [
        {"kind": "training", "result_id": f"resnet/{replicate}/{variant}", "history": history}
        for replicate in (0, 1)
        for variant in ("pretrained", "control", "guided")
    ]
    figure = figures.training_curves(content.histories(records))
    before, after = figure.axes
    assert [len(axes.lines) for axes in (before, after)] == [2, 4]
    assert after.lines[0].get_xydata().tolist() == [[1, 50], [2, 75]]
    assert [text.get_text() for text in after.get_legend().get_texts()] == ["control", "guided"]
    with pytest.raises(ValueError, match="no network of this run was trained"):
        figures.training_curves(content.histories([]))
