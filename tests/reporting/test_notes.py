"""The notes under a table say which form of each metric and which guidance a run used."""

from types import SimpleNamespace

import pytest
import yaml
from table_rows import ROOT

from ibsgl import config
from ibsgl.reporting.notes import method_notes, pass_notes, variant_notes

CONFIG = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text(encoding="utf-8"))


def test_the_notes_of_a_default_run():
    # Settings whose defaults follow from a measurement are given.
    given = config.merge(CONFIG, {"guidance": {"step_size": 0.05, "steps": 5, "training": {"lr": 0.001}}})
    assert method_notes(config.load(given), "resnet") == [
        "Network: resnet_small, from random weights, epochs of classifier training: 1. The published baseline values are of "
        "TorchRay's networks.",
        "Training: 0.3 of the training images are held out for the losses; no augmentation.",
        "Region: the class's boxes, difficult objects: keep. mIoU: the top 0.2 of the pixels, strictly above the quantile. "
        "Bbox: strictly above the N-th value.",
        "AD and AI: the top 0.15 of the pixels kept, the rest black; relative drop.",
        "Guidance: feature, 5 relative step(s) of 0.05, D_KL softmax, mean over channels, 2 epochs of sgd at 0.001; "
        "suppression always; bottleneck reduction mean.",
    ]


def test_every_form_has_a_note():
    changed = config.merge(
        CONFIG,
        {
            "metrics": {
                "region": "segmentation",
                "miou": {"mode": "value"},
                "bbox": {"ties": "index"},
                "kept": {"mode": "scale", "fill": "mean"},
                "average_drop": {"form": "absolute"},
            },
            "guidance": {"step_unit": "absolute"},
            "models": {"resnet": {"override": {"suppression": {"when": "never"}}}},
        },
    )
    _, _, region, faithfulness, guidance = method_notes(config.load(changed), "resnet")
    assert region.startswith("Region: the class's segmentation, ")
    assert region.endswith("mIoU: values above half of the map's range. Bbox: exactly N pixels, ties by index.")
    assert faithfulness == "AD and AI: the image times the map scaled to [0, 1], on mean; absolute drop."
    assert "absolute step(s)" in guidance
    assert "suppression never" in guidance


def test_another_loss_of_guidance_has_its_settings_with_defaults_in_the_notes():
    changed = config.merge(CONFIG, {"guidance": {"loss": "saliency_guided"}, "variants": {"shuffled": False}})
    changed["variants"] = {"rights": {"loss": "rrr", "settings": {"weight": 0.01}}}
    loaded = config.load(changed)
    guidance = method_notes(loaded, "resnet")[4]
    assert guidance.startswith("Guidance: the loss saliency_guided (weight 1.0, k 0.5")
    assert "step" not in guidance.partition("epochs")[0]
    assert "Variant rights: the loss rrr (weight 0.01). Sees boxes: yes." in variant_notes(loaded, "resnet")


@pytest.mark.parametrize(
    ("model", "description"),
    [
        ({"arch": "resnet50", "weights": "IMAGENET1K_V1"}, "torchvision's resnet50, from the weights IMAGENET1K_V1"),
        ({"arch": "vgg16", "source": "torchray", "weights": "data/a.pth"}, "TorchRay's vgg16, from the weights a.pth"),
    ],
)
def test_the_network_is_named_with_its_source(model, description):
    # Without the checks: neither weights nor classes are there.
    loaded = config.parse(CONFIG | {"models": {"first": model}})
    assert method_notes(loaded, "first")[0] == (
        f"Network: {description}, epochs of classifier training: 1. The published baseline values are of TorchRay's networks."
    )


def test_the_passes_of_stored_maps_are_those_of_all_files():
    """RISE is compiled in one job and not in another; others are never compiled."""
    fast = {"precision": "bfloat16", "folded": True}
    measurements = SimpleNamespace(
        metadata={
            "passes": {
                "rise": [fast | {"compiled": True}, fast | {"compiled": False}],
                "score_cam": [fast | {"compiled": False}],
                "sise": [fast | {"compiled": False}],
                "ig": [{"precision": "float32", "folded": False, "compiled": False}],
            },
            "labels": {"rise": "RISE", "score_cam": "Score-CAM", "sise": "SISE", "ig": "Integrated Gradients"},
        }
    )
    assert pass_notes(measurements) == [
        "Passes: RISE: bfloat16 (batch norm folded) or bfloat16 (batch norm folded, compiled); "
        "Score-CAM, SISE: bfloat16 (batch norm folded); Integrated Gradients: float32. All else is in float32."
    ]
    measurements.metadata["passes"] = {}
    assert pass_notes(measurements) == []
