"""Average Drop, Average Increase and the reduced image, by hand and against a plain NumPy loop."""

import numpy as np
import pytest
import torch

from ibsgl.metrics.faithfulness import average_drop, average_increase, keep_top

# 20 pixels 0 … 19; the quantile at 0.85 is 16.15, so the top 15 % are 17, 18 and 19.
RAMP = torch.arange(20.0).reshape(1, 4, 5)
IMAGE = torch.full((1, 3, 4, 5), 0.5)


def test_keep_top_keeps_the_top_pixels_in_every_channel():
    kept = keep_top(IMAGE, RAMP)
    assert kept.flatten(2)[0].tolist() == [[0.0] * 17 + [0.5] * 3] * 3


def test_keep_top_fills_with_a_colour():
    colour = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    kept = keep_top(IMAGE, RAMP, fill=colour).flatten(2)[0]
    for channel, level in zip(kept, (0.1, 0.2, 0.3), strict=True):
        assert channel.tolist() == pytest.approx([level] * 17 + [0.5] * 3)


def test_scale_multiplies_by_the_map_between_zero_and_one():
    kept = keep_top(IMAGE, RAMP + 3, mode="scale")
    assert kept[0, 1].flatten().tolist() == pytest.approx([0.5 * i / 19 for i in range(20)])
    filled = keep_top(IMAGE, RAMP, fill=torch.ones(3, 1, 1), mode="scale")
    assert filled[0, 2].flatten().tolist() == pytest.approx([0.5 * i / 19 + 1 - i / 19 for i in range(20)])


@pytest.mark.parametrize("mode", ["top", "scale"])
@pytest.mark.parametrize("level", [0.0, 4.0])
def test_a_constant_map_marks_nothing(mode, level):
    assert keep_top(IMAGE, torch.full((1, 4, 5), level), mode=mode).abs().sum() == 0


def test_ties_at_the_threshold_are_out():
    tied = torch.tensor([[[2.0, 2.0, 2.0, 2.0, 2.0], [1.0] * 5, [0.0] * 5, [0.0] * 5]])
    assert keep_top(IMAGE, tied).abs().sum() == 0  # the quantile at 0.85 is 2
    assert (keep_top(IMAGE, tied, top=0.3) > 0).sum() == 15  # at 0.7 it is 1: the five 2s, three channels


@pytest.mark.parametrize("mode", ["top", "scale"])
def test_keep_top_against_numpy_and_alone(mode):
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(4, 3, 8, 9, generator=generator), torch.rand(4, 8, 9, generator=generator)
    kept = keep_top(images, maps, mode=mode)
    for i, (image, m) in enumerate(zip(images.numpy(), maps.numpy(), strict=True)):
        weight = m > np.quantile(m.astype(np.float64), 0.85) if mode == "top" else (m - m.min()) / (m.max() - m.min())
        np.testing.assert_allclose(kept[i].numpy(), image * weight, atol=1e-7)
        assert torch.equal(kept[i], keep_top(images[i : i + 1], maps[i : i + 1], mode=mode)[0])


def test_average_drop_by_hand():
    p_full, p_kept = torch.tensor([0.8, 0.5, 0.0, 0.0, 0.4]), torch.tensor([0.2, 0.9, 0.0, 0.3, 0.4])
    assert average_drop(p_full, p_kept).tolist() == pytest.approx([0.75, 0, 0, 0, 0])
    assert average_drop(p_full, p_kept, relative=False).tolist() == pytest.approx([0.6, 0, 0, 0, 0])
    assert average_increase(p_full, p_kept).tolist() == [0, 1, 0, 1, 0]


def test_drop_and_increase_against_numpy():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 50, generator=generator)
    expected = [max(0.0, x - y) / x for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert average_drop(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert average_increase(a, b).tolist() == [float(y > x) for x, y in zip(a.tolist(), b.tolist(), strict=True)]


def test_refusals():
    with pytest.raises(ValueError, match="do not fit"):
        keep_top(IMAGE, RAMP[:, :2])
    with pytest.raises(ValueError, match="finite"):
        keep_top(IMAGE, RAMP * torch.nan)
    with pytest.raises(ValueError, match="mode must be"):
        keep_top(IMAGE, RAMP, mode="blur")
    with pytest.raises(ValueError, match="share one shape"):
        average_drop(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="p_kept must hold probabilities"):
        average_increase(torch.zeros(2), torch.tensor([0.1, torch.nan]))
