"""Model randomisation: the similarities against scipy and scikit-image, the cascade, and the values by hand."""

import pytest
import torch
from pairs import evidence
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as reference_ssim
from torch import nn

from ibsgl.metrics.further import get
from ibsgl.metrics.further.model_randomisation import cascade, layers_of, spearman, structural_similarity
from ibsgl.networks import SplitNetwork, build_network


def maps(seed, number=4, size=16, levels=None):
    values = torch.rand(number, size, size, generator=torch.Generator().manual_seed(seed))
    return values if levels is None else (levels * values).floor()


@pytest.mark.parametrize("levels", [None, 5])
def test_the_rank_correlation_is_that_of_scipy_also_with_equal_values(levels):
    first, second = maps(0, levels=levels), maps(1, levels=levels)
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)]
    assert spearman(first, second).tolist() == pytest.approx(expected)


def test_rank_correlations_by_hand():
    rising = torch.arange(9.0).view(1, 3, 3)
    assert spearman(rising, rising**2).item() == pytest.approx(1)
    assert spearman(rising, 10 - rising).item() == pytest.approx(-1)
    assert spearman(rising, torch.ones(1, 3, 3)).isnan().all()


def test_the_structural_similarity_is_that_of_scikit_image():
    first, second = maps(2), maps(2) + 0.5 * maps(3)
    low, high = second.amin((1, 2), keepdim=True), second.amax((1, 2), keepdim=True)
    scaled = [(second - low) / (high - low), (first - first.amin((1, 2), keepdim=True))]
    scaled[1] = scaled[1] / scaled[1].amax((1, 2), keepdim=True)
    expected = [
        reference_ssim(a.double().numpy(), b.double().numpy(), data_range=1.0) for a, b in zip(*scaled, strict=True)
    ]
    assert structural_similarity(first, second).tolist() == pytest.approx(expected, abs=1e-5)
    assert structural_similarity(first, first).tolist() == pytest.approx([1.0] * 4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("resnet_small", 4, width=8).eval()


def test_layers_become_random_from_the_head_down_and_stay_so(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    names = [name for name, _ in layers_of(network)]
    assert names[0].startswith("head")
    changed = []
    for stage in cascade(network, 1000, seed=1):
        state = stage.state_dict()
        changed.append(
            {n for n, _ in layers_of(network) if not torch.equal(state[f"{n}.weight"], before[f"{n}.weight"])}
        )
    # Batch normalisation begins with ones and zeros, which an untrained network still has.
    assert len(changed) == len(names)
    for number, now in enumerate(changed):
        assert now <= set(names[: number + 1])
        assert now >= {name for name in names[: number + 1] if before[f"{name}.weight"].ndim > 1}


def test_the_network_itself_stays_as_it_is_and_the_draws_come_from_the_seed_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ends = [[stage.head[-1].weight.clone() for stage in cascade(network, 2, seed)] for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(ends[0][-1], ends[1][-1])
    assert not torch.equal(ends[0][-1], ends[2][-1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training is False


def test_a_layer_without_initial_weights_gets_its_own_in_another_order():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.arange(100.0))

        def forward(self, features):
            return features.flatten(1)[:, :100] * self.factor

    network = SplitNetwork(nn.Identity(), Scale())
    (stage,) = cascade(network, 5, seed=0)
    assert not torch.equal(stage.head.factor, network.head.factor)
    assert torch.equal(stage.head.factor.sort().values, network.head.factor)


def explained(explain, network, images, **settings):
    saliency = explain(network, images)
    return get("model_randomisation", **settings)(
        evidence(saliency, images=images, network=network, explain=explain, seed=5)
    )


def test_a_method_that_does_not_look_at_the_network_does_not_notice(network):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for similarity in ("spearman", "ssim"):
        found = explained(lambda network, images: images.mean(1), network, images, similarity=similarity, stages=3)
        assert found.tolist() == pytest.approx([1, 1])
    metric = get("model_randomisation", threshold=0.9)
    assert [metric.mark(value) for value in (1.0, 0.9, 0.89)] == ["does not notice", "does not notice", ""]


def test_the_value_is_the_mean_over_the_stages(network):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def weights(network, images):
        """A map that shows the first convolution's weights, which become random at the last stage."""
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        return first.weight.detach().abs().flatten()[:64].view(1, 8, 8).expand(len(images), -1, -1)

    found = explained(weights, network, images, stages=4)
    *_, last = (weights(stage, images) for stage in cascade(network, 4, seed=5))
    alone = spearman(weights(network, images), last)
    assert found.tolist() == pytest.approx(((3 + alone) / 4).tolist())


def test_a_map_that_vanishes_is_not_similar_and_one_that_was_constant_has_no_value(network):
    images = torch.rand(2, 3, 32, 32)
    original = network

    def vanishing(network, images):
        return images.mean(1) * (network is original)

    assert explained(vanishing, network, images).tolist() == [0, 0]
    assert explained(lambda network, images: torch.ones(2, 8, 8), network, images).isnan().all()
