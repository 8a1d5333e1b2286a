"""Max-sensitivity: by hand, against a slow loop, and who gets no value."""

import pytest
import torch
from pairs import evidence, summing_network

from ibsgl.metrics.further import get
from ibsgl.randomness import generator


def measured(explain, images, **settings):
    saliency = explain(None, images)
    metric = get("max_sensitivity", **settings)
    return metric(evidence(saliency, images=images, network=summing_network(), explain=explain))


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_map_that_does_not_look_at_the_image_has_no_sensitivity():
    assert measured(lambda network, images: torch.ones(len(images), 8, 8), IMAGES).tolist() == [0, 0, 0]


def test_a_linear_map_moves_by_the_largest_drawn_norm():
    def grey(network, images):
        return images.mean(1)

    found = measured(grey, IMAGES, samples=4, radius=0.1)
    expected = []
    for image, place in zip(IMAGES, range(3), strict=True):
        draws = generator(0, "a metric", place)
        moves = [(0.1 * (2 * torch.rand(3, 8, 8, generator=draws) - 1)).mean(0).norm() for _ in range(4)]
        expected.append((max(moves) / image.mean(0).norm()).item())
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_no_pixel_moves_by_more_than_the_radius():
    seen = []

    def keep(network, images):
        seen.append(images)
        return images.mean(1)

    measured(keep, IMAGES, samples=3, radius=0.25)
    moved = torch.stack(seen[1:]) - IMAGES
    assert moved.abs().max() <= 0.25 + 1e-6
    assert moved.abs().max() > 0.24


def test_a_map_of_zeros_has_no_value():
    assert measured(lambda network, images: torch.zeros(len(images), 8, 8), IMAGES).isnan().all()


def test_an_image_has_the_same_value_alone():
    def grey(network, images):
        return images.mean(1)

    alone = measured(grey, IMAGES[:1])
    assert torch.equal(measured(grey, IMAGES)[:1], alone)


def test_methods_of_many_passes_get_no_value():
    metric = get("max_sensitivity", max_passes=10)
    assert metric.unsuited(10) == ""
    assert metric.unsuited(50) == "more than 10 passes per map (max_passes)"
    assert metric.unsuited(None) == "the number of passes per map is unknown"
    # Whatever the number, one reason: the table's notes name all of its methods at once.
    assert metric.unsuited(50) == metric.unsuited(200)


@pytest.mark.parametrize("name", ["max_sensitivity", "model_randomisation"])
def test_without_a_limit_every_method_gets_values(name):
    metric = get(name, max_passes=None)
    assert metric.unsuited(10_000) == metric.unsuited(None) == ""
