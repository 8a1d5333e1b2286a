"""What is measured on the test pairs, against loops over single images, methods and networks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.index import shard
from ibsgl.data.loading import ImageDataset
from ibsgl.evaluation.classification import predict_variants, predictions
from ibsgl.evaluation.scoring import scorers
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.evaluation.variants import measure_variants
from ibsgl.metrics import METRICS, MetricSettings
from ibsgl.metrics.deletion import deletion_curve
from ibsgl.metrics.faithfulness import average_drop, average_increase, keep_top
from ibsgl.metrics.localization import bbox, ebpg, miou
from ibsgl.networks import build_network
from ibsgl.randomness import generator

CPU = torch.device("cpu")
VARIANTS = ("pretrained", "control", "guided")
DELETION = DeletionSettings(points=3, repeats=2)
# The bottleneck's steps enlarge rounding errors, so that a pixel at a threshold may fall on either side.
ROUNDING = {"bottleneck": 0.02}
SCORE = ["variant", "scored_on", "method", "image_id", "class_name"]


def of_table(data, table, classes=None):
    """``data`` with another table."""
    names = data.index.class_names[:classes]
    return ImageDataset(
        replace(data.index, table=table.reset_index(drop=True), class_names=names), data.root, data.size
    )


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=12, test=5)


@pytest.fixture(scope="module")
def several(data):
    """Each image shows its class and the one after it."""
    first = data.index.table
    second = first.assign(target=(first["target"] + 1) % 6)
    second["class_name"] = [data.index.class_names[target] for target in second["target"]]
    return of_table(data, pd.concat([first, second]).sort_index(kind="stable"))


def build(classes=6, multilabel=False):
    networks = {}
    for number, variant in enumerate(VARIANTS):
        torch.manual_seed(number)
        networks[variant] = build_network("resnet_small", classes, width=8, multilabel=multilabel).train()
    return networks


METHODS = {
    "pretrained": {
        "gradient": attribution.get("gradient"),
        "bottleneck": attribution.get("bottleneck", steps=2, samples=2),
        "random": attribution.get("random"),
        "oracle": attribution.get("oracle"),
    },
    **{variant: {"gradient": attribution.get("gradient")} for variant in VARIANTS[1:]},
}


def statistics_of(network, data):
    network.eval()
    with torch.no_grad():
        return FeatureStatistics().update(network.stem(data.images(data.ids("train"))))


def measure(data, networks, pairs=None, stored=None, batch_size=3, methods=METHODS):
    return measure_variants(
        networks,
        data,
        data.pairs("test") if pairs is None else pairs,
        methods,
        stored or {},
        MetricSettings(),
        DELETION,
        r=0.35,
        seed=1,
        reference="pretrained",
        batch_size=batch_size,
        device=CPU,
        statistics=statistics_of(networks["pretrained"], data),
    )


def by_hand(data, networks, row, variant, method, scorer):
    """The scores of one map, image by image."""
    image, target = data.images([row.image_id]), torch.tensor([row.target])
    context = {}
    if "statistics" in method.requires:
        context["statistics"] = statistics_of(networks["pretrained"], data)
    region = data.regions(pd.DataFrame([row]))
    if "region" in method.requires:
        context["region"] = region
    name = next(name for name, other in METHODS[variant].items() if other is method)
    saliency = method(networks[variant].eval(), image, target, [generator(1, name, row.image_id)], **context)
    network = networks[scorer].eval()
    with torch.no_grad():
        p_full, p_kept = (
            network.probabilities(network(shown))[:, row.target] for shown in (image, keep_top(image, saliency))
        )
    return {
        "p_full": p_full,
        "p_kept": p_kept,
        "ebpg": ebpg(saliency, region),
        "miou": miou(saliency, region),
        "bbox": bbox(saliency, region),
        "average_drop": average_drop(p_full, p_kept),
        "average_increase": average_increase(p_full, p_kept),
    }


def test_who_scores_whose_maps():
    variants = ("pretrained", "control", "guided")
    assert scorers("pretrained", "gradient", variants, "pretrained") == ["pretrained", "control", "guided"]
    assert scorers("guided", "gradient", variants, "pretrained") == ["guided", "pretrained"]
    assert scorers("pretrained", "rise", variants, "pretrained") == ["pretrained"]
    assert scorers("guided", "rise", variants, "pretrained") == ["guided"]


@pytest.mark.parametrize("multilabel", [False, True])
def test_scores_equal_those_of_single_images(data, several, multilabel):
    """Cross-scoring too."""
    data = several if multilabel else data
    networks = build(multilabel=multilabel)
    found = measure(data, networks).scores.set_index(SCORE)
    assert found.index.is_unique
    # Four maps of the pretrained network, one of each other, and the cross-scoring in both directions.
    assert len(found) == (4 + 2 + 2 + 2) * len(data.pairs("test"))
    assert set(METRICS) <= set(found)
    for (variant, scorer, method, image_id, class_name), row in found.iterrows():
        pairs = data.pairs("test")
        pair = pairs[(pairs["image_id"] == image_id) & (pairs["class_name"] == class_name)].iloc[0]
        expected = by_hand(data, networks, pair, variant, METHODS[variant][method], scorer)
        for key, value in expected.items():
            assert row[key] == pytest.approx(value.item(), rel=1e-3, abs=ROUNDING.get(method, 1e-4)), (
                key,
                variant,
                scorer,
                method,
            )


def test_predictions_and_curves_equal_those_of_single_images(several):
    networks = build(multilabel=True)
    found = measure(several, networks)
    assert list(found.predictions["variant"].unique()) == list(VARIANTS)
    labels = dict(zip(several.ids("test"), several.labels("test"), strict=True))
    for variant, rows in found.predictions.groupby("variant"):
        assert list(rows["image_id"]) == several.ids("test")
        network = networks[variant].eval()
        for row in rows.itertuples():
            with torch.no_grad():
                logits = network(several.images([row.image_id]))[0]
            np.testing.assert_allclose([getattr(row, f"logit_{k}") for k in range(6)], logits, rtol=1e-3, atol=1e-4)
            assert [getattr(row, f"label_{k}") for k in range(6)] == labels[row.image_id].tolist()
            assert row.correct == labels[row.image_id][logits.argmax()]
            assert row.split == "test"
    pairs = several.pairs("test")
    assert len(found.curves) == 3 * len(pairs) * 2 * 3
    for variant in VARIANTS:
        pair = pairs.iloc[3]
        image, target = several.images([pair.image_id]), torch.tensor([pair.target])
        saliency = METHODS[variant]["gradient"](networks[variant].eval(), image, target)
        expected = deletion_curve(
            networks[variant],
            image,
            target,
            saliency,
            r=0.35,
            fractions=[0, 0.5, 1],
            generators=[generator(1, "deletion", pair.image_id)],
            repeats=2,
        )
        curves = found.curves
        mine = curves[
            (curves["variant"] == variant)
            & (curves["image_id"] == pair.image_id)
            & (curves["class_name"] == pair.class_name)
        ].sort_values(["repeat", "fraction"])
        np.testing.assert_allclose(mine["probability"], expected.flatten(), rtol=1e-3, atol=1e-5)


def test_neither_batches_nor_shards_show(several):
    networks = build(multilabel=True)
    whole = measure(several, networks, batch_size=100)
    parts = [measure(several, networks, shard(several.pairs("test"), number, 7), batch_size=1) for number in range(7)]
    assert parts[-1].scores.empty
    keys = {
        "scores": SCORE,
        "predictions": ["variant", "image_id"],
        "curves": ["variant", "image_id", "class_name", "repeat", "fraction"],
    }
    for name, key in keys.items():
        expected = getattr(whole, name).sort_values(key, ignore_index=True)
        together = pd.concat([getattr(part, name) for part in parts], ignore_index=True)
        together = together.sort_values(key, ignore_index=True)[expected.columns]
        of_bottleneck = (expected["method"] == "bottleneck") if name == "scores" else pd.Series(False, expected.index)
        for rows, tolerance in ((of_bottleneck, ROUNDING["bottleneck"]), (~of_bottleneck, 1e-4)):
            pd.testing.assert_frame_equal(together[rows], expected[rows], rtol=1e-3, atol=tolerance)


def test_networks_are_left_as_they_were(data):
    networks = build()
    networks["pretrained"].eval()
    measure(data, networks)
    assert [network.training for network in networks.values()] == [False, True, True]
    assert all(parameter.requires_grad for network in networks.values() for parameter in network.parameters())


def test_stored_maps_are_scored_like_new_ones(data, tmp_path):
    pairs, networks = data.pairs("test"), build()
    rise = attribution.get("rise", masks=4, cells=3)
    maps = torch.rand(len(pairs), 32, 32, generator=generator(0, "maps"))
    write_maps(tmp_path / "0.parquet", iter([(pairs, {"rise": maps})]), {"rise": rise}, 32, {"seed": 3})
    scores = measure(data, networks, stored={"guided": Maps([tmp_path / "0.parquet"], pairs)}).scores
    rows = scores[scores["method"] == "rise"]
    assert set(zip(rows["variant"], rows["scored_on"], strict=True)) == {("guided", "guided")}
    assert list(rows["image_id"]) == list(pairs["image_id"])
    np.testing.assert_allclose(rows["ebpg"], ebpg(maps, data.regions(pairs)), rtol=1e-5)
    images, targets = data.images(list(pairs["image_id"])), pairs["target"].tolist()
    with torch.no_grad():
        kept = networks["guided"].eval()(keep_top(images, maps)).softmax(1)[range(len(pairs)), targets]
    np.testing.assert_allclose(rows["p_kept"], kept, rtol=1e-4)


def test_one_image_and_two_classes(data):
    table = data.index.table
    two = table[(table["target"] < 2) & (table["split"] == "train")]
    one = table[table["split"] == "test"].iloc[:1].assign(target=1, class_name=data.index.class_names[1])
    small = of_table(data, pd.concat([two, one]), classes=2)
    found = measure(small, build(classes=2))
    assert len(found.scores) == 10
    assert len(found.predictions) == 3
    assert found.scores.notna().all(axis=None)
    assert found.scores[[*METRICS, "p_full", "p_kept"]].apply(lambda column: column.between(0, 1).all()).all()


def test_a_network_that_gives_every_class_the_same(data):
    """Its maps are zero everywhere."""
    networks = build()
    for parameter in networks["control"].parameters():
        torch.nn.init.zeros_(parameter)
    found = measure(data, networks).scores
    rows = found[(found["variant"] == "control") & (found["scored_on"] == "control")]
    assert (rows["p_full"] - 1 / 6).abs().max() < 1e-6
    assert (rows[["ebpg", "miou", "bbox", "average_drop", "average_increase"]] == 0).all(axis=None)


def test_an_empty_shard_has_the_same_columns(data):
    networks = build()
    none, some = (
        measure(data, networks, pairs) for pairs in (data.pairs("test").iloc[:0], data.pairs("test").iloc[:2])
    )
    for name in ("scores", "predictions", "curves"):
        empty, full = getattr(none, name), getattr(some, name)
        assert empty.empty
        assert set(empty) == set(full)
        numeric = full.select_dtypes("number").columns
        assert set(empty.select_dtypes("number").columns) == set(numeric), name


def test_arguments_that_do_not_fit_are_refused(data):
    networks = build()
    with pytest.raises(ValueError, match=r"networks of pretrained, control, guided, and methods for pretrained$"):
        measure(data, networks, methods={"pretrained": METHODS["pretrained"]})
    with pytest.raises(ValueError, match="guided: the method 'gradient' is missing"):
        measure(data, networks, methods=METHODS | {"guided": {}})


def test_further_images_are_predicted(data):
    table = data.index.table.copy()
    table.loc[table["split"] == "train", "split"] = "further"
    data, networks = of_table(data, table), build()
    ids = data.ids("further")[::2]
    logits = predict_variants(networks, data, ids, batch_size=3, device=CPU)
    frame = predictions(data, "further", ids, logits)
    assert list(frame["image_id"]) == ids * 3
    assert (frame["split"] == "further").all()
    classes = table.set_index("image_id")["target"]
    rows = frame[frame["variant"] == "guided"]
    with torch.no_grad():
        expected = networks["guided"].eval()(data.images(ids))
    np.testing.assert_allclose(rows[[f"logit_{k}" for k in range(6)]], expected, rtol=1e-3, atol=1e-4)
    assert list(rows["correct"]) == (expected.argmax(1).numpy() == classes[ids].to_numpy()).astype(float).tolist()
    assert list(rows[[f"label_{k}" for k in range(6)]].to_numpy().argmax(1)) == classes[ids].tolist()
