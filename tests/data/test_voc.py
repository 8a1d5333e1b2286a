import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ibsgl.data.index import Index
from ibsgl.data.sources import voc
from ibsgl.data.sources.voc import build_index

FRUITS = Path(__file__).parents[3] / "shared" / "data" / "fruits-voc" / "VOCdevkit" / "VOC2007"


def build(root, **changes):
    settings = {"splits": {"train": "trainval", "test": "test"}, "held_out": 0.0, "seed": 0} | changes
    return build_index(root, **settings)


def test_boxes_classes_and_order_by_hand(small_voc):
    Image.new("L", (8, 8)).save(small_voc / "SegmentationClass" / "d.png")
    index = build(small_voc)
    assert index.class_names == ("cat", "dog")
    table = index.table.drop(columns=["file", "difficult", "sha256"])
    empty = hashlib.sha256((small_voc / "SegmentationClass" / "d.png").read_bytes()).hexdigest()
    rows = [tuple(row) for row in table.replace({"mask_sha256": {empty: True, "": False}}).itertuples(index=False)]
    assert index.table.sha256[0] == hashlib.sha256((small_voc / "JPEGImages" / "b.png").read_bytes()).hexdigest()
    assert index.table.file.tolist() == [f"JPEGImages/{name}.png" for name in "baacdd"]
    assert index.table.difficult.tolist() == [[], [], [], [0], [1], [1]]
    assert rows == [
        ("train", "b", "dog", 1, [[0, 0, 20, 10]], 20, 10, False),
        ("train", "a", "cat", 0, [[0, 0, 1, 1]], 8, 6, False),
        ("train", "a", "dog", 1, [[1, 2, 4, 5], [4, 0, 8, 6]], 8, 6, False),
        ("train", "c", "cat", 0, [[2, 2, 6, 6]], 8, 8, False),
        ("test", "d", "cat", 0, [[2, 2, 6, 6]], 8, 8, True),
        ("test", "d", "dog", 1, [[0, 0, 2, 2]], 8, 8, True),
    ]


def test_given_class_names_set_the_targets(small_voc):
    index = build(small_voc, class_names=["dog", "bird", "cat"])
    assert index.class_names == ("dog", "bird", "cat")
    assert dict(zip(index.table.class_name, index.table.target, strict=True)) == {"dog": 0, "cat": 2}


def test_difficult_dropped_takes_class_and_image_with_it(small_voc, caplog):
    table = build(small_voc, difficult="drop").table
    assert list(zip(table.image_id, table.class_name, strict=True)) == [
        *(("b", "dog"), ("a", "cat"), ("a", "dog")),
        ("d", "cat"),
    ]
    assert "1 images of trainval show no object" in caplog.text


def test_difficult_and_plain_object_of_one_class(make_voc):
    root = make_voc({"test": {"a": ((9, 9), [("cat", (1, 1, 2, 2), 1), ("cat", (4, 4, 9, 9), 0)])}})
    assert build(root, splits={"test": "test"}).table.boxes[0] == [[0, 0, 2, 2], [3, 3, 9, 9]]
    assert build(root, splits={"test": "test"}, difficult="drop").table.boxes[0] == [[3, 3, 9, 9]]


def test_only_objects_of_the_splits_in_use_name_classes(small_voc, write_image):
    write_image(small_voc, "unused", (4, 4), [("zebra", (1, 1, 4, 4))])
    assert build(small_voc).class_names == ("cat", "dog")


def test_parts_of_an_object_are_not_objects(small_voc):
    path = small_voc / "Annotations" / "c.xml"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    path.write_text(path.read_text().replace("</object>", part))
    assert build(small_voc).class_names == ("cat", "dog")


def test_held_out_is_an_exact_fraction_that_ignores_the_order(make_voc, write_list):
    ids = [f"{i:03d}" for i in range(40)]
    image = ((4, 4), [("cat", (1, 1, 4, 4)), ("dog", (1, 1, 2, 2))])
    root = make_voc({"trainval": dict.fromkeys(ids, image), "test": {"t": image}})

    def split(name, **changes):
        table = build(root, **changes).table
        return table[table["split"] == name].image_id.drop_duplicates().tolist()

    aside = split("held_out", held_out=0.15)
    assert len(aside) == 6
    assert sorted(aside + split("train", held_out=0.15)) == ids
    assert split("test", held_out=0.15) == ["t"]
    assert split("held_out", held_out=0.15) == aside
    assert set(split("held_out", held_out=0.15, seed=1)) != set(aside)
    assert set(aside) < set(split("held_out", held_out=0.5))
    write_list(root, "trainval", ids[::-1])
    assert split("held_out", held_out=0.15) == aside[::-1]
    assert split("held_out", held_out=0.0) == []


@pytest.mark.parametrize("path", ["Annotations/a.xml", "JPEGImages/d.png", "SegmentationClass/a.png"])
def test_digest_changes_with_any_byte(small_voc, path):
    Image.new("L", (8, 6)).save(small_voc / "SegmentationClass" / "a.png")
    before = build(small_voc)
    assert build(small_voc, held_out=0.4, seed=3).digest == before.digest
    (small_voc / path).write_bytes((small_voc / path).read_bytes() + b"\n")
    after = build(small_voc)
    digests = ["sha256", "mask_sha256"]
    assert after.table.drop(columns=digests).equals(before.table.drop(columns=digests))
    assert after.table[digests].equals(before.table[digests]) == path.endswith(".xml")
    assert after.digest != before.digest


def test_digest_changes_with_membership_not_with_order(small_voc, write_list):
    before = build(small_voc).digest
    write_list(small_voc, "trainval", ["a", "b", "c"])
    assert build(small_voc).digest == before
    write_list(small_voc, "trainval", ["a", "c"])
    fewer = build(small_voc).digest
    write_list(small_voc, "test", ["d", "b"])
    assert len({before, fewer, build(small_voc).digest}) == 3


def test_save_and_load(small_voc, tmp_path):
    index = build(small_voc, held_out=0.34)
    index.save(tmp_path / "index.parquet")
    loaded = Index.load(tmp_path / "index.parquet")
    assert (loaded.class_names, loaded.digest) == (index.class_names, index.digest)
    pd.testing.assert_frame_equal(loaded.table, index.table)
    assert loaded.table.boxes[2] == index.table.boxes[2]


def test_load_refuses_another_parquet_file(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet is not a data index"):
        Index.load(tmp_path / "x.parquet")


@pytest.mark.parametrize("folder", ["", "Annotations", "JPEGImages", "ImageSets/Main"])
def test_missing_folder(small_voc, folder):
    (small_voc / folder).rename(small_voc.parent / "elsewhere")
    with pytest.raises(ValueError, match=f"{folder}: no such folder"):
        build(small_voc)


def test_missing_list_names_those_that_are_there(small_voc):
    with pytest.raises(ValueError, match=r"val\.txt: no such split list; lists in that folder: test, trainval"):
        build(small_voc, splits={"train": "val"})


def test_lists_that_cannot_be_used(small_voc, write_list):
    write_list(small_voc, "none", [])
    with pytest.raises(ValueError, match=r"none\.txt: the split list is empty"):
        build(small_voc, splits={"train": "none"})
    write_list(small_voc, "twice", ["a", "b", "a"])
    with pytest.raises(ValueError, match=r"twice\.txt: 'a' is listed more than once \(1 such images\)"):
        build(small_voc, splits={"train": "twice"})
    write_list(small_voc, "leak", ["d", "b", "a"])
    with pytest.raises(ValueError, match=r"'a' is listed for training and for test \(2 such images\)"):
        build(small_voc, splits={"train": "trainval", "test": "leak"})


def test_lists_may_have_blank_lines_a_byte_order_mark_and_spaces_in_names(small_voc, write_image):
    write_image(small_voc, "my cat 1", (4, 4), [("cat", (1, 1, 4, 4))])
    (small_voc / "ImageSets/Main/odd.txt").write_bytes(b"\xef\xbb\xbfmy cat 1\r\n\r\n  a  \r\n")
    assert build(small_voc, splits={"train": "odd"}).table.image_id.tolist() == ["my cat 1", "a", "a"]


def test_missing_files(small_voc, write_list):
    write_list(small_voc, "test", ["d", "e"])
    with pytest.raises(ValueError, match=r"Annotations/e\.xml: no such file, but a split list names 'e'"):
        build(small_voc)
    (small_voc / "Annotations/a.xml").rename(small_voc / "Annotations/e.xml")
    with pytest.raises(
        ValueError, match=r"(?s)2 error.*Annotations/a\.xml: no such file.*JPEGImages/e\.jpg: no such file"
    ):
        build(small_voc)


def box_of(**changes):
    return "".join(
        f"<{k}>{v}</{k}>" for k, v in ({"xmin": 3, "ymin": 3, "xmax": 6, "ymax": 6} | changes).items() if v != ""
    )


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (box_of(xmax=""), "its bndbox has no xmax"),
        ("<xmin/>" + box_of(xmin=""), "its bndbox has no xmin"),
        (box_of(ymin="left"), "ymin is 'left', not a number of pixels"),
        (box_of(ymin="nan"), "ymin is 'nan', not a number of pixels"),
        (box_of(xmax="inf"), "xmax is 'inf', not a number of pixels"),
        (box_of(xmin=7), "xmin 7 is greater than xmax 6"),
        (box_of(ymin=7), "ymin 7 is greater than ymax 6"),
        (box_of(xmax=9), r"its box \(xmin 3, ymin 3, xmax 9, ymax 6\) reaches outside the image of 8×8 pixels"),
        (box_of(ymax=9), ".* reaches outside the image of 8×8"),
        (box_of(xmin=-1), ".* reaches outside the image of 8×8"),
        (box_of(xmin=0, xmax=0), ".* reaches outside the image of 8×8"),
    ],
)
def test_bad_boxes_name_file_and_object(small_voc, bounds, message):
    path = small_voc / "Annotations" / "c.xml"
    text = path.read_text()
    start, end = text.index("<bndbox>") + len("<bndbox>"), text.index("</bndbox>")
    path.write_text(text[:start] + bounds + text[end:])
    with pytest.raises(ValueError, match=rf"Annotations/c\.xml: object 1 \(cat\): {message}"):
        build(small_voc)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", r"Annotations/c\.xml: malformed XML \(no element found"),
        ("<annotation>", '<?xml version="1.0" encoding="nowhere"?><annotation>', r"Annotations/c\.xml: malformed XML"),
        ("<name>cat</name>", "", r"Annotations/c\.xml: object 1 \(without a name\): it has no name"),
        ("bndbox", "polygon", r"Annotations/c\.xml: object 1 \(cat\): it has no bndbox"),
    ],
)
def test_bad_annotations(small_voc, old, new, message):
    path = small_voc / "Annotations" / "c.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        build(small_voc)


def test_file_that_is_no_image(small_voc):
    (small_voc / "JPEGImages/c.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"JPEGImages/c\.png: the image cannot be read"):
        build(small_voc)


def test_the_first_five_errors_and_the_number_of_all(make_voc):
    box = [("cat", (1, 1, 5, 5))]
    root = make_voc({"test": {f"im{i}": ((4, 4), box) for i in range(7)}})
    with pytest.raises(ValueError, match=r"7 error\(s\) in the data set") as caught:
        build(root, splits={"test": "test"})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:6]] == [f"Annotations/im{i}.xml" for i in range(5)]
    assert lines[6:] == ["  … and 2 more"]


def test_unknown_class_names_file_and_class(small_voc):
    expected = r"Annotations/a\.xml: class 'dog' is not among the class names \(cat, cow\); add it there"
    with pytest.raises(ValueError, match=expected):
        build(small_voc, class_names=["cat", "cow"])


def test_decimals_are_rounded_and_zero_is_clamped_with_one_warning(make_voc, caplog):
    root = make_voc(
        {
            "test": {
                "a": ((8, 8), [("cat", (0, 2.6, 7.4, 8)), ("cat", (0, 0, 3, 3))]),
                "b": ((8, 8), [("cat", (1, 0, 8, 8))]),
            }
        }
    )
    table = build(root, splits={"test": "test"}).table
    assert table.boxes.tolist() == [[[0, 2, 7, 8], [0, 0, 3, 3]], [[0, 0, 8, 8]]]
    assert len(caplog.records) == 1
    assert "3 in all, first Annotations/a.xml: object 1 (cat)" in caplog.text


def test_the_size_is_the_files(small_voc, caplog, write_image):
    write_image(small_voc, "c", (8, 8), [("cat", (3, 3, 6, 6))], stated=(0, 0))
    build(small_voc)
    assert not caplog.records
    write_image(small_voc, "c", (8, 8), [("cat", (3, 3, 6, 6))], stated=(7, 8))
    table = build(small_voc).table
    assert table[table.image_id == "c"][["width", "height"]].to_numpy().tolist() == [[8, 8]]
    assert (
        "the annotation's size differs from the file's size, which is used (1 in all, first Annotations/c.xml)"
        in caplog.text
    )


def test_sides_exchanged_are_an_error(small_voc, write_image):
    write_image(small_voc, "c", (8, 6), [("cat", (3, 3, 6, 6))], stated=(6, 8))
    with pytest.raises(
        ValueError, match=r"Annotations/c\.xml: the size is 6×8 but the file's is 8×6; if the image has an EXIF tag"
    ):
        build(small_voc)


def test_images_without_objects_are_counted(small_voc, caplog, write_image, write_list):
    write_image(small_voc, "e", (8, 8), [])
    write_list(small_voc, "test", ["e", "d"])
    assert "e" not in build(small_voc).table.image_id.tolist()
    assert "1 images of test show no object and are left out" in caplog.text
    write_list(small_voc, "test", ["e"])
    with pytest.raises(ValueError, match="no image of the list 'test' has an object"):
        build(small_voc)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"val": "test"}}, "splits: the keys must be train, test and further, not val"),
        ({"splits": {}}, "splits: the keys must be train, test and further, not none"),
        ({"held_out": 1.0}, r"held_out must lie in \[0, 1\), not 1.0"),
        ({"held_out": -0.1}, r"held_out must lie in \[0, 1\), not -0.1"),
        ({"held_out": 0.9}, "held_out: 0.9 of the 3 training images leaves none to train on"),
        ({"difficult": "maybe"}, "difficult must be 'keep' or 'drop', not 'maybe'"),
        ({"class_names": []}, r"class_names must be one or more names, each once, not \[\]"),
        ({"class_names": ["cat", "cat"]}, "each once"),
    ],
)
def test_bad_arguments(small_voc, changes, message):
    with pytest.raises(ValueError, match=message):
        build(small_voc, **changes)


@pytest.mark.parametrize(
    ("orientation", "size", "stated"), [(6, (8, 8), (8, 8)), (5, (9, 9), (9, 9)), (8, (8, 6), (0, 0))]
)
def test_an_exif_turn_that_the_size_does_not_show_is_refused(make_voc, write_image, orientation, size, stated):
    root = make_voc({"test": {"a": (size, [("cat", (1, 1, 2, 2))])}})
    write_image(root, "a", size, [("cat", (1, 1, 2, 2))], stated=stated)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(root / "JPEGImages" / "a.png", exif=exif)
    with pytest.raises(ValueError, match=r"JPEGImages/a\.png: an EXIF tag turns the image"):
        build(root, splits={"test": "test"})


@pytest.mark.parametrize("orientation", [3, 0, 99])
def test_other_exif_tags_are_not_followed(make_voc, orientation, caplog):
    root = make_voc({"test": {"a": ((8, 8), [("cat", (1, 1, 2, 2))])}})
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 8)).save(root / "JPEGImages" / "a.png", exif=exif)
    assert len(build(root, splits={"test": "test"}).table) == 1
    assert ("turns it by 180°" in caplog.text) == (orientation == 3)


def test_what_cannot_be_read_is_found_when_the_index_is_made(small_voc):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    truncated = small_voc / "JPEGImages" / "a.jpg"
    Image.fromarray(noise).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:1500])
    Image.fromarray(np.zeros((10, 20), dtype=np.float32)).save(small_voc / "JPEGImages" / "b.jpg", "TIFF")
    (small_voc / "Annotations" / "c.xml").write_text("<html><body>not found</body></html>")
    with pytest.raises(ValueError, match="3 error") as caught:
        build(small_voc)
    for text in (
        r"JPEGImages/a.jpg: the image cannot be read (image file is truncated",
        "JPEGImages/b.jpg: its pixels are floating-point numbers",
        "Annotations/c.xml: it is no annotation; its first tag is 'html'",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize("image_id", ["../a", "/etc/a", "x/../../a"])
def test_a_list_stays_in_its_folder(small_voc, write_list, image_id):
    write_list(small_voc, "test", [image_id])
    with pytest.raises(ValueError, match="is outside the folder JPEGImages"):
        build(small_voc)


def test_a_class_that_only_test_images_show_is_refused(make_voc):
    box = (1, 1, 2, 2)
    root = make_voc(
        {
            "trainval": {name: ((4, 4), [("cat", box)]) for name in "acd"},
            "test": {"b": ((4, 4), [("cat", box), ("zebra", box)])},
        }
    )
    source = voc.VOC(source="voc", root=str(root), held_out=0.4)
    with pytest.raises(ValueError, match="test images show 'zebra' and no training image does"):
        source.read(root, 0)


def test_a_class_whose_training_images_are_all_held_out_is_said(make_voc, caplog):
    box = (1, 1, 2, 2)
    trained = {name: ((4, 4), [("cat", box)]) for name in "acd"}
    test = {"b": ((4, 4), [("cat", box), ("dog", box)])}
    root = make_voc({"trainval": trained | {"e": ((4, 4), [("dog", box)])}, "test": test})
    for seed in range(20):
        table = voc.VOC(source="voc", root=str(root), held_out=0.25).read(root, seed).table
        aside = "dog" in set(table.loc[table["split"] == "held_out", "class_name"])
        assert ("all training images that show 'dog' are held out" in caplog.text) == aside
        caplog.clear()


def test_image_path_prefers_jpg_and_takes_others(small_voc):
    assert voc.image_path(small_voc, "a").name == "a.png"
    Image.new("RGB", (8, 6)).save(small_voc / "JPEGImages" / "a.jpg")
    assert voc.image_path(small_voc, "a").name == "a.jpg"
    assert voc.image_path(small_voc, "nothing").name == "nothing.jpg"


@pytest.mark.skipif(
    not FRUITS.is_dir(), reason="the fruit photographs (../shared/data/fruits-voc) are not on this machine"
)
def test_real_photographs():
    index = build(FRUITS, held_out=0.1)
    images = index.table.drop_duplicates("image_id").groupby("split").size().to_dict()
    assert images == {"train": 216, "held_out": 24, "test": 60}
    assert index.class_names == ("apple", "banana", "orange")
    assert not index.table.mask_sha256.any()
    first = index.table[index.table.image_id == "000001"].iloc[0]
    assert (first.class_name, first.boxes, first.width, first.height) == ("apple", [[7, 14, 331, 349]], 349, 349)
    boxes = sum(text.count("<object>") for text in (p.read_text() for p in (FRUITS / "Annotations").glob("*.xml")))
    assert index.table.boxes.map(len).sum() == boxes
