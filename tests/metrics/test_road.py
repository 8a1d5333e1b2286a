"""ROAD: against pytorch-grad-cam's own metric, and by hand on an image of one colour."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from pairs import evidence, summing_network, with_identity
from torch import nn

from ibsgl.metrics.further import get
from ibsgl.networks import SplitNetwork

SALIENCY = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Pooled(nn.Module):
    def forward(self, features):
        return 20 * features.amax((2, 3))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SplitNetwork(nn.Conv2d(3, 4, 3), Pooled()).eval()


def test_it_is_the_combined_metric_of_pytorch_grad_cam(network):
    from pytorch_grad_cam.metrics.perturbation_confidence import (
        PerturbationConfidenceMetric,
        RemoveLeastRelevantFirst,
        RemoveMostRelevantFirst,
    )
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets, percentages = torch.tensor([1, 3]), (25, 50, 75)
    found = get("road", percentages=percentages, noise=0)(
        evidence(SALIENCY, targets=targets, images=IMAGES, network=network, batch_size=4)
    )
    wanted = [ClassifierOutputSoftmaxTarget(int(target)) for target in targets]
    expected = []
    for percentage in percentages:
        lowest, highest = (
            PerturbationConfidenceMetric(remove(percentage, NoisyLinearImputer(0)))(
                IMAGES, SALIENCY.numpy(), wanted, network
            )
            for remove in (RemoveLeastRelevantFirst, RemoveMostRelevantFirst)
        )
        # The library's percentile is what stays, so the three percentages are in the reverse order.
        expected.append((lowest - highest) / 2)
    assert found.abs().max() > 0.01
    assert found.tolist() == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_an_image_of_one_colour_is_filled_in_as_it_was():
    images = torch.full((1, 3, 8, 8), 0.25)
    metric = get("road", percentages=(30, 60), noise=0)
    filled = metric._removed(SALIENCY[0, :8, :8], images[0], seed=0)
    assert torch.allclose(filled, images.expand(4, -1, -1, -1), atol=1e-5)
    found = evidence(SALIENCY[:1, :8, :8], images=images, network=with_identity(summing_network()))
    assert metric(found).item() == pytest.approx(0, abs=1e-6)


def test_an_image_has_the_same_value_alone_and_no_random_state_changes(network):
    metric = get("road", percentages=(50,))
    torch.manual_seed(3)
    whole = metric(evidence(SALIENCY, images=IMAGES, network=network))
    alone = metric(evidence(SALIENCY[:1], images=IMAGES[:1], network=network))
    assert torch.allclose(whole[:1], alone, atol=1e-6)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)


def test_what_is_wrong_is_said(monkeypatch):
    with pytest.raises(ValueError, match=r"percentages.0: Input should be less than 100"):
        get("road", percentages=[100])
    with pytest.raises(ValueError, match="road: percentages: give one at least"):
        get("road", percentages=[])

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ibsgl.extras.version", missing)
    with pytest.raises(ValueError, match=r"grad-cam is not installed; install ibsgl\[grad-cam\]"):
        get("road")
