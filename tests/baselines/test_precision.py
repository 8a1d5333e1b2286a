"""bf16 forward passes give nearly the maps of float32, and nearly their scores.

bf16 has 8 significant bits: what a layer adds up is off by up to 1/256, a probability by some thousandths. RISE, Score-CAM and
SISE weight hundreds of masks with such probabilities, errors that do not lean one way; so the order of a map's pixels, which is
all that mIoU, Bbox, AD and AI read, hardly changes, and EBPG, a ratio of sums, changes by less than a probability does. Two
hundredths are allowed for one image; a mean over thousands of them is nearer by far, and intervals are wider than that.
"""

import pytest
import torch
from scipy.stats import spearmanr

from baselines import rise, score_cam, sise
from ibsgl.metrics.localization import bbox, ebpg, miou
from ibsgl.networks.split import autocast

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("network", ["resnet", "vgg", "multilabel"])
@pytest.mark.parametrize(
    ("module", "method", "share"),
    # SISE's threshold is steep: a pixel near it moves by 25 times as much as its layer's map.
    [(rise, rise.RISE(masks=200, cells=3), 0.02), (score_cam, score_cam.ScoreCAM(), 0.02), (sise, sise.SISE(), 0.1)],
    ids=["rise", "score_cam", "sise"],
)
def test_half_precision_passes(module, method, share, network, device, networks, images, targets, monkeypatch):
    device = torch.device(device)
    network, images, targets = networks[network].to(device), images.to(device), targets.to(device)
    # Louder logits: a random network hardly tells its inputs apart, and would be all rounding.
    network.head[-1].weight.data *= 10

    def maps(enabled):
        # On CUDA this is what autocast does by itself.
        half = lambda device: torch.autocast(device.type, torch.bfloat16, enabled=enabled)  # noqa: E731
        monkeypatch.setattr(module, "autocast", half)
        return method(network, images, targets, torch.Generator(device).manual_seed(0))

    full, half = maps(False), maps(True)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=share * full.max().item())
    region = torch.zeros_like(full, dtype=torch.bool)
    region[:, 5:30, 10:40] = True
    for one, other in zip(full.flatten(1).cpu(), half.flatten(1).cpu(), strict=True):
        assert spearmanr(one, other).statistic > 0.99
    for metric in (ebpg, miou, bbox):
        assert (metric(full, region) - metric(half, region)).abs().max() < 0.02


def test_only_cuda_is_cast():
    with autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    if torch.cuda.is_available():
        with autocast(torch.device("cuda")):
            assert torch.get_autocast_dtype("cuda") == torch.bfloat16
