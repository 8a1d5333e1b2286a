import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ibsgl.data.loading import ImageDataset, ahead
from ibsgl.data.sources.voc import build_index


def load(root, size, **changes):
    settings = {"splits": {"test": "test"}, "held_out": 0.0, "seed": 0} | changes
    return ImageDataset(build_index(root, **settings), root, size)


def rows(*boxes, width, height):
    """Pairs as the index has them, one a list of boxes."""
    facts = {"image_id": "a", "target": 0, "width": width, "height": height, "mask_sha256": ""}
    return pd.DataFrame([{**facts, "boxes": list(item)} for item in boxes])


def slow_region(boxes, width, height, size):
    """Pixel by pixel: does its centre, in the file's coordinates, lie in a box?"""
    region = np.zeros((size, size), dtype=bool)
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) * height / size, (j + 0.5) * width / size
            region[i, j] = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)
    return region


def test_ids_labels_and_pairs(small_voc):
    data = load(small_voc, 8, splits={"train": "trainval", "test": "test"})
    assert data.ids("train") == ["b", "a", "c"]
    assert data.labels("train").tolist() == [[0, 1], [1, 1], [1, 0]]
    assert data.labels("train").dtype == torch.float32
    assert data.pairs("test").class_name.tolist() == ["cat", "dog"]
    assert data.pairs("test").index.tolist() == [0, 1]
    assert data.ids("held_out") == []
    assert data.labels("held_out").shape == (0, 2)
    with pytest.raises(ValueError, match="no split 'val'; the splits are train, held_out, test"):
        data.ids("val")


@pytest.mark.parametrize("difficult", ["keep", "drop"])
def test_classes_shown_by_difficult_objects_only(make_voc, difficult):
    box = (1, 1, 4, 4)
    both = [("cat", box, 1), ("cat", box, 0), ("dog", box, 1), ("dog", box, 1)]
    root = make_voc({"test": {"a": ((4, 4), both), "b": ((4, 4), [("dog", box)]), "c": ((4, 4), [("cat", box, 1)])}})
    data = load(root, 8, difficult=difficult)
    expected = {"a": [False, True], "b": [False, False], "c": [True, False]}
    assert data.difficult("test").tolist() == [expected[name] for name in data.ids("test")]
    assert data.ids("test") == (["a", "b", "c"] if difficult == "keep" else ["a", "b"])


def test_regions_without_resizing_are_the_boxes_to_the_pixel(make_voc):
    root = make_voc({"test": {"a": ((5, 5), [("cat", (2, 1, 3, 2)), ("cat", (5, 5, 5, 5)), ("dog", (1, 1, 5, 5))])}})
    data = load(root, 5)
    cat, dog = data.regions(data.pairs("test")).int()
    assert cat.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert dog.all()


def test_regions_move_with_the_resizing(small_voc):
    data = load(small_voc, 8)

    def covered(box, width, height):
        region = data.regions(rows([box], width=width, height=height))[0]
        ys, xs = torch.nonzero(region, as_tuple=True)
        assert region.sum() == (ys.max() + 1 - ys.min()) * (xs.max() + 1 - xs.min())
        return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]

    assert covered([1, 2, 3, 4], 4, 4) == [2, 4, 6, 8]  # twice as large
    assert covered([2, 4, 6, 8], 16, 16) == [1, 2, 3, 4]  # half as large
    assert covered([3, 5, 8, 9], 16, 16) == [
        1,
        2,
        4,
        4,
    ]  # centres at 1, 3, 5, …: 3 is in, 5 is in, 8 and 9 end before 9
    assert covered([4, 1, 12, 2], 16, 4) == [2, 2, 6, 4]  # halved across, doubled down


def test_regions_agree_with_a_loop_over_pixels(small_voc):
    rng = np.random.default_rng(0)
    for size in (7, 16, 31):
        data = load(small_voc, size)
        for width, height in ((7, 7), (40, 23), (13, 64), (333, 500)):
            corners = [np.sort(rng.choice(limit + 1, (2, 2), replace=False), axis=1) for limit in (width, height)]
            boxes = [[int(v) for v in (x[0], y[0], x[1], y[1])] for x, y in zip(*corners, strict=True)]
            expected = slow_region(boxes, width, height, size)
            region = data.regions(rows(boxes, width=width, height=height))[0].numpy()
            missed = [b for b in boxes if not slow_region([b], width, height, size).any()]
            if missed:
                assert (region | expected == region).all()
            else:
                np.testing.assert_array_equal(region, expected)


def test_a_box_between_centres_keeps_the_pixel_in_its_middle(small_voc):
    data = load(small_voc, 4)
    # Centres of a 40-pixel side at 5, 15, 25, 35.
    point, line, edge = data.regions(rows([[17, 8, 19, 10]], [[6, 0, 9, 40]], [[39, 39, 40, 40]], width=40, height=40))
    assert torch.nonzero(point).tolist() == [[0, 1]]
    assert torch.nonzero(line).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert torch.nonzero(edge).tolist() == [[3, 3]]


def test_segmentation_by_hand(make_voc):
    root = make_voc(
        {
            "test": {
                "a": ((4, 4), [("cat", (1, 1, 4, 4)), ("dog", (1, 1, 2, 2))]),
                "b": ((4, 4), [("dog", (1, 1, 2, 4))]),
            }
        }
    )
    mask = np.array([[0, 0, 1, 1], [0, 255, 1, 1], [2, 2, 0, 0], [2, 255, 0, 0]], dtype=np.uint8)
    Image.fromarray(mask).save(root / "SegmentationClass" / "a.png")
    data = load(root, 4)
    cat, dog, without = data.regions(data.pairs("test"), "segmentation").int()
    assert cat.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert dog.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert without.tolist() == [[1, 1, 0, 0]] * 4
    doubled = load(root, 8).regions(data.pairs("test"), "segmentation")
    np.testing.assert_array_equal(doubled[0].numpy(), np.kron(mask == 1, np.ones((2, 2))))
    halved = load(root, 2).regions(data.pairs("test"), "segmentation").int()
    assert halved[0].tolist() == [[0, 1], [0, 0]]
    # The nearest pixel of each quarter is its last one, which the dog's is not: its box stands in.
    assert halved[1].tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("RGB", (8, 8)), r"d\.png: a mask must have class numbers .* its mode is RGB"),
        (Image.new("L", (8, 6)), r"d\.png: the mask is 8×6 but the image 8×8"),
        (Image.new("L", (8, 8), 9), r"d\.png: class number 9 in a data set of 2 classes"),
    ],
)
def test_masks_that_cannot_be_used(small_voc, mask, message):
    mask.save(small_voc / "SegmentationClass" / "d.png")
    data = load(small_voc, 8)
    data.regions(data.pairs("test"))
    with pytest.raises(ValueError, match=message):
        data.regions(data.pairs("test"), "segmentation")


def test_regions_refuses_an_unknown_kind(small_voc):
    data = load(small_voc, 8)
    with pytest.raises(ValueError, match="kind must be 'boxes' or 'segmentation', not 'mask'"):
        data.regions(data.pairs("test"), "mask")


def test_images_keep_their_pixels_at_their_own_size(empty_voc, write_image, write_list):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    for name, values in zip("ab", pixels, strict=True):
        write_image(empty_voc, name, (6, 6), [("cat", (1, 1, 6, 6))], pixels=values)
    write_list(empty_voc, "test", ["a", "b"])
    images = load(empty_voc, 6).images(["b", "a"])
    expected = torch.from_numpy(pixels[::-1].copy()).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_images_are_squashed_with_antialiasing(empty_voc, write_image, write_list):
    # Stripes one pixel wide, red on the left and blue on the right of a wide image: averaged, not sampled.
    pixels = np.zeros((16, 64, 3), dtype=np.uint8)
    pixels[::2, :32, 0] = 255
    pixels[::2, 32:, 2] = 255
    write_image(empty_voc, "a", (64, 16), [("cat", (1, 1, 6, 6))], pixels=pixels)
    write_list(empty_voc, "test", ["a"])
    (image,) = load(empty_voc, 4).images(["a"])
    assert image.shape == (3, 4, 4)
    assert image[0, :, 0].sub(0.5).abs().max() < 0.1
    assert image[2, :, 3].sub(0.5).abs().max() < 0.1
    assert image[0, :, 3].max() == image[2, :, 0].max() == image[1].max() == 0


def test_images_of_other_modes_become_rgb(small_voc):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    grey.save(small_voc / "JPEGImages" / "d.png")
    (image,) = load(small_voc, 8).images(["d"])
    expected = torch.arange(64).reshape(8, 8) / 255
    for channel in image:
        assert torch.allclose(channel, expected)


def test_sixteen_bits_of_grey_keep_their_range(small_voc):
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(small_voc / "JPEGImages" / "d.png")
    (image,) = load(small_voc, 8).images(["d"])
    assert np.allclose(image[0].numpy(), values / 65535, atol=1 / 255)


def test_a_photograph_with_an_exif_turn_is_read_as_it_is_stored(make_voc):
    root = make_voc({"test": {"a": ((8, 6), [("cat", (1, 1, 2, 2))])}})
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / "a.png", exif=exif)
    (turned,) = load(root, 8).images(["a"])
    Image.fromarray(pixels).save(root / "JPEGImages" / "a.png")
    assert torch.equal(load(root, 8).images(["a"])[0], turned)


def test_an_image_in_a_folder_is_that_one(make_voc):
    (root := make_voc({"test": {"a": ((4, 4), [("cat", (1, 1, 4, 4))])}}))
    for kind, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        (root / kind / "sub").mkdir()
        (root / kind / f"a.{suffix}").rename(root / kind / "sub" / f"a.{suffix}")
    white = np.full((4, 4, 3), 255, dtype=np.uint8)
    Image.fromarray(white).save(root / "JPEGImages" / "a.png")
    (root / "ImageSets" / "Main" / "test.txt").write_text("sub/a\n")
    assert load(root, 4).images(["sub/a"]).max() == 0


def test_another_file_than_that_in_the_index_is_refused(small_voc):
    Image.new("L", (8, 8)).save(small_voc / "SegmentationClass" / "d.png")
    data = load(small_voc, 8)
    path = small_voc / "JPEGImages" / "d.png"
    Image.fromarray(np.full((8, 8, 3), 9, dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"JPEGImages/d\.png is another file than when the index was made"):
        data.images(["d"])
    Image.new("L", (8, 8), 1).save(small_voc / "SegmentationClass" / "d.png")
    with pytest.raises(ValueError, match=r"SegmentationClass/d\.png is another file than"):
        data.regions(data.pairs("test"), "segmentation")


def test_no_images(small_voc):
    assert load(small_voc, 8).images([]).shape == (0, 3, 8, 8)


def test_unreadable_images_name_the_file(small_voc):
    data = load(small_voc, 8)
    path = small_voc / "JPEGImages" / "d.png"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"d\.png"):
        data.images(["d"])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(
        ValueError, match=r"d\.png is another file than when the index was made; put that back, or delete"
    ):
        data.images(["d"])
    # Without a digest in the index.
    data = ImageDataset(replace(data.index, table=data.index.table.assign(sha256="")), small_voc, 8)
    with pytest.raises(ValueError, match=r"d\.png: the image cannot be read \(.*truncated.*\); replace the file"):
        data.images(["d"])
    with pytest.raises(ValueError, match=r"d\.png: the image cannot be read"):
        list(data.batches(["d"], 1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_are_the_images_in_order(empty_voc, batch_size, write_image, write_list):
    ids = ["a", "b", "c", "d", "e"]
    for grey, name in enumerate(ids):
        write_image(empty_voc, name, (4, 4), [("cat", (1, 1, 4, 4))], pixels=np.full((4, 4, 3), grey, dtype=np.uint8))
    write_list(empty_voc, "test", ids)
    data = load(empty_voc, 4)
    batches = list(data.batches(ids, batch_size))
    assert [image_id for chunk, _ in batches for image_id in chunk] == ids
    assert all(len(chunk) == len(images) <= batch_size for chunk, images in batches)
    assert torch.equal(torch.cat([images for _, images in batches]), data.images(ids))
    assert len(batches) == -(-len(ids) // batch_size)
    assert list(data.batches([], batch_size)) == []


def test_the_next_batch_is_read_ahead_and_only_that_one(small_voc, monkeypatch):
    data = load(small_voc, 8, splits={"train": "trainval", "test": "test"})
    read, done = [], threading.Event()
    plain = data.images

    def images(ids):
        read.append(ids)
        if len(read) == 2:
            done.set()
        return plain(ids)

    monkeypatch.setattr(data, "images", images)
    batches = data.batches(["a", "b", "c", "d"], 1)
    next(batches)
    assert done.wait(10)
    assert read == [["a"], ["b"]]
    batches.close()
    assert read == [["a"], ["b"]]


def test_bad_arguments(small_voc):
    with pytest.raises(ValueError, match="size must be at least 1 pixel, not 0"):
        load(small_voc, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        next(load(small_voc, 8).batches(["d"], 0))


def test_one_item_is_made_ahead():
    made, third = [], threading.Event()

    def items():
        for number in range(4):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    found = ahead(items())
    assert next(found) == 0
    assert next(found) == 1
    assert third.wait(10)
    assert made == [0, 1, 2]
    assert list(found) == [2, 3]
    assert list(ahead([])) == []


def test_an_error_is_raised_where_its_item_would_be():
    def items():
        yield 1
        raise ValueError("no second item")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(found)
