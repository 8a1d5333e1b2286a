"""Sparseness and complexity: by hand, by scipy, and by their limits."""

import math

import pytest
import torch
from pairs import evidence
from scipy.stats import entropy as scipy_entropy

from ibsgl.metrics.further import get


def both(*maps):
    found = evidence(torch.tensor(maps, dtype=torch.float32))
    return [get(name)(found).tolist() for name in ("sparseness", "complexity")]


def test_an_equal_map_is_not_sparse_and_has_the_highest_entropy():
    sparse, complexity = both([[2.0, 2.0], [2.0, 2.0]])
    assert sparse == [0.0]
    assert complexity == pytest.approx([math.log(4)])


def test_one_pixel_is_as_sparse_as_possible_and_has_no_entropy():
    assert both([[0.0, 7.0], [0.0, 0.0]]) == [[0.75], [0.0]]


def test_values_by_hand():
    """Values 0, 0, 1, 3: G = (−3·0 − 1·0 + 1·1 + 3·3) / (4·4) = 10/16; H of (1/4, 3/4)."""
    sparse, complexity = both([[0.0, 1.0], [3.0, 0.0]])
    assert sparse == [0.625]
    assert complexity == pytest.approx([-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))])


def test_a_map_of_zeros_has_no_value():
    assert all(math.isnan(value) for values in both([[0.0, 0.0], [0.0, 0.0]]) for value in values)


def test_they_agree_with_the_area_under_the_lorenz_curve_and_with_scipy():
    saliency = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0)) ** 3
    found = evidence(saliency)
    lorenz = saliency.flatten(1).double().sort(1).values.cumsum(1)
    lorenz = torch.cat([torch.zeros(5, 1, dtype=torch.float64), lorenz / lorenz[:, -1:]], dim=1)
    gini = 1 - 2 * torch.trapezoid(lorenz, dx=1 / 63, dim=1)
    assert torch.allclose(get("sparseness")(found), gini)
    assert get("complexity")(found).tolist() == pytest.approx(
        [scipy_entropy(row.double().flatten().numpy()) for row in saliency]
    )


def test_they_do_not_depend_on_the_scale_of_the_map():
    saliency = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    for name in ("sparseness", "complexity"):
        assert torch.allclose(get(name)(evidence(saliency)), get(name)(evidence(1000 * saliency)), atol=1e-6)
