"""RISE against a plain loop over masks, expectations known in closed form, and a planted object."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from baselines.rise import RISE
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator


class _Brightness(nn.Module):
    """Multi-label logits of an image whose sigmoid is its mean brightness in one patch (class 0) and 0.3 (class 1)."""

    def __init__(self, rows: slice, columns: slice):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.zero = nn.Parameter(torch.zeros(()))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        patch = x[:, :, self.rows, self.columns].mean((1, 2, 3)) + self.zero
        return torch.stack([patch, torch.full_like(patch, 0.3)], 1).logit()


def _brightness(rows: slice, columns: slice) -> SplitNetwork:
    return SplitNetwork(nn.Identity(), _Brightness(rows, columns), multilabel=True)


def _line(bits: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation of bits (n,) at half-pixel centres to (length,), the ends continued."""
    centres = (np.arange(length) + 0.5) * len(bits) / length - 0.5
    return np.interp(centres, np.arange(len(bits)), bits)


def _plain_mask(bits: np.ndarray, shift: tuple[int, int], height: int, width: int) -> np.ndarray:
    cells = len(bits)
    cell = (-(-height // cells), -(-width // cells))
    columns = np.stack([_line(column, (cells + 1) * cell[0]) for column in bits.T], 1)
    large = np.stack([_line(row, (cells + 1) * cell[1]) for row in columns])
    return large[shift[0] : shift[0] + height, shift[1] : shift[1] + width]


@pytest.mark.parametrize("fill", ["black", "mean"])
@pytest.mark.parametrize("name", ["resnet", "multilabel"])
def test_matches_a_plain_loop(networks, images, targets, name, fill):
    # 48×64 by 5 cells: cells of 10×13, masks cut from 60×78.
    network, cells, p, count = networks[name].double(), 5, 0.3, 23
    network.head[-1].weight.data *= 20
    images = images[:2].double()
    maps = RISE(count, cells, p, fill, chunk=7)(network, images, targets[:2], [generator(0, i) for i in range(2)])
    colour = network.mean.double().numpy() if fill == "mean" else np.zeros((3, 1, 1))
    for i, image in enumerate(images.numpy()):
        numbers = torch.rand(count, cells**2 + 2, generator=generator(0, i)).double().numpy()
        expected = np.zeros((48, 64))
        for row in numbers:
            bits = (row[:-2] < np.float32(p)).astype(float).reshape(cells, cells)
            mask = _plain_mask(bits, (int(row[-2] * 10), int(row[-1] * 13)), 48, 64)
            with torch.no_grad():
                logits = network(torch.from_numpy(image * mask + colour * (1 - mask))[None])[0].numpy()
            c = targets[i]
            score = 1 / (1 + np.exp(-logits[c])) if name == "multilabel" else np.exp(logits[c]) / np.exp(logits).sum()
            expected += score * mask
        np.testing.assert_allclose(maps[i].numpy(), expected / (count * p), rtol=1e-6)


def test_mean_over_draws_is_the_expectation_over_all_masks():
    # 2×2 cells on 4×6 pixels: 2^4 grids × 2·3 shifts, each with its probability, can be enumerated.
    p, rows, columns = 0.3, slice(1, 3), slice(3, 5)
    image = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    first = second = 0
    for bits in itertools.product([0, 1], repeat=4):
        for shift in itertools.product(range(2), range(3)):
            mask = _plain_mask(np.reshape(bits, (2, 2)), shift, 4, 6)
            shown = np.prod([p if bit else 1 - p for bit in bits]) / 6
            score = (image[0].numpy() * mask)[:, rows, columns].mean()
            first = first + shown * score * mask / p
            second = second + shown * (score * mask / p) ** 2
    count = 20000
    method = RISE(count, cells=2, p=p, chunk=1000)
    found = method(_brightness(rows, columns), image, torch.tensor([0]), generator(0, "expectation"))[0].numpy()
    error = np.sqrt((second - first**2) / count)
    assert (np.abs(found - first) < 4.5 * error).all()
    assert (error < 0.02 * first.max()).all()  # it would tell p or the shift being wrong


def test_a_score_that_ignores_the_image_has_a_map_of_its_value():
    # E[M] = p at every pixel, so that S = 0.3 everywhere: the crop favours no place.
    image = torch.ones(1, 3, 12, 18)
    found = RISE(4000, cells=3, chunk=1000)(_brightness(slice(0, 1), slice(0, 1)), image, torch.tensor([1]))
    torch.testing.assert_close(found, torch.full_like(found, 0.3), rtol=0, atol=4.5 * 0.3 / 4000**0.5)


def test_finds_a_planted_object():
    image = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    found = RISE(1500, chunk=500)(_brightness(slice(40, 50), slice(15, 25)), image, torch.tensor([0]))[0]
    row, column = divmod(found.argmax().item(), 70)
    assert 40 <= row < 50
    assert 15 <= column < 25


def test_classes_of_an_image_share_its_passes_if_they_share_the_draw():
    network = _brightness(slice(0, 2), slice(0, 2))
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))[[0, 0, 1, 1]]
    targets = torch.tensor([0, 1, 0, 1])
    method = RISE(10, chunk=6)
    method(network, images, targets, [generator(0, i) for i in (0, 0, 1, 1)])
    assert network.head.sizes == [6, 4, 6, 4]
    network.head.sizes.clear()
    found = method(network, images, targets, [generator(0, i) for i in (0, 0, 1, 2)])
    assert network.head.sizes == [6, 4, 6, 4, 6, 4]
    assert torch.equal(found[3], method(network, images[3:], targets[3:], generator(0, 2))[0])


def test_a_sum_over_masks_keeps_its_precision_under_autocast():
    network, image = _brightness(slice(0, 1), slice(0, 1)), torch.ones(1, 3, 8, 8)
    expected = RISE(256, chunk=256)(network, image, torch.tensor([1]))
    with torch.autocast("cpu", torch.bfloat16):
        found = RISE(256, chunk=256)(network, image, torch.tensor([1]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": 0}, "masks"),
        ({"cells": 0}, "cells"),
        ({"p": 0.0}, "p"),
        ({"p": 1.1}, "p"),
        ({"fill": "white"}, "fill"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=f"rise: {message} must"):
        RISE(**settings)
