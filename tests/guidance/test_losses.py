"""The guidance losses: hand-computed cases, slow references, and what holds for each of them."""

import math

import pytest
import torch
from torch import nn

from ibsgl.guidance import LOSSES, TrainingBatch, training_losses
from ibsgl.guidance.saliency_guided import masked_images
from ibsgl.metrics.localization import ebpg
from ibsgl.networks.split import SplitNetwork, upsample
from ibsgl.randomness import generator
from ibsgl.saliency import gradient_saliency

NAMES = ("energy", "rrr", "saliency_guided")
SETTINGS = {"saliency_guided": {"k": 0.3}}


def linear(weights, multilabel=False):
    """A network whose logits are linear in the pixels: the stem is the identity, the head has ``weights`` (K,3·H·W)."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], weights.shape[0], bias=False))
    head[1].weight.data = weights.clone()
    return SplitNetwork(nn.Identity(), head, multilabel=multilabel)


def loss_of(name, network, images, targets, region, seed=0, **settings):
    """The loss (B,) of every image, as training computes it."""
    classes = network(images[:1]).shape[1]
    generators = [generator(seed, int(1000 * image.sum())) for image in images]
    labels = nn.functional.one_hot(targets, classes).float()
    loss = LOSSES.get(name, **settings)
    return training_losses(network, images, labels, targets, loss, region=region, generators=generators)["guidance"]


@pytest.fixture
def region():
    region = torch.zeros(3, 48, 64, dtype=torch.bool)
    region[:, 10:30, 20:50] = True
    return region


TARGETS = torch.tensor([0, 2, 3])


def test_energy_by_hand():
    """Logits are w·x, so L^c at a pixel is the sum over colours of w·x where that is positive."""
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0] = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    weights[1, 1] = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    images = torch.full((2, 3, 2, 2), 0.5)
    region = torch.tensor([[[1, 0], [1, 1]], [[1, 1], [1, 0]]]).bool()
    losses = loss_of("energy", linear(weights.flatten(1)), images, torch.tensor([0, 1]), region)
    # Class 0 has 0.5 and 1 on the upper row: a third is inside. Class 1 has all of it outside.
    torch.testing.assert_close(losses, torch.tensor([2 / 3, 1.0]))


def test_energy_is_one_minus_ebpg_of_eq_3(networks, images, region):
    for network in networks.values():
        saliency = gradient_saliency(network.head, network.stem(images), TARGETS)
        expected = 1 - ebpg(upsample(saliency, images.shape[-2:]), region)
        torch.testing.assert_close(loss_of("energy", network, images, TARGETS, region).double(), expected.double())


def test_energy_of_an_empty_map_is_one_without_a_gradient():
    network = linear(torch.full((2, 12), -1.0))
    losses = loss_of("energy", network, torch.ones(1, 3, 2, 2), torch.tensor([0]), torch.ones(1, 2, 2).bool())
    assert losses.item() == 1
    losses.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_rrr_by_hand():
    """∂/∂x Σ_k log p_k = Σ_k w_k − K Σ_k p_k w_k. With equal logits it is zero."""
    weights = torch.tensor([[1.0, 0, 0, 0, 0, 0], [3.0, 2.0, 0, 0, 0, 0]])
    images = torch.zeros(1, 3, 1, 2)
    outside = torch.zeros(1, 1, 2).bool()
    assert loss_of("rrr", linear(weights), images, torch.tensor([0]), outside).item() == pytest.approx(0)
    images[0, 0, 0, 1] = math.log(3) / 2
    # Logits 0 and ln 3, so p = (1/4, 3/4): the gradient is (4, 2) − 2·(2.5, 1.5) = (−1, −1).
    targets = torch.tensor([0])
    assert loss_of("rrr", linear(weights), images, targets, outside).item() == pytest.approx(2)
    # The right pixel is inside the box.
    inside = torch.tensor([[[False, True]]])
    assert loss_of("rrr", linear(weights), images, targets, inside).item() == pytest.approx(1)
    # K decisions: ∂/∂x Σ_k [log p_k + log(1 − p_k)] = Σ_k (1 − 2 p_k) w_k = 0·(1, 0) + (1 − 1.5)·(3, 2).
    several = loss_of("rrr", linear(weights, multilabel=True), images, targets, outside)
    assert several.item() == pytest.approx(1.5**2 + 1)


def test_rrr_is_that_of_the_jacobian(networks, images, region):
    for name, network in networks.items():
        found = loss_of("rrr", network, images, TARGETS, region)
        for i in range(len(images)):
            jacobian = torch.autograd.functional.jacobian(lambda x, n=network: n(x)[0], images[i : i + 1])[:, 0]
            logits = network(images[i : i + 1])[0].detach()
            if name == "multilabel":
                gradient = sum((1 - 2 * logits[k].sigmoid()) * jacobian[k] for k in range(4))
            else:
                p = logits.softmax(0)
                gradient = sum((1 - 4 * p[k]) * jacobian[k] for k in range(4))
            expected = sum((gradient[c][~region[i]] ** 2).sum() for c in range(3))
            torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-6)


def test_masked_pixels_are_those_of_the_lowest_gradient():
    gradient = torch.tensor([[0.5, -0.1, 0.3, -2.0]]).expand(3, 4).view(1, 3, 2, 2)
    images = torch.rand(1, 3, 2, 2, generator=generator(0))
    for order, expected in (("magnitude", [1, 2]), ("signed", [1, 3])):
        masked = masked_images(images, gradient, 0.5, order, [generator(1)])
        changed = (masked != images).flatten(2).any(1)[0]
        assert changed.nonzero()[:, 0].tolist() == expected
        for colour in range(3):
            assert images[0, colour].min() <= masked[0, colour].min()
            assert masked[0, colour].max() <= images[0, colour].max()
    # ⌊0.29 · 100⌋ of a hundred pixels, and none of four.
    hundred = torch.rand(1, 3, 10, 10, generator=generator(2))
    masked = masked_images(hundred, torch.rand(1, 3, 10, 10), 0.29, "magnitude", [generator(1)])
    assert (masked != hundred).any(1).sum() == 29
    assert torch.equal(masked_images(images, gradient, 0.2, "signed", [generator(1)]), images)


@pytest.mark.parametrize("order", ["magnitude", "signed"])
def test_saliency_guided_is_that_of_a_loop(networks, images, order):
    for name, network in networks.items():
        found = loss_of("saliency_guided", network, images, TARGETS, None, k=0.3, order=order)
        for i, (image, target) in enumerate(zip(images, TARGETS.tolist(), strict=True)):
            x = image[None].clone().requires_grad_(True)
            network(x)[0, target].backward()
            score = x.grad[0].mean(0)
            score = (score.abs() if order == "magnitude" else score).flatten().tolist()
            noise = torch.rand(image.shape, generator=generator(0, int(1000 * image.sum())))
            masked = image.clone()
            for pixel in sorted(range(len(score)), key=score.__getitem__)[: int(0.3 * 48 * 64)]:
                y, x_ = divmod(pixel, 64)
                for c in range(3):
                    low, high = image[c].min(), image[c].max()
                    masked[c, y, x_] = low + (high - low) * noise[c, y, x_]
            if name == "multilabel":
                p, q = (network(each[None])[0].sigmoid() for each in (image, masked))
                expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
            else:
                p, q = (network(each[None])[0].softmax(0) for each in (image, masked))
                expected = (p * (p / q).log()).sum()
            torch.testing.assert_close(found[i], expected, rtol=1e-2, atol=1e-6)
    network.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_reaches_stem_and_head_and_no_image_depends_on_another(networks, images, region, name):
    settings = SETTINGS.get(name, {})
    for network in networks.values():
        together = loss_of(name, network, images, TARGETS, region, **settings)
        assert together.shape == (3,)
        assert (together >= 0).all()
        assert together.isfinite().all()
        for i in range(3):
            alone = loss_of(name, network, images[i : i + 1], TARGETS[i : i + 1], region[i : i + 1], **settings)
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-6)
        network.zero_grad(set_to_none=True)
        together.sum().backward()
        for part in (network.stem, network.head):
            gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
            assert any(gradient.abs().max() > 0 for gradient in gradients)
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_generators_decide_what_is_drawn(networks, images):
    first, again, other = (
        loss_of("saliency_guided", networks["vgg"], images, TARGETS, None, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_loss_gets_what_it_requires_and_no_more(networks, images, region):
    seen = []

    class Spy:
        weight = 3.0

        def __init__(self, requires):
            self.requires = frozenset(requires)

        def __call__(self, batch: TrainingBatch):
            seen.append(batch)
            return batch.logits.sum(1)

    network, labels = networks["resnet"], nn.functional.one_hot(TARGETS, 4).float()

    def losses(requires):
        return training_losses(
            network,
            images,
            labels,
            TARGETS,
            Spy(requires),
            teach=lambda features: torch.ones_like(features[:, 0]),
            region=region,
            generators=[generator(0)] * 3,
        )

    found = losses(())
    batch = seen.pop()
    assert batch.teacher_map is batch.region is batch.generators is None
    assert not batch.images.requires_grad
    torch.testing.assert_close(found["loss"], found["classification"] + 3 * found["guidance"])
    losses(("teacher_map", "region", "generators", "image_gradient"))
    batch = seen.pop()
    assert batch.region is region
    assert batch.images.requires_grad
    assert batch.teacher_map.shape == batch.features[:, 0].shape
    assert len(batch.generators) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_stem_runs_once_except_for_masked_images(networks, images, region, name):
    calls = []
    handle = networks["resnet"].stem.register_forward_hook(lambda *_: calls.append(1))
    labels = nn.functional.one_hot(TARGETS, 4).float()
    loss = LOSSES.get(name)
    training_losses(networks["resnet"], images, labels, TARGETS, loss, region=region, generators=[generator(0)] * 3)
    handle.remove()
    assert len(calls) == 1 + loss.passes.stem


class Constant:
    """A loss that is ``value`` for each pair, times a feature if it shall have a gradient."""

    requires = frozenset()
    weight = 1.0

    def __init__(self, shape, gradient):
        self.shape, self.gradient = shape, gradient

    def __call__(self, batch):
        value = batch.features.mean()
        return (value if self.gradient else value.detach()).expand(self.shape)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Constant((3, 1), True), r"Constant gives the shape \(3, 1\); it must give one value per pair, \(3,\)"),
        (Constant((), True), r"Constant gives the shape \(\); it must"),
        (Constant((3,), False), "Constant has no gradient, so it would change nothing; .* create_graph=True"),
    ],
)
def test_a_loss_must_give_one_value_per_pair_and_a_gradient(networks, images, targets, loss, message):
    labels = nn.functional.one_hot(targets, 4).float()
    with pytest.raises(ValueError, match=f"guidance.loss: {message}"):
        training_losses(networks["resnet"], images, labels, targets, loss)
