"""Each guidance loss but the paper's lowers what it minimises, against the control, on small built-in data."""

import copy
from pathlib import Path

import pytest
import torch

from ibsgl.config import parse
from ibsgl.guidance import GuidanceSettings
from ibsgl.networks import build_network
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.classifier import train_classifier
from ibsgl.training.guided import train_guided
from ibsgl.training.settings import ClassifierSettings, TrainingSettings

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
GUIDED = {
    "energy": {"loss": "energy", "settings": {"weight": 3.0}},
    "rrr": {"loss": "rrr", "settings": {"weight": 1e-2}},
    "saliency_guided": {"loss": "saliency_guided"},
}


@pytest.fixture(scope="module")
def trained(small_shapes, tmp_path_factory):
    """By seed, the data's classifier and its control; and a function that trains further from the classifier."""
    data, folder = small_shapes(trainval=240, test=6), tmp_path_factory.mktemp("lowering")

    def further(start, seed, guidance):
        network = copy.deepcopy(start)
        train_guided(
            network,
            data,
            TrainingSettings(epochs=2, batch_size=16, lr=1e-3),
            guidance=guidance,
            suppression=SuppressionSettings(),
            l_ib=None,
            name="net",
            seed=seed,
            device=CPU,
            checkpoint=folder / "none",
            digest=f"{seed} {guidance}",
        )
        return network

    starts, controls = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        network = build_network("resnet_small", 6, width=8)
        settings = ClassifierSettings(epochs=6, batch_size=16, lr=3e-3)
        place = {"device": CPU, "checkpoint": folder / "none", "digest": str(seed)}
        train_classifier(network, data, settings, name="net", seed=seed, **place)
        starts.append(network)
        controls.append(further(network, seed, None))
    return data, starts, controls, further


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
def test_a_loss_lowers_its_own_objective_on_held_out_images(trained, monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import guidance_losses

    data, starts, controls, further = trained
    guidance = GuidanceSettings(**GUIDED[name])
    settings = parse({"name": "lowering", "models": {"net": {"arch": "resnet_small"}}, "methods": {"gradcam": {}}})
    l_ib = torch.zeros(len(data.pairs("held_out")), 2, 2)
    changes = []
    for seed, (start, control) in enumerate(zip(starts, controls, strict=True)):
        own, plain = (
            guidance_losses.held_out_values(network, data, guidance, settings, l_ib, seed)["objective"].mean()
            for network in (further(start, seed, guidance), control)
        )
        changes.append(own - plain)
    assert sum(changes) / len(changes) < 0
    assert sum(change < 0 for change in changes) >= 2
