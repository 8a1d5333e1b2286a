"""FullGrad by its completeness on many networks, and against maps computed by hand and by a plain loop."""

import pytest
import torch
from torch import nn

from baselines.fullgrad import FullGrad
from ibsgl.networks import build_network
from ibsgl.networks.split import Normalize, SplitNetwork


def _stir(network: nn.Module) -> nn.Module:
    """Weights, statistics and biases as after training: at their initial values most bias terms are zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


class _Tangled(nn.Module):
    """Layers run in another order than they are defined, one twice, one not at all; outputs overwritten in place."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(6, 5, 3, stride=2)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.unused = nn.Conv2d(3, 3, 1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.dead_end = nn.Conv2d(6, 2, 1)
        self.first = nn.Conv2d(3, 6, 3, bias=False)
        self.shift = nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.shift(self.first(x))
        before = y.clone()
        y += before
        y.relu_()
        z = self.twice(y)
        z.relu_()
        z = self.twice(z)
        z += y
        self.dead_end(z)
        return nn.functional.leaky_relu(self.last(self.norm(z)), 0.2)


class _Branched(nn.Module):
    """A head with linear biases and one-dimensional batch norm, whose branches are defined the other way round."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)
        self.hidden = nn.Linear(5 * 4, 8)
        self.skip = nn.Linear(5, 8, bias=False)

    def forward(self, x):
        hidden = self.norm(self.hidden(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))).relu()
        return self.out(hidden + self.skip(x.amax((2, 3))))


def _network(name: str) -> SplitNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name.startswith("tangled"):
            normalisation = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)} if name == "tangled" else {}
            network = SplitNetwork(_Tangled(), _Branched(), **normalisation)
        else:
            # Without storage: a VGG's own classifier takes seconds to fill; a small one takes its place.
            with torch.device("meta"):
                network = build_network(name, 4)
            if name.startswith("vgg1"):
                classifier = nn.Sequential(nn.Linear(512 * 49, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4))
                network.head.classifier = classifier
            network.to_empty(device="cpu")
            network.stem.normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        return _stir(network).double().eval()


@pytest.mark.parametrize(
    "name", ["resnet_small", "vgg_small", "resnet18", "vgg11", "vgg11_bn", "tangled", "tangled, not normalised"]
)
def test_decomposition_is_complete(name):
    network = _network(name)
    images = torch.rand(2, 3, 33, 39, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([3, 1])
    with torch.no_grad():
        logits = network(images).gather(1, targets[:, None])[:, 0]
    terms = FullGrad().decompose(network, images, targets)
    parts = [terms.input, *(term for _, term in terms.biases)]
    sums = torch.stack([part.flatten(1).sum(1) for part in parts])
    torch.testing.assert_close(sums.sum(0), logits, rtol=1e-9, atol=1e-12)
    # Each kind of term carries some of it.
    assert sums[0].abs().min() > 1e-6 * logits.abs().max()
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        layers = [layer for layer in network.modules() if isinstance(layer, kind)]
        if any(kind is nn.BatchNorm2d or layer.bias is not None for layer in layers):
            assert sum(term.abs().sum() for layer, term in terms.biases if isinstance(layer, kind)) > 0


def test_terms_follow_the_order_of_running():
    network = _network("tangled")
    images = torch.rand(1, 3, 15, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    terms = FullGrad().decompose(network, images, torch.tensor([0]))
    stem, head = network.stem.backbone, network.head
    ran = [stem.shift, stem.twice, stem.twice, stem.norm, stem.last, head.hidden, head.norm, head.out]
    assert [layer for layer, _ in terms.biases] == ran


def test_hand_computed():
    # Logit = Σ_places ReLU(r − g + 0.5) − 3 ReLU(r + g − 0.6), on an image of two pixels without normalisation.
    convolution = nn.Conv2d(3, 2, 1)
    convolution.weight.data = torch.tensor([[1.0, -1, 0], [1, 1, 0]]).view(2, 3, 1, 1)
    convolution.bias.data = torch.tensor([0.5, -0.6])
    head = nn.Conv2d(2, 1, 1, bias=False)
    head.weight.data = torch.tensor([1.0, -3]).view(1, 2, 1, 1)
    network = SplitNetwork(nn.Sequential(convolution, nn.ReLU()), nn.Sequential(head, nn.Flatten(), _Sum()))
    image = torch.tensor([[[[0.5, 0.1]], [[0.3, 0.2]], [[0.9, 0.9]]]])
    # Left: 0.7 and 0.2 pass, right: 0.4 passes and −0.3 does not. ∂/∂r = (−2, 1), ∂/∂g = (−4, −1), ∂/∂b = 0; times the
    # image: r (−1, 0.1), g (−1.2, −0.2). |·| / 1.2, summed over colour: (2.2, 0.3) / 1.2.
    # Biases: 0.5 · (1, 1) and −0.6 · (−3, 0) = (1.8, 0). |·| / 1.8, summed over channels: (2.3, 0.5) / 1.8.
    terms = FullGrad().decompose(network, image, torch.tensor([0]))
    torch.testing.assert_close(terms.input, torch.tensor([[[[-1.0, 0.1]], [[-1.2, -0.2]], [[0.0, 0]]]]))
    ((_, term),) = terms.biases
    torch.testing.assert_close(term, torch.tensor([[[[0.5, 0.5]], [[1.8, 0]]]]))
    expected = torch.tensor([[[2.2 / 1.2 + 2.3 / 1.8, 0.3 / 1.2 + 0.5 / 1.8]]])
    torch.testing.assert_close(FullGrad()(network, image, torch.tensor([0])), expected)


class _Sum(nn.Module):
    def forward(self, x):
        return x.sum(1, keepdim=True)


def test_map_scales_each_layer_and_upsamples_each_channel():
    # The plain way: every channel upsampled by itself, one image and one layer at a time.
    network = _network("tangled")
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([2, 0])
    terms = FullGrad().decompose(network, images, targets)
    maps = FullGrad()(network, images, targets)
    for i in range(2):
        expected = torch.zeros(20, 24, dtype=torch.float64)
        for term in [terms.input, *(term for _, term in terms.biases if term.ndim == 4)]:
            size = term[i].abs()
            if size.max() == size.min():
                continue
            for channel in (size - size.min()) / (size.max() - size.min()):
                resized = nn.functional.interpolate(channel[None, None], size=(20, 24), mode="bilinear")
                expected += resized[0, 0]
        torch.testing.assert_close(maps[i], expected)


def test_batch_norm_without_running_statistics_is_an_error():
    network = SplitNetwork(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    with pytest.raises(ValueError, match="fullgrad: a batch norm without running statistics"):
        FullGrad()(network, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert not network.stem[1]._forward_hooks
