"""bf16 passes give nearly the maps of float32, and nearly their scores.

bf16 has 8 significant bits, so what a layer adds up is off by up to 1/256, and a probability by thousandths. RISE, Score-CAM
and SISE weight hundreds of masks with such probabilities, and their errors do not lean one way. The gradients of Integrated
Gradients and Extremal Perturbation are off by more, because a ReLU near zero can be on in one precision and off in the other.
docs/speed.md has what trained networks and photographs give.
"""

import pytest
import torch
from scipy.stats import spearmanr

from ibsgl import attribution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.metrics.localization import bbox, ebpg, miou

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]
# By method: settings, share of the largest value by which a pixel may differ, least rank correlation, most change of a metric.
METHODS = {
    "rise": ({"masks": 200, "cells": 3}, 0.02, 0.99, 0.02),
    "score_cam": ({}, 0.02, 0.99, 0.02),
    # SISE's threshold is steep: a pixel near it moves by 25 times as much as its layer's map.
    "sise": ({}, 0.1, 0.99, 0.02),
    "integrated_gradients": ({"steps": 20}, 0.3, 0.9, 0.05),
    "extremal_perturbation": (
        {"iterations": 20, "lr": 0.2, "grid_spacing": 3, "sigma": 9.0, "weight": 3.0},
        0.1,
        0.95,
        0.05,
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("network", ["resnet", "vgg", "multilabel"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_passes(method, network, device, networks, images, targets):
    device = torch.device(device)
    network, images, targets = networks[network].to(device), images.to(device), targets.to(device)
    # Louder logits: a random network hardly tells its inputs apart, and would be all rounding.
    network.head[-1].weight.data *= 10
    settings, share, least, most = METHODS[method]

    def maps(precision):
        row = attribution.row(method, settings, precision)
        return row(network, images, targets, torch.Generator(device).manual_seed(0))

    full, half = maps("float32"), maps("bfloat16")
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=share * full.max().item())
    region = torch.zeros_like(full, dtype=torch.bool)
    region[:, 5:30, 10:40] = True
    for one, other in zip(full.flatten(1).cpu(), half.flatten(1).cpu(), strict=True):
        assert spearmanr(one, other).statistic > least
    for metric in (ebpg, miou, bbox):
        assert (metric(full, region) - metric(half, region)).abs().max() < most


@pytest.mark.parametrize("method", sorted(set(attribution.names()) - set(METHODS) - {"captum", "grad_cam", "zennit"}))
def test_all_other_methods_stay_in_float32(method, networks, images, targets):
    network = networks["resnet"]
    if attribution.mixed_cost(method, {}):
        pytest.skip("it is one of the methods above with other settings")
    context = {}
    if "statistics" in attribution.requirements(method):
        context["statistics"] = FeatureStatistics().update(network.stem(images).detach())
    if "region" in attribution.requirements(method):
        context["region"] = torch.ones(len(images), *images.shape[2:], dtype=torch.bool)
    full, half = (
        attribution.row(method, {}, precision)(network, images, targets, torch.Generator().manual_seed(0), **context)
        for precision in ("float32", "bfloat16")
    )
    assert torch.equal(full, half)
