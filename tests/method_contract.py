"""What every saliency method promises, for the tests: a method with its inputs, and the state that it must leave alone."""

import numpy as np
import torch
from torch import nn

from ibsgl import attribution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator


class Case:
    """A row with a network, a batch of images shown to it, and whatever else its method requires."""

    def __init__(self, name: str, settings: dict, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor):
        self.method = attribution.row(name, settings).method
        self.name, self.network, self.images, self.targets = name, network, images, targets
        # Seeded by image, so that one image has the same draws wherever it stands.
        self.identities = list(range(len(images)))
        self.region = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        for i in self.identities:
            self.region[i, 5 : 20 + i, 10:30] = True
        with torch.no_grad():
            self.statistics = FeatureStatistics().update(network.stem(images))

    def __call__(self, method=None, index=slice(None), targets=None) -> torch.Tensor:
        """The maps of the images at ``index`` (a slice or a list)."""
        index = torch.arange(len(self.images))[index]
        context = {"region": self.region[index], "statistics": self.statistics}
        return (method or self.method)(
            self.network,
            self.images[index],
            self.targets[index] if targets is None else targets,
            [generator(0, self.name, self.identities[i]) for i in index.tolist()],
            **{key: context[key] for key in self.method.requires},
        )


def make_case(
    name: str, settings: dict, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> Case:
    """A :class:`Case` whose network answers louder, in ``dtype``."""
    chosen = network.to(dtype)
    # A random network hardly tells its inputs apart; louder logits make every difference show.
    chosen.head[-1].weight.data *= 10
    return Case(name, settings, chosen, images.to(dtype), targets)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-6 of the largest value: sums in another order in float64, or in float32 inside a method."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-6 * expected.max().item() + 1e-30)


def assert_plain(maps: torch.Tensor, size: tuple[int, ...]) -> None:
    """Finite, ≥ 0, float32, and a tensor of its own."""
    assert maps.shape == size
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert (maps >= 0).all()
    assert not maps.requires_grad
    assert not maps.is_inference()
    maps.mul_(2)  # a tensor of its own, not an expanded view


def assert_same_twice(case: Case) -> None:
    """To the bit, and the global generators are neither read nor changed."""
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = case()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(case(), first)


class Failing(nn.Module):
    """Takes the place of a part of the network and raises."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        raise RuntimeError("out of order")


def state(network: nn.Module, images: torch.Tensor) -> list:
    """Everything about a network and its input that a method might leave changed."""
    return [
        [module.training for module in network.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
        [None if p.grad is None else p.grad.numpy().tobytes() for p in network.parameters()],
        [value.numpy().tobytes() for value in network.state_dict().values()],
        [list(module.__dict__) for module in network.modules()],
        images.requires_grad,
        images.numpy().tobytes(),
        torch.is_grad_enabled(),
    ]


def run_on_a_used_network(case: Case, fails: str | None) -> tuple[list, list, str | None]:
    """Call ``case`` on a network in several modes, with hooks' and gradients' state; ``fails``: its part that raises.

    Returns:
        the state before and after, and the message of the error, if there was one.
    """
    network = case.network
    if fails == "stem":
        network.stem = Failing(network.stem)
    elif fails == "head":
        network.head = Failing(network.head)
    network.train()
    network.head.eval()
    first, second, *_ = network.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    before, message = state(network, case.images), None
    try:
        case()
    except RuntimeError as error:
        message = str(error)
    return before, state(network, case.images), message
