"""The deletion curve on a network whose probability is known by hand: the share of the pixels that is left."""

import pytest
import torch
from torch import nn

from ibsgl.metrics.deletion import area_under, deletion_curve
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator


class Weighted(nn.Module):
    """Probability of class 0: Σ weight · image over the first channel; of class 1: 1 − that."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        p = (images[:, 0] * self.weight).flatten(1).sum(1)
        return torch.stack([p, 1 - p], 1).logit(eps=1e-7)


def network(weight):
    return SplitNetwork(Weighted(weight), nn.Identity(), multilabel=True)


def generators(names, seed=0):
    return [generator(seed, name) for name in names]


def ones(batch):
    return torch.ones(batch, 3, 4, 5), torch.zeros(batch, dtype=torch.int64)


def test_curve_by_hand():
    # 20 pixels of weight 1/20; the top 0.5 are 10, of which 0, 5 and 10 are deleted.
    images, _ = ones(2)
    saliency = torch.arange(40.0).view(2, 4, 5)
    curve = deletion_curve(
        network(torch.full((4, 5), 1 / 20)),
        images,
        torch.tensor([0, 1]),
        saliency,
        r=0.5,
        fractions=(0, 0.5, 1),
        generators=generators("ab"),
        repeats=2,
    )
    torch.testing.assert_close(curve[0], torch.tensor([[1, 0.75, 0.5]] * 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(curve[1], torch.tensor([[0, 0.25, 0.5]] * 2), atol=1e-4, rtol=0)
    assert area_under(curve[:1], (0, 0.5, 1)).flatten().tolist() == pytest.approx([0.75, 0.75], abs=1e-4)


def test_where_nothing_or_all_is_deleted_one_pass_serves_all_orders():
    images, targets = ones(2)
    passed = []
    counted = network(torch.rand(4, 5))
    counted.register_forward_pre_hook(lambda _, arguments: passed.append(len(arguments[0])))
    # The top 0.1 are two pixels. Of these 0.1 and 0.2 delete none, and 0.9 and 1 delete both.
    fractions = (0, 0.1, 0.2, 0.5, 0.9, 1)
    settings = {"r": 0.1, "repeats": 3, "chunk": 5}
    curve = deletion_curve(
        counted, images, targets, torch.rand(2, 4, 5), fractions=fractions, generators=generators("ab"), **settings
    )
    assert sum(passed) == 2 * (5 + 3)
    assert torch.equal(curve[:, :, [0, 0]], curve[:, :, [1, 2]])
    assert torch.equal(curve[:, :1, [4, 5]].expand(-1, 3, -1), curve[:, :, [5, 4]])


def test_area_under_by_hand():
    assert area_under(torch.tensor([1, 0.3, 0]), (0, 0.5, 1)).item() == pytest.approx(0.4)
    assert area_under(torch.tensor([1, 0.3, 0]), (0, 0.2, 1)).item() == pytest.approx(0.13 + 0.12)


def test_only_the_region_is_deleted_and_deletion_is_nested():
    # Every pixel has a binary digit of its own, so the probability spells out which pixels are left.
    weight = 2.0 ** -torch.arange(1.0, 21.0).view(4, 5)
    images, targets = ones(1)
    saliency = torch.randperm(20, generator=torch.Generator().manual_seed(5)).float().view(1, 4, 5)
    fractions = (0, 0.25, 0.5, 0.75, 1)
    curve = deletion_curve(
        network(weight.double()).double(),
        images.double(),
        targets,
        saliency,
        r=0.4,
        fractions=fractions,
        generators=generators("a"),
        repeats=6,
    ).double()
    left = ((curve[0] * 2**20).round().long()[..., None] >> torch.arange(19, -1, -1)) & 1
    assert left[:, 0].all()
    gone = 1 - left
    assert (gone.sum(-1) == torch.tensor([0, 2, 4, 6, 8])).all()
    assert (gone.diff(dim=1) >= 0).all(), "a pixel once deleted came back"
    assert (gone[:, -1] == (saliency.flatten() >= 12)).all()
    assert len({tuple(row.tolist()) for row in gone[:, 2]}) > 1, "every repeat deleted the same pixels"


def test_fill_is_the_colour_given():
    images, targets = ones(1)
    curve = deletion_curve(
        network(torch.full((4, 5), 1 / 20)),
        images,
        targets,
        torch.arange(20.0).view(1, 4, 5),
        r=1,
        fractions=(1,),
        repeats=1,
        fill=torch.tensor([0.3, 0.9, 0.9]).view(3, 1, 1),
    )
    assert curve.item() == pytest.approx(0.3, abs=1e-4)


def test_alone_batched_and_in_any_chunk():
    source = torch.Generator().manual_seed(1)
    images, targets = torch.rand(3, 3, 4, 5, generator=source), torch.tensor([0, 1, 0])
    saliency, weight = torch.rand(3, 4, 5, generator=source), torch.rand(4, 5, generator=source) / 20

    def curve(rows, **settings):
        rows = list(rows)
        return deletion_curve(
            network(weight),
            images[rows],
            targets[rows],
            saliency[rows],
            generators=generators(rows),
            repeats=3,
            **settings,
        )

    together = curve(range(3))
    for chunk in (1, 5, 1000):
        torch.testing.assert_close(curve(range(3), chunk=chunk), together, atol=1e-6, rtol=0)
    for row in range(3):
        torch.testing.assert_close(curve([row])[0], together[row], atol=1e-6, rtol=0)
    assert together.shape == (3, 3, 11)


def test_network_is_as_before():
    net = network(torch.full((4, 5), 1 / 20)).train()
    images, targets = ones(1)
    curve = deletion_curve(net, images, targets, torch.rand(1, 4, 5))
    assert net.training
    assert next(net.parameters()).requires_grad
    assert not curve.requires_grad
    assert not curve.is_inference()
    with pytest.raises(RuntimeError):
        deletion_curve(net, images[..., :3], targets, torch.rand(1, 4, 3))
    assert net.training
    assert next(net.parameters()).requires_grad


def test_refusals():
    images, targets = ones(2)
    net, saliency = network(torch.full((4, 5), 1 / 20)), torch.rand(2, 4, 5)
    with pytest.raises(ValueError, match="one class per image"):
        deletion_curve(net, images, targets[:1], saliency)
    with pytest.raises(ValueError, match="saliency must be"):
        deletion_curve(net, images, targets, saliency[:1])
    with pytest.raises(ValueError, match="2 images"):
        deletion_curve(net, images, targets, saliency, generators=generators("a"))
    for fractions in ((0, 0.5, 0.5), (0, 1.1), ()):
        with pytest.raises(ValueError, match="fractions must rise"):
            deletion_curve(net, images, targets, saliency, fractions=fractions)
    with pytest.raises(ValueError, match="at least 1"):
        deletion_curve(net, images, targets, saliency, repeats=0)
    with pytest.raises(ValueError, match="3 points"):
        area_under(torch.zeros(3), (0, 1))
