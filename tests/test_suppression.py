"""Eq. 1 by hand, and Mask_r exactly."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ibsgl.suppression import suppression_loss, top_fraction_mask


def test_mask_by_hand():
    saliency = torch.tensor([[[0.1, 0.9], [0.5, 0.5]]])
    assert top_fraction_mask(saliency, 0.25).tolist() == [[[False, True], [False, False]]]
    # The two equal values: the first in row-major order is taken.
    assert top_fraction_mask(saliency, 0.5).tolist() == [[[False, True], [True, False]]]
    assert top_fraction_mask(saliency, 1.0).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 100), st.integers(0, 3))
def test_mask_has_exactly_the_stated_size(h, w, percent, levels):
    saliency = torch.randint(0, levels + 1, (2, h, w), generator=torch.Generator().manual_seed(h * w)).float()
    mask = top_fraction_mask(saliency, percent / 100)
    assert mask.sum((1, 2)).tolist() == [math.ceil(percent * h * w / 100)] * 2
    for values, chosen in zip(saliency, mask, strict=True):
        if not chosen.all():
            assert values[chosen].min() >= values[~chosen].max()


def test_rounding_does_not_add_a_pixel():
    # 0.35 · 100 is 35.000000000000004 in floating point for some factor orders; 7·0.1·10 likewise.
    assert top_fraction_mask(torch.rand(1, 10, 10), 0.35).sum() == 35
    assert top_fraction_mask(torch.rand(1, 10, 10), 0.07).sum() == 7


@pytest.mark.parametrize("r", [0, -0.1, 1.1, float("nan")])
def test_mask_refuses_other_fractions(r):
    with pytest.raises(ValueError, match="r must be in"):
        top_fraction_mask(torch.rand(1, 2, 2), r)


def test_loss_by_hand():
    l_c = torch.tensor([[[4.0, 1.0], [2.0, 1.0]]])
    l_p = torch.tensor([[[1.0, 5.0], [2.0, 0.0]]])
    # Mask of r = ½: 4 and 2. min: 1 + 2 = 3. Total mass: 8 + 8 = 16.
    assert suppression_loss(l_c, l_p, r=0.5).tolist() == [3 / 16]
    # Whole map: 1 + 1 + 2 + 0 = 4.
    assert suppression_loss(l_c, l_p, r=1.0).tolist() == [4 / 16]


def test_bounds():
    same = torch.rand(1, 6, 6)
    assert suppression_loss(same, same, r=1.0).item() == pytest.approx(0.5)
    apart = torch.zeros(1, 6, 6)
    apart[0, 0, 0] = 1
    assert suppression_loss(apart, apart.flip(1), r=0.35).item() == 0
    assert suppression_loss(torch.zeros(1, 6, 6), torch.zeros(1, 6, 6)).item() == 0


def test_gradient_lowers_the_overlap_only_inside_the_mask():
    l_c = torch.tensor([[[4.0, 1.0], [2.0, 1.0]]], requires_grad=True)
    l_p = torch.tensor([[[1.0, 5.0], [2.5, 0.0]]])
    (gradient,) = torch.autograd.grad(suppression_loss(l_c, l_p, r=0.5).sum(), l_c)
    # d/dl_c of (1 + l_c[1,0]) / 16.5: 1/16.5 there through the minimum, −3/16.5² everywhere through the mass.
    mass = -3 / 16.5**2
    torch.testing.assert_close(gradient, torch.tensor([[[mass, mass], [1 / 16.5 + mass, mass]]]))
