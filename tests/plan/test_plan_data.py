"""The sizes of data that exists are counted. Those of other data are taken from the config or estimated."""

from pathlib import Path

import pytest
from plan_configs import shipped, tiny, voc

from ibsgl.data.sources import Split
from ibsgl.plan import data_facts

LISTS = {"trainval": 5011, "test": 4952}


def test_pairs_of_the_built_in_data_are_as_generated(elsewhere):
    settings = tiny()
    settings.data.generate(elsewhere / "VOC2007", seed=0)
    index = settings.data.build_index(elsewhere / "VOC2007", seed=0)
    expected = {name: Split(len(set(rows["image_id"])), len(rows)) for name, rows in index.table.groupby("split")}
    absent = data_facts(settings)
    assert absent.splits == expected
    assert absent.classes == len(index.class_names)
    folder = Path(elsewhere / "results" / settings.name)
    folder.mkdir(parents=True)
    index.save(folder / "index.parquet")
    counted = data_facts(settings)
    assert (counted.splits, counted.classes) == (absent.splits, absent.classes)
    assert counted.origin.startswith("counted in results")


def test_pairs_of_a_folder_are_counted(elsewhere):
    def annotation(name, *objects):
        items = "".join(f"<object><name>{kind}</name><difficult>{hard}</difficult></object>" for kind, hard in objects)
        path = elsewhere / "VOC2007" / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation>{items}</annotation>")

    lists = elsewhere / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    (lists / "test.txt").write_text("e\nf\n")
    for name in "abc":
        annotation(name, ("cat", 0), ("cat", 1), ("dog", 1))
    annotation("d", ("cat", 0), ("dog", 0))
    annotation("e", ("bird", 1))
    annotation("f", ("dog", 0), ("dog", 0))
    keep = data_facts(voc(elsewhere / "VOC2007"))
    assert keep.splits == {"train": Split(3, 6), "held_out": Split(1, 2), "test": Split(2, 2)}
    assert keep.classes == 3
    drop = data_facts(voc(elsewhere / "VOC2007", difficult="drop"))
    # An image that shows nothing else is no image of the run.
    assert drop.splits == {"train": Split(3, 4), "held_out": Split(1, 1), "test": Split(1, 1)}


def test_pairs_of_absent_data(elsewhere):
    published = data_facts(voc("gone"), LISTS)
    assert published.splits["test"] == Split(4952, 7632)
    assert published.splits["train"].images + published.splits["held_out"].images == 5011
    assert published.splits["train"].pairs + published.splits["held_out"].pairs == 7913
    assert "lists of VOC 2007" in published.origin
    assert data_facts(voc("gone", difficult="drop"), LISTS).splits["test"].pairs == 7013
    assert data_facts(voc("gone", multilabel=False), LISTS).splits["test"].pairs == 4952
    other = data_facts(voc("gone"), LISTS | {"test": 1000})
    # 15 545 pairs of 9963 images.
    assert other.splits["test"].pairs == 1560
    assert "estimated" in other.origin
    with pytest.raises(ValueError, match=r"no folder 'gone'.*--images trainval=… --images test=…"):
        data_facts(voc("gone"))


def test_imagenets_numbers_are_in_its_config(elsewhere):
    facts = data_facts(shipped("imagenet"))
    assert (facts.classes, facts.splits["test"], facts.splits["train"]) == (1000, Split(2000, 2000), Split(9000, 9000))
