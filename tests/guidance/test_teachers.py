"""The maps that guidance teaches: hand cases, and properties of the exchange of maps between images."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ibsgl.guidance import GuidanceSettings
from ibsgl.guidance.teachers import TEACHERS, other_pairs, teacher_maps


def table(targets, images=None):
    images = range(len(targets)) if images is None else images
    return pd.DataFrame({"image_id": [f"i{i}" for i in images], "target": targets})


def maps(number, h=2, w=2):
    return torch.rand(number, h, w, generator=torch.Generator().manual_seed(0))


def own_class(pairs, rows):
    target = pairs["target"].to_numpy()
    return int((target == target[rows.numpy()]).sum())


def own_image(pairs, rows):
    image = pairs["image_id"].to_numpy()
    return int((image == image[rows.numpy()]).sum())


@given(targets=st.lists(st.integers(0, 4), min_size=2, max_size=40), seed=st.integers(0, 2**31))
def test_each_map_goes_to_another_image_and_class(targets, seed):
    """With one class per image, as few pairs as possible have a map of their own class."""
    pairs = table(targets)
    rows = other_pairs(pairs, seed)
    assert sorted(rows.tolist()) == list(range(len(targets)))
    assert own_image(pairs, rows) == 0
    largest = max(Counter(targets).values())
    assert own_class(pairs, rows) == max(0, 2 * largest - len(targets))
    assert torch.equal(rows, other_pairs(pairs, seed))


@given(shown=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=2, max_size=12), seed=st.integers(0, 2**31))
def test_images_with_several_classes(shown, seed):
    pairs = table(
        [c for classes in shown for c in sorted(classes)], [i for i, classes in enumerate(shown) for _ in classes]
    )
    rows = other_pairs(pairs, seed)
    assert own_image(pairs, rows) == 0
    if 2 * max(map(len, shown)) <= len(pairs):
        assert sorted(rows.tolist()) == list(range(len(pairs)))


def test_another_seed_is_another_permutation():
    pairs = table([0, 1, 2] * 20)
    assert not torch.equal(other_pairs(pairs, 0), other_pairs(pairs, 1))
    # A class has the maps of all other classes, not those of one.
    rows = other_pairs(pairs, 0).numpy()
    assert set(pairs["target"].to_numpy()[rows[pairs["target"] == 0]]) == {1, 2}


@pytest.mark.parametrize(
    ("targets", "images", "expected"),
    [
        # Two images exchange their maps, of two classes or of one.
        ([0, 1], [0, 1], [1, 0]),
        ([0, 0], [0, 1], [1, 0]),
        # One image has most of the pairs: the only map of the other image is used for all of them.
        ([0, 1, 2, 1], [0, 0, 0, 1], [3, 3, 3, None]),
    ],
)
def test_few_images(targets, images, expected):
    rows = other_pairs(table(targets, images), 0).tolist()
    assert [row for row, known in zip(rows, expected, strict=True) if known is not None] == [
        known for known in expected if known is not None
    ]


@pytest.mark.parametrize("targets", [[0], [0, 1]])
def test_a_single_image_has_no_other(targets):
    with pytest.raises(ValueError, match=r"guidance\.teacher: shuffled needs .* at least two training images"):
        teacher_maps("shuffled", maps(len(targets)), table(targets, [0] * len(targets)), seed=0)


def test_shuffled_takes_whole_maps():
    pairs, l_ib = table([0, 1, 2, 0, 1, 2]), maps(6)
    assert torch.equal(teacher_maps("shuffled", l_ib, pairs, seed=3), l_ib[other_pairs(pairs, 3)])


def test_bottleneck_uniform_and_none():
    pairs, l_ib = table([0, 1, 1]), maps(3, 3, 4)
    assert teacher_maps("bottleneck", l_ib, pairs, seed=0) is l_ib
    assert torch.equal(teacher_maps("uniform", l_ib, pairs, seed=0), torch.ones(3, 3, 4))
    assert teacher_maps("none", l_ib, pairs, seed=0) is None
    assert teacher_maps("none", None, pairs, seed=0) is None


def test_boxes_by_hand():
    """A cell's value is the share of its pixels in the region."""
    region = torch.zeros(1, 4, 8, dtype=torch.bool)
    region[:, :2, :3] = True
    expected = torch.tensor([[[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    assert torch.equal(teacher_maps("boxes", maps(1, 2, 4), table([0]), seed=0, regions=lambda rows: region), expected)


def test_boxes_are_read_in_parts_and_in_order():
    number, read = 150, []

    def regions(rows):
        read.append(len(rows))
        return torch.from_numpy(rows["target"].to_numpy() > 0)[:, None, None].expand(-1, 8, 8)

    targets = (np.arange(number) % 3 == 1).astype(int).tolist()
    taught = teacher_maps("boxes", maps(number), table(targets), seed=0, regions=regions)
    assert torch.equal(taught, torch.tensor(targets).float()[:, None, None].expand(-1, 2, 2))
    assert max(read) < number


def test_what_a_teacher_lacks_is_named():
    pairs = table([0, 1])
    with pytest.raises(ValueError, match="boxes needs the regions"):
        teacher_maps("boxes", maps(2), pairs, seed=0)
    with pytest.raises(ValueError, match="uniform needs L"):
        teacher_maps("uniform", None, pairs, seed=0)
    with pytest.raises(ValueError, match=r"3 maps L\^ib for 2 training pairs"):
        teacher_maps("bottleneck", maps(3), pairs, seed=0)
    with pytest.raises(ValueError, match=r"guidance\.teacher 'mine' is unknown; take one of bottleneck, .*none"):
        teacher_maps("mine", maps(2), pairs, seed=0)


@pytest.mark.parametrize("teacher", [*TEACHERS, "none"])
def test_the_settings_have_every_teacher(teacher):
    assert GuidanceSettings(teacher=teacher).teacher == teacher
    if teacher != "bottleneck":
        with pytest.raises(ValidationError, match=f"bottleneck_network: .*{teacher}"):
            GuidanceSettings(teacher=teacher, bottleneck_network="current")
