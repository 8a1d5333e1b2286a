import hashlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ibsgl.data.index import Index
from ibsgl.data.loading import ImageDataset
from ibsgl.data.sources import shapes
from ibsgl.data.sources.shapes import CLASS_NAMES, PHOTOGRAPHS, generate
from ibsgl.data.sources.voc import build_index


def make(root, **changes):
    generate(root, **({"seed": 5, "trainval": 12, "test": 6, "size": 48, "progress": False} | changes))
    return root


def digests(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shapes") / "VOC2007", trainval=480, test=240, size=32)


@pytest.fixture(scope="module")
def further_root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shapes") / "VOC2007", trainval=12, test=6, further=240, size=32)


def truths(root, split):
    """(class, photograph) of every image, from its annotation."""
    for image_id in (root / "ImageSets/Main" / f"{split}.txt").read_text().split():
        annotation = ElementTree.parse(root / "Annotations" / f"{image_id}.xml")
        yield annotation.findtext("object/name"), annotation.findtext("source/image")


def test_same_seed_same_bytes_other_seed_other_images(tmp_path):
    first, again, other = (digests(make(tmp_path / name, seed=seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert first == again
    assert first.keys() == other.keys()
    jpegs = [path for path in first if path.endswith(".jpg")]
    assert len(jpegs) == 18
    assert all(first[path] != other[path] for path in jpegs)


def test_an_image_does_not_depend_on_the_counts(tmp_path):
    few, many = digests(make(tmp_path / "a")), digests(make(tmp_path / "b", trainval=14, test=9))
    images = {path: digest for path, digest in few.items() if not path.startswith("ImageSets")}
    assert len(images) == 3 * 18
    assert images.items() <= many.items()


def test_splits_do_not_repeat_each_other(tmp_path):
    jpegs = [
        digest
        for path, digest in digests(make(tmp_path / "a", background_correlation=0.0, further=6)).items()
        if path.endswith(".jpg")
    ]
    assert len(set(jpegs)) == 24


def test_further_images_change_no_others(tmp_path):
    without, with_them = digests(make(tmp_path / "a")), digests(make(tmp_path / "b", further=7))
    assert without.items() <= with_them.items()
    new = sorted(with_them.keys() - without.keys())
    assert len(new) == 3 * 7 + 1
    assert "ImageSets/Main/further.txt" in new
    # Without further images nothing is left of an earlier list.
    make(tmp_path / "b")
    assert not (tmp_path / "b" / "ImageSets/Main/further.txt").exists()


def test_further_images_are_like_test_images(further_root):
    names, photographs = zip(*truths(further_root, "further"), strict=True)
    assert {name: names.count(name) for name in CLASS_NAMES} == dict.fromkeys(CLASS_NAMES, 40)
    own = dict(zip(CLASS_NAMES, PHOTOGRAPHS, strict=False))
    share = np.mean([own[name] == photograph for name, photograph in zip(names, photographs, strict=True)])
    assert abs(share - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / len(names))


def test_the_index_has_further_images_in_a_split_of_their_own(further_root, tmp_path):
    data = shapes.Shapes(trainval=12, test=6, further=240, size=32, held_out=1 / 3)
    index = data.build_index(further_root, seed=0)
    assert index.table.groupby("split", sort=False).size().to_dict() == {
        "train": 8,
        "held_out": 4,
        "test": 6,
        "further": 240,
    }
    images = ImageDataset(index, further_root, 32)
    assert len(images.ids("further")) == len(images.labels("further")) == len(images.pairs("further")) == 240
    index.save(tmp_path / "index.parquet")
    assert Index.load(tmp_path / "index.parquet").table.equals(index.table)
    fewer = data.model_copy(update={"further": 0}).build_index(further_root, seed=0)
    assert fewer.digest != index.digest
    assert ImageDataset(fewer, further_root, 32).ids("further") == []
    rest = index.table[index.table["split"] != "further"]
    assert fewer.table.equals(rest)


def test_classes_are_balanced(shapes_root):
    for split, each in (("trainval", 80), ("test", 40)):
        names = [name for name, _ in truths(shapes_root, split)]
        assert {name: names.count(name) for name in CLASS_NAMES} == dict.fromkeys(CLASS_NAMES, each)


def test_backgrounds_correlate_in_training_and_independent_at_test(shapes_root):
    own = dict(zip(CLASS_NAMES, PHOTOGRAPHS, strict=False))
    # Half correlated and an eighth of the rest by chance; binomial, five standard deviations on each side.
    for split, chance in (("trainval", 0.5 + 0.5 / 8), ("test", 1 / 8)):
        pairs = list(truths(shapes_root, split))
        assert {photograph for _, photograph in pairs} == set(PHOTOGRAPHS)
        share = np.mean([own[name] == photograph for name, photograph in pairs])
        assert abs(share - chance) < 5 * np.sqrt(chance * (1 - chance) / len(pairs))


@pytest.mark.parametrize(("correlation", "all_own"), [(1.0, True), (0.0, False)])
def test_correlation_of_all_or_none(tmp_path, correlation, all_own):
    own = dict(zip(CLASS_NAMES, PHOTOGRAPHS, strict=False))
    root = make(tmp_path / "a", trainval=60, test=60, background_correlation=correlation, size=16)
    assert all(own[name] == photograph for name, photograph in truths(root, "trainval")) is all_own
    assert not all(own[name] == photograph for name, photograph in truths(root, "test"))


def test_boxes_bound_the_masks_and_the_reader_agrees(shapes_root):
    index = build_index(shapes_root, splits={"train": "trainval", "test": "test"}, held_out=0.0, seed=0)
    assert index.class_names == CLASS_NAMES
    assert index.table.mask_sha256.all()
    assert len(index.table) == 720
    pairs = index.table[index.table["split"] == "test"]
    data = ImageDataset(index, shapes_root, 32)
    boxes, masks = data.regions(pairs), data.regions(pairs, "segmentation")
    assert not (masks & ~boxes).any()
    for row, mask in zip(pairs.itertuples(), masks.numpy(), strict=True):
        raw = np.asarray(Image.open(shapes_root / "SegmentationClass" / f"{row.image_id}.png"))
        assert set(np.unique(raw)) == {0, row.target + 1}
        np.testing.assert_array_equal(raw == row.target + 1, mask)
        ys, xs = np.nonzero(raw)
        assert row.boxes == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        # The narrowest outline spans 0.9 of its square; a pixel at each end may be lost to rounding.
        assert 0.9 * 0.3 * 32 - 2 <= xs.max() + 1 - xs.min() <= 0.5 * 32 + 1


def test_outlines_fill_their_known_share_of_the_square():
    y, x = (np.mgrid[:800, :800] + 0.5) / 400 - 1
    star = 10 * 0.45 * np.sin(np.pi / 5) / 2
    areas = {"cross": 0.64, "diamond": 0.5, "disk": np.pi / 4, "square": 0.81, "star": star / 4, "triangle": 0.5}
    for name, area in areas.items():
        assert shapes.OUTLINES[name](x, y).mean() == pytest.approx(area, abs=2e-3), name


@pytest.mark.parametrize("target", range(len(CLASS_NAMES)))
def test_stripes_run_across_the_class_angle(target):
    photographs = shapes._photographs()
    steps = []
    for turn in range(8):
        image, mask, drawn, _ = shapes._draw(
            "test", target + 6 * turn, seed=0, size=96, background_correlation=0.5, photographs=photographs
        )
        assert drawn == target
        inside = np.logical_and.reduce([np.roll(mask, s, a) for s in (-1, 0, 1) for a in (0, 1)])
        gy, gx = np.gradient(image.astype(float).mean(2))
        # The structure tensor's main direction: where brightness changes fastest.
        gx, gy = gx[inside], gy[inside]
        steps.append(complex((gx**2 - gy**2).sum(), 2 * (gx * gy).sum()))
    angle = np.degrees(np.angle(sum(steps)) / 2) % 180
    off = (angle - 30 * target + 90) % 180 - 90
    assert abs(off) < 5


def test_palette_is_vocs():
    palette = np.array(shapes._palette()).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    assert {index: tuple(palette[index]) for index in known} == known


def test_a_broken_run_leaves_no_lists_and_the_next_one_repairs_it(tmp_path, monkeypatch):
    root = make(tmp_path / "a")
    whole = digests(root)
    with monkeypatch.context() as patched:
        patched.setattr(shapes, "_annotation", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(root)
    assert not list((root / "ImageSets/Main").iterdir())
    make(root)
    assert digests(root) == whole


def test_another_data_set_is_left_alone(small_voc):
    before = digests(small_voc)
    with pytest.raises(ValueError, match=r"holds another data set"):
        make(small_voc)
    assert digests(small_voc) == before


def test_a_photograph_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.PHOTOGRAPHS, "brick", "brick_missing.png")
    with pytest.raises(FileNotFoundError, match=r"brick_missing\.png: scikit-image ships this photograph"):
        make(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainval": 0}, "shapes: trainval must be at least 1, not 0"),
        ({"test": -1}, "shapes: test must be at least 1, not -1"),
        ({"further": -1}, "shapes: further must be at least 0, not -1"),
        ({"size": 8}, "shapes: size must be at least 16, not 8"),
        ({"background_correlation": 1.5}, r"shapes: background_correlation must lie in \[0, 1\], not 1.5"),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "a", **changes)


def test_every_class_shows_up_in_every_quarter(shapes_root):
    table = build_index(shapes_root, splits={"test": "test"}, held_out=0.0, seed=0).table
    seen = {(row.target, x0 + x1 > 32, y0 + y1 > 32) for row in table.itertuples() for x0, y0, x1, y1 in row.boxes}
    assert len(seen) == 6 * 4
