"""The plan of a whole run, without its data."""

import pytest
import torch
from plan_configs import shipped, small, voc

from ibsgl import config
from ibsgl.plan import make_plan


def test_the_reproduction_is_planned_without_its_data(elsewhere):
    plan = make_plan(shipped("voc2007"), calibration=False)
    assert {name: split.pairs for name, split in plan.data.splits.items()} == {
        "train": 7122,
        "held_out": 791,
        "test": 7632,
    }
    assert plan.disk_bytes["archives"] == 460032000 + 451020800
    seven = {"Grad-CAM", "Grad-CAM++", "Extremal Perturbation", "RISE", "Score-CAM", "Integrated Gradients", "FullGrad"}
    for network in plan.networks:
        work = {step.name: step.work for step in plan.steps if step.model == network.model}
        assert seven <= work.keys()
        assert all(work[name].flops > 0 for name in seven)


def test_the_papers_run_is_planned_without_its_data(elsewhere):
    """On VGG-16: images × masks × a pass, except for images in two batches; pairs × steps × a pass forward and backward."""
    settings = voc("gone").model_copy(
        update={
            "models": {"vgg": config.schema.Model(arch="vgg16", weights="imagenet")},
            "methods": {"rise": {"masks": 4000}, "extremal_perturbation": {}},
            "batch_size": 32,
        }
    )
    plan = make_plan(settings, {"trainval": 5011, "test": 4952}, calibration=False)
    steps = {step.name: step for step in plan.steps}
    forward = plan.networks[0].flops.full.stem + plan.networks[0].flops.full.head
    assert steps["RISE"].work.flops == pytest.approx(2 * 4952 * 4000 * forward, rel=0.02)
    assert steps["Extremal Perturbation"].work.flops == 2 * 7632 * 800 * 2 * forward
    assert plan.disk_bytes["maps, uncompressed"] == 7632 * 11 * 224 * 224 * 4


def test_a_gpu_that_is_not_here_is_not_timed(elsewhere, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = make_plan(small("resnet_small", size=32, device="cuda"))
    assert plan.device is None
    assert plan.total().seconds is None
