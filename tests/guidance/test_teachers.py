"""The maps that guidance teaches: hand cases, plug-ins, and properties of the exchange of maps between images."""

from collections import Counter

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ibsgl.guidance import TEACHERS, GuidanceSettings
from ibsgl.guidance.teachers import other_pairs, teacher_map


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
        other_pairs(table(targets, [0] * len(targets)), 0)


def taught(name, features, region=None, l_ib=None):
    return TEACHERS.get(name)(features, torch.zeros(len(features), dtype=torch.int64), region, l_ib)


def test_bottleneck_shuffled_and_uniform():
    features, l_ib = torch.rand(3, 5, 3, 4), maps(3, 3, 4)
    # Whose L^ib a teacher gets is what it requires.
    for name in ("bottleneck", "shuffled"):
        assert taught(name, features, l_ib=l_ib) is l_ib
    assert torch.equal(taught("uniform", features), torch.ones(3, 3, 4))


def test_boxes_by_hand():
    """A cell's value is the share of its pixels in the region."""
    region = torch.zeros(1, 4, 8, dtype=torch.bool)
    region[:, :2, :3] = True
    expected = torch.tensor([[[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    assert torch.equal(taught("boxes", torch.rand(1, 7, 2, 4), region=region), expected)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (torch.ones(2, 3, 3), r"guidance\.teacher: mine gives maps of the shape \(2, 3, 3\), not \(2, 2, 4\)"),
        (-torch.ones(2, 2, 4), r"guidance\.teacher: mine gives a value that is negative or not finite"),
        (torch.full((2, 2, 4), torch.nan), r"guidance\.teacher: mine gives a value that is negative or not finite"),
    ],
)
def test_a_teachers_maps_are_checked(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        teacher_map("mine", lambda *_: given, torch.rand(2, 5, 2, 4), torch.zeros(2, dtype=torch.int64), None, None)


def test_what_the_teachers_see():
    requires = {name: TEACHERS.load(name).requires for name in TEACHERS.names()}
    assert requires == {"bottleneck": {"l_ib"}, "shuffled": {"shuffled"}, "uniform": set(), "boxes": {"region"}}


@pytest.mark.parametrize("teacher", ["bottleneck", "shuffled", "uniform", "boxes", "none"])
def test_the_settings_have_every_teacher(teacher):
    guidance = GuidanceSettings(teacher=teacher)
    assert guidance.sees_boxes == (teacher == "boxes")
    assert guidance.bottleneck_of == ("pretrained" if teacher in ("bottleneck", "shuffled") else None)
    assert (guidance.build_teacher() is None) == (teacher == "none")
    if teacher != "bottleneck":
        with pytest.raises(ValidationError, match=f"bottleneck_network: .*{teacher}"):
            GuidanceSettings(teacher=teacher, bottleneck_network="current")
