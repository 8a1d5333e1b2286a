"""Losses and diagnostics of the held-out pairs, against loops over single images."""

import numpy as np
import pytest
import torch

from ibsgl.evaluation.held_out import diagnostics, held_out_losses, overlap, pearson
from ibsgl.guidance.localization import localization_losses, other_class
from ibsgl.networks import build_network
from ibsgl.saliency import gradient_saliency

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=18, test=1)


@pytest.fixture(scope="module")
def networks():
    built = {}
    for number, variant in enumerate(("pretrained", "guided")):
        torch.manual_seed(number)
        built[variant] = build_network("resnet_small", 6, width=8)
    return built


def teacher(pairs, seed=0):
    return torch.rand(len(pairs), 2, 2, generator=torch.Generator().manual_seed(seed))


def losses(networks, data, pairs, l_ib, form="distribution", batch_size=4):
    return held_out_losses(networks, data, pairs, l_ib, r=0.35, cross_entropy=form, batch_size=batch_size, device=CPU)


@pytest.mark.parametrize("form", ["distribution", "binary"])
def test_losses_are_those_that_guidance_optimises(data, networks, form):
    pairs = data.pairs("held_out")
    l_ib = teacher(pairs)
    table = losses(networks, data, pairs, l_ib, form)
    assert len(table) == 2 * len(pairs)
    for variant, network in networks.items():
        rows = table[table["variant"] == variant]
        assert list(rows["image_id"]) == list(pairs["image_id"])
        network.eval()
        for number, row in enumerate(rows.itertuples()):
            target = torch.tensor([pairs["target"][number]])
            with torch.no_grad():
                features = network.stem(data.images([row.image_id]))
                other = other_class(network.head(features), target)
            l_ce, l_ss, _ = localization_losses(network.head, features, target, l_ib[[number]], r=0.35, form=form)
            assert row.l_ce == pytest.approx(l_ce.item(), rel=1e-3)
            assert row.l_ss == pytest.approx(l_ss.item(), rel=1e-3, abs=1e-6)
            q_c, q_p = (
                maps / max(maps.sum(), 1e-30)
                for maps in (gradient_saliency(network.head, features, chosen).numpy() for chosen in (target, other))
            )
            assert row.overlap == pytest.approx(np.minimum(q_c, q_p).sum(), rel=1e-3, abs=1e-6)


def test_shards_together_are_the_whole(data, networks):
    pairs = data.pairs("held_out")
    l_ib = teacher(pairs)
    whole = losses(networks, data, pairs, l_ib).set_index(["variant", "image_id"])
    for number in range(3):
        part = pairs.iloc[number::3]
        found = losses(networks, data, part, l_ib[part.index.tolist()], batch_size=1).set_index(["variant", "image_id"])
        for column in ("l_ce", "l_ss", "overlap"):
            np.testing.assert_allclose(found[column], whole.loc[found.index, column], rtol=1e-3, atol=1e-6)


def test_an_empty_shard_has_the_columns(data, networks):
    pairs = data.pairs("held_out")
    empty, l_ib = pairs.iloc[:0], torch.zeros(0, 2, 2)
    assert set(losses(networks, data, empty, l_ib)) == set(losses(networks, data, pairs, teacher(pairs)))
    found = diagnostics(networks["guided"], data, empty, l_ib, l_ib, batch_size=4, device=CPU)
    assert found.empty
    assert found["r_other"].dtype == float


def test_maps_of_other_pairs_are_refused(data, networks):
    pairs = data.pairs("held_out")
    with pytest.raises(ValueError, match=r"there are 6 pairs and 5 maps L\^ib"):
        losses(networks, data, pairs, teacher(pairs)[:5])


def test_overlap_by_hand():
    first = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    second = torch.tensor([[[0.0, 3.0], [1.0, 0.0]], [[7.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert overlap(first, second).tolist() == [0.5, 1, 0]
    # Multiplying one map changes nothing.
    torch.testing.assert_close(overlap(100 * first, second), overlap(first, second))


def test_pearson_is_numpys_and_nan_for_a_constant_map():
    first, second = (torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(pearson(first, second), expected, rtol=1e-6)
    np.testing.assert_allclose(pearson(first, 3 * first + 2), 1)
    np.testing.assert_allclose(pearson(first * 1e-30, second), expected, rtol=1e-5)
    assert pearson(first, torch.full_like(first, 0.1)).isnan().all()
    assert pearson(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)).isnan().all()


def test_diagnostics_by_hand(data, networks):
    pairs, network = data.pairs("held_out"), networks["pretrained"]
    own, other = teacher(pairs), teacher(pairs, 1)
    other[2] = 0.5
    table = diagnostics(network, data, pairs, own, other, batch_size=4, device=CPU)
    assert list(table["image_id"]) == list(pairs["image_id"])
    images, targets = data.images(list(pairs["image_id"])), torch.tensor(pairs["target"].to_numpy())
    with torch.no_grad():
        features = network.eval().stem(images)
    maps = {
        "r_other": other,
        "r_activation": features.square().sum(1).sqrt(),
        "r_gradient": gradient_saliency(network.head, features, targets),
    }
    for row, pair in zip(table.itertuples(), range(len(pairs)), strict=True):
        assert row.nats == pytest.approx(own[pair].sum().item(), rel=1e-5)
        for name, against in maps.items():
            flat = against[pair].flatten().numpy()
            value = getattr(row, name)
            if flat.min() == flat.max():
                assert np.isnan(value)
            else:
                assert value == pytest.approx(np.corrcoef(own[pair].flatten(), flat)[0, 1], abs=1e-3)
        assert row.region_share == pytest.approx(data.regions(pairs.iloc[[pair]]).float().mean().item())
    assert np.isnan(table["r_other"][2])
