"""The pointing game: each rule on a case by hand, and against TorchRay's rule as a loop over whole masks."""

import pytest
import torch
from pairs import evidence

from ibsgl.metrics.further import Objects, get
from ibsgl.metrics.further.pointing_game import highest_point, hits, is_hard


def with_peak(x, y, size=32):
    saliency = torch.zeros(1, size, size)
    saliency[0, y, x] = 1.0
    return saliency


def value(saliency, objects, **settings):
    return get("pointing_game", **settings)(evidence(saliency, objects=[objects])).item()


def test_a_peak_in_the_box_hits_and_one_far_away_misses():
    objects = Objects(((0, 0, 8, 8),), 32, 32)
    assert value(with_peak(4, 4), objects) == 1
    assert value(with_peak(28, 28), objects) == 0


def test_the_distance_must_be_less_than_the_tolerance():
    """The box ends before x = 8, so its last pixel is 7. From 21 it is 14 pixels away, from 22 it is 15."""
    objects = Objects(((0, 0, 8, 32),), 32, 32)
    assert [value(with_peak(x, 5), objects) for x in (20, 21, 22, 23)] == [1, 1, 0, 0]
    assert [value(with_peak(x, 5), objects, tolerance=1) for x in (7, 8)] == [1, 0]
    assert value(with_peak(7, 5), objects, tolerance=0) == 0


def test_the_distance_is_euclidean():
    """From the corner pixel (7, 7) the point (16, 19) is exactly 15 pixels away: 9² + 12² = 15²."""
    objects = Objects(((0, 0, 8, 8),), 32, 32)
    assert value(with_peak(16, 19), objects) == 0
    assert value(with_peak(16, 18), objects) == 1


def test_any_box_of_the_class_may_be_hit():
    objects = Objects(((0, 0, 4, 4), (28, 28, 32, 32)), 32, 32)
    assert value(with_peak(30, 30), objects, tolerance=1) == 1
    assert value(with_peak(15, 15), objects, tolerance=1) == 0


def test_the_tolerance_is_in_pixels_of_the_file():
    """Twice as wide, the same map points twice as far to the right, and 15 pixels are half as much of the image."""
    objects = Objects(((0, 0, 16, 32),), 64, 32)
    assert highest_point(with_peak(15, 5), 64, 32)[0].tolist() in ([30, 5], [31, 5])
    assert value(with_peak(15, 5), objects) == 0
    assert value(with_peak(15, 5), Objects(((0, 0, 8, 32),), 32, 32)) == 1


def test_pairs_with_difficult_objects_only_have_no_value():
    assert torch.isnan(torch.tensor(value(with_peak(1, 1), Objects(((0, 0, 8, 8),), 32, 32, difficult=True))))


def test_a_constant_map_points_to_the_first_pixel():
    assert highest_point(torch.ones(2, 8, 8), 20, 10).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("boxes", "classes", "hard"),
    [
        (((0, 0, 15, 16),), 2, True),
        # A quarter of the image is not less than a quarter.
        (((0, 0, 16, 16),), 2, False),
        # Where boxes overlap, the area counts once.
        (((0, 0, 15, 16), (0, 0, 15, 15)), 2, True),
        (((0, 0, 15, 16),), 1, False),
    ],
)
def test_the_difficult_subset_has_small_objects_beside_other_classes(boxes, classes, hard):
    objects = Objects(boxes, 32, 32, classes=classes)
    assert is_hard(objects) == hard
    assert (value(with_peak(1, 1), objects, subset="difficult") == 1) == hard
    assert value(with_peak(1, 1), objects) == 1


def test_it_is_the_mean_over_classes():
    assert get("pointing_game").average == "classes"


def test_it_agrees_with_a_mask_and_a_disc_of_whole_images():
    """TorchRay draws the boxes into a mask, and looks for a pixel of it in the open disc around the point."""
    draw = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(300):
        width, height = torch.randint(20, 60, (2,), generator=draw).tolist()
        tolerance = int(torch.randint(0, 20, (), generator=draw))
        boxes, mask = [], torch.zeros(height, width, dtype=torch.bool)
        for _ in range(2):
            x = torch.randint(0, width, (2,), generator=draw).sort().values.tolist()
            y = torch.randint(0, height, (2,), generator=draw).sort().values.tolist()
            boxes.append((x[0], y[0], x[1] + 1, y[1] + 1))
            mask[y[0] : y[1] + 1, x[0] : x[1] + 1] = True
        point = torch.stack([torch.randint(0, width, (), generator=draw), torch.randint(0, height, (), generator=draw)])
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        disc = (rows - point[1]) ** 2 + (columns - point[0]) ** 2 < tolerance**2
        expected = bool((mask & disc).any())
        assert hits(point, Objects(tuple(boxes), width, height), tolerance) == expected
        found.add(expected)
    assert found == {True, False}


def test_images_of_several_sizes_keep_their_places():
    saliency = torch.cat([with_peak(2, 2), with_peak(30, 30), with_peak(2, 2)])
    objects = [Objects(((0, 0, 4, 4),), width, 32) for width in (32, 64, 32)]
    assert get("pointing_game", tolerance=8)(evidence(saliency, objects=objects)).tolist() == [1, 0, 1]
