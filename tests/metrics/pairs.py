"""Evidence of few pairs for the tests of further metrics."""

import torch
from torch import nn

from ibsgl.metrics.further import Objects, PairEvidence
from ibsgl.networks import SplitNetwork
from ibsgl.randomness import generator


def evidence(saliency, *, targets=None, objects=None, region=None, name="a metric", **more):
    """The evidence of maps (B,H,W). Each pair is of an image of its own, and its object is the whole image."""
    number, height, width = saliency.shape
    whole = Objects(((0, 0, width, height),), width, height)
    return PairEvidence(
        saliency,
        torch.ones(saliency.shape, dtype=torch.bool) if region is None else region,
        torch.zeros(number, dtype=torch.int64) if targets is None else targets,
        tuple(objects) if objects is not None else (whole,) * number,
        tuple(generator(0, name, image) for image in range(number)),
        **more,
    )


class Sums(nn.Module):
    """Logits of an image's features: log of their mean, and log of 1 − mean. So the softmax of class 0 is the mean."""

    def forward(self, features):
        mean = features.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], dim=1).log()


def summing_network():
    """A network whose probability of class 0 is the mean of the image."""
    return SplitNetwork(nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False), Sums()).eval()


def with_identity(network):
    """``network``, whose first layer returns its input."""
    with torch.no_grad():
        network.stem.weight.copy_(torch.eye(3)[..., None, None])
    return network
