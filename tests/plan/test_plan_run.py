"""The plan of a whole run, without its data."""

import pytest
import torch
from plan_configs import shipped, small, voc

from ibsgl import config
from ibsgl.plan import Jobs, make_plan


def test_the_reproduction_is_planned_without_its_data(elsewhere):
    plan = make_plan(shipped("voc2007"), calibration=False)
    assert {name: split.pairs for name, split in plan.data.splits.items()} == {
        "train": 7122,
        "held_out": 791,
        "test": 7632,
    }
    assert plan.disk_bytes["archives"] == 460032000 + 451020800
    eight = {
        "Grad-CAM",
        "Grad-CAM++",
        "Extremal Perturbation",
        "RISE",
        "Score-CAM",
        "Integrated Gradients",
        "FullGrad",
        "SISE",
    }
    for network in plan.networks:
        work = {step.name: step.work for step in plan.steps if step.model == network.model}
        assert eight <= work.keys()
        assert all(work[name].flops > 0 for name in eight)


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
    # Two methods of many passes on two variants.
    assert plan.disk_bytes["maps, uncompressed"] == 7632 * 4 * 224 * 224 * 4


def test_a_gpu_that_is_not_here_is_not_timed(elsewhere, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = make_plan(small("resnet_small", size=32, device="cuda"))
    assert plan.device is None
    assert plan.total().seconds is None


VARIANTS = {"boxes": {"teacher": "boxes"}, "direct": {"mode": "end_to_end"}, "longer": {"loss": "none"}}
ON = {"variants": ["pretrained", "guided"], "replicates": 2}


def planned(alternatives=None, **changes):
    changes = {"methods_on": ON, "classifier": {"epochs": 1}} | changes
    settings = small("vgg_small", size=32, replicates=3, variants=VARIANTS, alternatives=alternatives or {}, **changes)
    return make_plan(settings, calibration=False)


def test_replicates_and_variants_are_counted(elsewhere):
    plan = planned()
    networks = {step.name: step.networks for step in plan.steps}
    per_variant = [f"{name} training" for name in ("control", "guided", *VARIANTS)]
    assert {
        name: networks[name] for name in ("classifier", "feature statistics", "L^ib for the guidance", *per_variant)
    } == (dict.fromkeys(("classifier", "feature statistics", "L^ib for the guidance", *per_variant), 3))
    # On six variants of three replicates, RISE on two variants of two replicates, the rest on the pretrained variants.
    assert networks["Grad-CAM"] == networks["Eq. 3 (HiResCAM)"] == networks["predictions"] == networks["losses"] == 18
    assert networks["deletion curves"] == 18
    assert networks["RISE"] == 4
    assert networks["Random"] == networks["diagnostics of L^ib"] == 3
    assert networks["cross-scoring"] == 15
    assert networks["scores"] == 18 + 18 + 4 + 4 * 3
    work = {step.name: step.work.flops for step in plan.steps}
    assert work["guided training"] == work["boxes training"] > work["control training"] == work["longer training"]
    assert work["direct training"] > work["control training"]
    one = make_plan(small("vgg_small", size=32), calibration=False)
    for name in ("classifier", "guided training", "L^ib for the guidance"):
        assert work[name] == 3 * next(step.work.flops for step in one.steps if step.name == name)
    # Six state dicts in each of three replicates.
    assert plan.disk_bytes["weights"] == 18 * plan.networks[0].bytes
    assert plan.disk_bytes["L^ib for the guidance"] == 3 * one.disk_bytes["L^ib for the guidance"]
    assert plan.disk_bytes["maps, uncompressed"] == 4 * 6 * 32 * 32 * 4


def test_further_images_are_predicted_and_nothing_else(elsewhere):
    data = {"source": "shapes", "held_out": 0.3, "trainval": 24, "test": 6, "size": 32}
    few, many = ({step.name: step for step in planned(data=data | {"further": number}).steps} for number in (0, 50))
    assert few.keys() == many.keys()
    assert [name for name in few if few[name] != many[name]] == ["predictions"]
    assert (few["predictions"].examples, many["predictions"].examples) == (6, 56)


def test_an_alternative_costs_the_jobs_that_differ(elsewhere):
    everywhere = {"methods_on": ON | {"replicates": 3}}
    plan = planned(
        {
            "classes": {"tables": {"average": "classes"}},
            "value": {"metrics": {"miou": {"mode": "value"}}},
            "never": {"suppression": {"when": "never"}},
            "alpha": {"bottleneck": {"alpha": 5}},
            "masks": {"methods": {"rise": {"masks": 16}}},
            "epochs": {"classifier": {"epochs": 2}},
        },
        **everywhere,
    )
    base = {step.name: step.work.flops for step in plan.steps}
    training = ["classifier", *(name for name in base if name.endswith(" training"))]
    guided = [f"{name} training" for name in ("guided", "boxes", "direct")]
    bottleneck = ["feature statistics", "L^ib for the guidance"]
    evaluation = base.keys() - {*training, *bottleneck, "RISE"}

    def flops(*names):
        return sum(base[name] for name in names)

    # RISE runs on the pretrained and the guided variant; only the guided one may change.
    assert {name: work.flops for name, work in plan.alternatives.items()} == {
        "classes": 0,
        "value": flops(*evaluation),
        "never": flops(*guided, *evaluation) + base["RISE"] / 2,
        # The teacher boxes needs no L^ib.
        "alpha": flops(*bottleneck, "guided training", "direct training", *evaluation) + base["RISE"] / 2,
        "masks": pytest.approx(flops(*evaluation) + 2 * base["RISE"], rel=0.05),
        "epochs": planned(**everywhere, **{"classifier": {"epochs": 2}}).total().flops,
    }
    assert plan.total().flops == plan.total("net").flops + sum(work.flops for work in plan.alternatives.values())
    # 18 networks. Of three replicates, three variants are trained again in one alternative, two in another, all in the last.
    assert plan.disk_bytes["weights"] == (18 + 9 + 6 + 18) * plan.networks[0].bytes


def test_where_a_method_is_not_run_its_alternative_measures_nothing_again(elsewhere):
    settings = small("vgg_small", size=32, replicates=3, alternatives={"masks": {"methods": {"rise": {"masks": 16}}}})
    jobs = Jobs(settings.alternative("masks"), "net", Jobs(settings, "net"))
    # RISE is run in one of the replicates.
    assert (jobs.count("evaluate"), jobs.count("guide", "guided"), jobs.stored_maps()) == (1, 0, {"rise": 2})
    assert jobs.methods()["gradcam"] == 3


def test_an_alternative_of_the_data_has_its_own_numbers(elsewhere):
    root = "gone"
    settings = voc(root).model_copy(
        update={
            "models": {"net": config.schema.Model(arch="vgg_small", image_size=32)},
            "methods": {"gradcam": {}},
            "alternatives": {"drop": {"data": {"difficult": "drop"}}, "keep": {"data": {"difficult": "keep"}}},
        }
    )
    plan = make_plan(settings, {"trainval": 5011, "test": 4952}, calibration=False)
    assert plan.alternatives["keep"].flops == 0
    assert 0.8 * plan.total("net").flops < plan.alternatives["drop"].flops < plan.total("net").flops


def test_other_guidance_losses_are_in_the_plan(elsewhere):
    variants = {name: {"loss": name} for name in ("energy", "rrr", "saliency_guided")}
    settings = small("resnet_small", size=32, variants=variants)
    plan = make_plan(settings, calibration=False)
    work = {step.name: step.work for step in plan.steps}
    plain = work["control training"]
    for name in variants:
        assert work[f"{name} training"].flops > plain.flops
    # The masked images go through the network a second time, and both losses take gradients down to the image.
    assert work["saliency_guided training"].passes.stem > plain.passes.stem
    assert work["rrr training"].passes.stem == plain.passes.stem
    assert work["rrr training"].flops > work["energy training"].flops
