"""Annotations and split lists of a folder in VOC layout, damaged and nonsensical."""

import io
from xml.sax.saxutils import escape

import pytest
from damage import damaged, only_our_errors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ibsgl.data.index import Index
from ibsgl.data.sources.voc import VOC
from tests.small_voc import ANNOTATION, BOX, write_voc

TEXTS = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "1e9", "nan", "inf", "7.5", "８", "cat", "../x", "\u202e", "1" * 5000, "&#0;", "<x/>"]
    ),
    st.text(max_size=12).map(escape),
)


@st.composite
def nonsense(draw):
    """An annotation whose texts are anything, and whose elements may be missing, repeated or nested."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        corners = "".join(
            f"<{key}>{draw(TEXTS)}</{key}>" for key in draw(st.permutations(["xmin", "ymin", "xmax", "ymax"]))
        )
        name = draw(st.sampled_from(["<name>cat</name>", "", "<name/>", f"<name>{draw(TEXTS)}</name>"]))
        bounds = draw(st.sampled_from([f"<bndbox>{corners}</bndbox>", BOX, BOX + BOX, "<bndbox/>", ""]))
        parts.append(f"<object>{name}<difficult>{draw(TEXTS)}</difficult>{bounds}</object>")
    size = draw(st.sampled_from(["", "<size/>", f"<size><width>{draw(TEXTS)}</width><height>8</height></size>"]))
    nested = "<annotation>" * draw(st.sampled_from([1, 1, 1, 3, 2000]))
    return (nested + size + "".join(parts) + nested.replace("<", "</")).encode()


ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))
BOMB = (
    f'<!DOCTYPE annotation [<!ENTITY e0 "ha">{ENTITIES}]><annotation><object><name>&e29;</name></object></annotation>'
)
OUTSIDE = (
    '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><object><name>&e;</name></object></annotation>'
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("data") / "VOC")


def read(root, difficult="keep"):
    """The index of ``root``, after the count that a plan makes."""
    source = VOC(source="voc", root=str(root), held_out=0.4, difficult=difficult, multilabel=True)
    counts = only_our_errors(lambda: source.count(root, {}), root)
    try:
        index = only_our_errors(lambda: source.read(root, 0), root, lines=8)
    except AssertionError as error:
        # It names the key.
        if not str(error).startswith("held_out: "):
            raise
        return
    if index is None:
        return
    assert counts is not None
    index.save(root.parent / "index.parquet")
    table = Index.load(root.parent / "index.parquet").table
    assert table.equals(index.table)
    for boxes, width, height in zip(table["boxes"], table["width"], table["height"], strict=True):
        assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in boxes)


@given(
    content=st.one_of(damaged(ANNOTATION.encode()), nonsense(), st.binary(max_size=100)), place=st.sampled_from("ad")
)
def test_annotations(root, content, place):
    file = root / "Annotations" / f"{place}.xml"
    file.write_bytes(content)
    try:
        read(root)
    finally:
        file.write_text(ANNOTATION)


@pytest.mark.parametrize("content", [BOMB, OUTSIDE])
def test_entities(root, content):
    file = root / "Annotations" / "a.xml"
    file.write_text(content)
    try:
        read(root)
    finally:
        file.write_text(ANNOTATION)


LISTS = st.one_of(
    damaged(b"a\nb\nc\n"),
    st.binary(max_size=40),
    st.lists(
        st.one_of(st.sampled_from(["a", "b", "c", "x/../a", "./a", "/a", "a 1", ".", "a" * 300]), st.text(max_size=6))
    )
    .map("\n".join)
    .map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@given(content=LISTS, name=st.sampled_from(["trainval", "test"]))
def test_split_lists(root, content, name):
    file = root / "ImageSets" / "Main" / f"{name}.txt"
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        read(root)
    finally:
        file.write_bytes(before)


def encoded(kind):
    """An image of 8×8 pixels with an EXIF block."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x011A] = 3, 72.5
    Image.new("RGB", (8, 8), "red").save(file, kind, exif=exif)
    return file.getvalue()


@given(content=st.sampled_from([encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]).flatmap(damaged))
def test_images(root, content):
    file = root / "JPEGImages" / "a.png"
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        read(root, "drop")
    finally:
        file.write_bytes(before)
