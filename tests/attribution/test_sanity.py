"""The sanity methods bracket all others: the oracle has the best value, noise has the box's share."""

import pytest
import torch

from ibsgl import attribution
from ibsgl.attribution.sanity import Center, Oracle, Random
from ibsgl.metrics import faithfulness, localization
from ibsgl.networks import build_network
from ibsgl.randomness import generator

IMAGES, TARGETS = torch.rand(4, 3, 40, 60), torch.tensor([0, 1, 0, 1])
NETWORK = build_network("vgg_small", 2, width=1)


@pytest.fixture
def region():
    region = torch.zeros(4, 40, 60, dtype=torch.bool)
    region[0, 5:15, 5:20] = True  # 6 % of the image
    region[1, 3:30, 2:50] = True  # 54 %
    region[2, 0:40, 0:60] = True  # all of it
    region[3, 2:8, 2:8] = region[3, 30:38, 40:50] = True  # two boxes
    return region


def test_oracle_has_all_there_is(region):
    saliency = Oracle()(NETWORK, IMAGES, TARGETS, region=region)
    assert localization.ebpg(saliency, region).tolist() == [1, 1, 1, 1]
    assert (localization.bbox(saliency, region) > 0.95).all()
    # The top fifth of the pixels: the whole of a small box, a fifth of the image in a large one.
    miou = localization.miou(saliency, region)
    assert miou[0] == 1
    assert miou[1].item() == pytest.approx(0.2 / 0.54, abs=0.01)
    assert miou[3] == 1
    kept = faithfulness.keep_top(IMAGES, saliency)
    assert (kept.flatten(1) > 0).any(1).all()


def test_center_is_symmetrical_and_peaks_in_the_middle():
    saliency = Center()(NETWORK, IMAGES, TARGETS)
    torch.testing.assert_close(saliency, saliency.flip(1))
    torch.testing.assert_close(saliency, saliency.flip(2))
    assert saliency[0, 19, 29] == saliency.max()
    # One standard deviation, a quarter of each side, off the middle of one axis.
    assert (saliency[0, 9:11, 29:31].mean() / saliency.max()).item() == pytest.approx(0.6065, abs=0.01)
    with pytest.raises(ValueError, match="center: sigma"):
        attribution.get("center", sigma=0.0)


def test_random_is_uniform_noise_of_the_image(region):
    generators = [generator(0, "random", i) for i in range(4)]
    saliency = Random()(NETWORK, IMAGES, TARGETS, generators)
    assert (saliency[0] != saliency[1]).any()
    torch.testing.assert_close(localization.ebpg(saliency, region), region.float().mean((1, 2)), atol=0.02, rtol=0)
