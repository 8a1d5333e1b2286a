"""EBPG, mIoU and Bbox against hand-computed cases and a plain NumPy loop."""

import numpy as np
import pytest
import torch

from ibsgl.metrics.localization import above_quantile, bbox, ebpg, miou

# Ten pixels 0 … 9; the quantile at 0.8 is 7.2, so the top 20 % are 8 and 9.
RAMP = torch.arange(10.0).reshape(1, 2, 5)


def region(*inside, shape=(1, 2, 5)):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[list(inside)] = True
    return mask


def loop(saliency, inside):
    """All metrics, one image and one pixel at a time, in the words of their definitions."""
    rows = []
    for s, g in zip(saliency.numpy().astype(np.float64), inside.numpy(), strict=True):
        n = int(g.sum())
        kept = s > np.quantile(s, 0.8)
        above_middle = s > (s.min() + s.max()) / 2
        strict = s > np.sort(s.ravel())[::-1][n - 1]
        first = set(sorted(range(s.size), key=lambda i: (-s.ravel()[i], i))[:n])
        rows.append(
            [
                s[g].sum() / s.sum() if s.sum() else 0.0,
                (kept & g).sum() / (kept | g).sum(),
                (above_middle & g).sum() / (above_middle | g).sum(),
                (strict & g).sum() / n,
                sum(i in first for i in np.flatnonzero(g)) / n,
            ]
        )
    return torch.tensor(np.array(rows), dtype=torch.float32)


def metrics(saliency, inside):
    return torch.stack(
        [
            ebpg(saliency, inside),
            miou(saliency, inside),
            miou(saliency, inside, mode="value"),
            bbox(saliency, inside),
            bbox(saliency, inside, ties="index"),
        ],
        dim=1,
    )


def test_hand_computed_ramp():
    inside = region(7, 8, 9)
    assert ebpg(RAMP, inside).tolist() == pytest.approx([24 / 45])
    assert miou(RAMP, inside).tolist() == pytest.approx([2 / 3])
    assert miou(RAMP, inside, top=0.5).tolist() == pytest.approx([3 / 5])  # 5 … 9 kept
    assert miou(RAMP, inside, mode="value").tolist() == pytest.approx([3 / 5])  # above 4.5
    assert bbox(RAMP, inside).tolist() == pytest.approx([2 / 3])  # the third highest value, 7, is not above itself
    assert bbox(RAMP, inside, ties="index").tolist() == [1.0]


def test_hand_computed_integer_ties():
    saliency = torch.tensor([[[3.0, 3.0, 1.0], [1.0, 1.0, 0.0]]])
    inside = region(1, 2, 3, shape=(1, 2, 3))
    assert ebpg(saliency, inside).tolist() == pytest.approx([5 / 9])
    # The third highest value is 1: above it are both 3s, one of them inside.
    assert bbox(saliency, inside).tolist() == pytest.approx([1 / 3])
    # By index the three are pixels 0, 1 and 2.
    assert bbox(saliency, inside, ties="index").tolist() == pytest.approx([2 / 3])
    # The quantile at 0.8 is the second of the 3s: nothing is strictly above it.
    assert miou(saliency, inside).tolist() == [0.0]


@pytest.mark.parametrize("levels", [None, 4, 20])
def test_agrees_with_a_numpy_loop(levels):
    generator = torch.Generator().manual_seed(1)
    saliency = torch.rand(12, 11, 13, generator=generator)
    if levels:
        saliency = (saliency * levels).floor()
    inside = torch.rand(12, 11, 13, generator=generator) < torch.linspace(0.05, 0.95, 12)[:, None, None]
    assert torch.equal(metrics(saliency, inside), loop(saliency, inside))


def test_quantile_is_numpys():
    saliency = torch.rand(5, 9, 7, generator=torch.Generator().manual_seed(2))
    for top in (0.15, 0.2, 0.35, 0.999, 0.001):
        expected = np.stack([s > np.quantile(s, 1 - top) for s in saliency.double().numpy()])
        assert (above_quantile(saliency, top).numpy() == expected).all()


@pytest.mark.parametrize(("side", "levels"), [(1, 2), (2, 1), (3, 2), (7, 3), (20, 50)])
def test_quantile_is_numpys_on_maps_with_ties(side, levels):
    saliency = torch.randint(0, levels, (8, side, side), generator=torch.Generator().manual_seed(side)) / 7
    for top in (0.15, 0.2, 1 / 3, 0.5, 0.999, 0.001):
        expected = np.stack([s > np.quantile(s, 1 - top) for s in saliency.double().numpy()])
        assert (above_quantile(saliency, top).numpy() == expected).all()


def test_constant_and_zero_maps():
    inside = region(7, 8, 9)
    for level in (0.0, 2.0):
        flat = torch.full((1, 2, 5), level)
        share = 0.3 if level else 0.0
        assert metrics(flat, inside)[0].tolist() == pytest.approx([share, 0, 0, 0, 0])
    assert bbox(torch.zeros(1, 2, 5), region(0, 1, 9), ties="index").tolist() == pytest.approx([2 / 3])


def test_region_covering_the_whole_image():
    everything = torch.ones(1, 2, 5, dtype=torch.bool)
    assert metrics(RAMP, everything)[0].tolist() == pytest.approx([1.0, 0.2, 0.5, 0.9, 1.0])


def test_several_boxes_are_one_region():
    assert bbox(RAMP, region(0, 1, 8, 9)).tolist() == [0.5]


def test_a_map_scores_the_same_alone_and_in_a_batch():
    generator = torch.Generator().manual_seed(3)
    saliency, inside = torch.rand(6, 40, 41, generator=generator), torch.rand(6, 40, 41, generator=generator) < 0.3
    alone = torch.cat([metrics(saliency[i : i + 1], inside[i : i + 1]) for i in range(6)])
    assert torch.equal(metrics(saliency, inside), alone)


def test_more_elements_than_torch_quantile_takes():
    saliency = torch.zeros(3, 2400, 2400)
    saliency[:, 1000:1400, 1000:1400] = 1
    assert above_quantile(saliency, 0.2).sum().item() == 3 * 400 * 400


@pytest.mark.parametrize(
    ("saliency", "inside", "message"),
    [
        (RAMP, torch.zeros(1, 2, 5, dtype=torch.bool), r"region is empty for entries \[0\]"),
        (RAMP, torch.ones(1, 2, 5), "region must be bool"),
        (RAMP, torch.ones(2, 5, dtype=torch.bool), "share one shape"),
        (RAMP - 1, region(1), ">= 0"),
        (RAMP / 0, region(1), "finite"),
    ],
)
def test_refusals(saliency, inside, message):
    for metric in (ebpg, miou, bbox):
        with pytest.raises(ValueError, match=message):
            metric(saliency, inside)


def test_unknown_variants_and_fractions():
    with pytest.raises(ValueError, match="mode must be"):
        miou(RAMP, region(1), mode="median")
    with pytest.raises(ValueError, match="ties must be"):
        bbox(RAMP, region(1), ties="random")
    with pytest.raises(ValueError, match="top must be"):
        miou(RAMP, region(1), top=20)
