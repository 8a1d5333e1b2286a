"""Under CUDA's bf16 autocast, tried on the CPU, the maps are float32 and close to those of full precision."""

import pytest
import torch

from baselines import rise, score_cam


@pytest.mark.parametrize(
    ("module", "method"),
    [(rise, rise.RISE(masks=40, cells=3)), (score_cam, score_cam.ScoreCAM())],
    ids=["rise", "score_cam"],
)
def test_half_precision_passes(module, method, networks, images, targets, monkeypatch):
    full = method(networks["resnet"], images, targets)
    monkeypatch.setattr(module, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    half = method(networks["resnet"], images, targets)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.02 * full.max().item())
