"""The FLOPs that the plan states for a step are those that torch counts when the functions of the step run."""

import pytest
import torch
from plan_configs import WIDTH, small

from ibsgl import attribution
from ibsgl.attribution import Passes
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.data.sources import Split
from ibsgl.evaluation.deletion import deletion_curves
from ibsgl.evaluation.effect import guidance_effect
from ibsgl.evaluation.scoring import score_maps
from ibsgl.inference import predict
from ibsgl.networks import build_network
from ibsgl.plan import DataFacts, disk_space, flops_of, model_steps, network_facts
from ibsgl.precompute import bottleneck_maps, feature_statistics
from ibsgl.training.classifier import train_classifier
from ibsgl.training.guided import train_guided
from ibsgl.training.variants import VARIANTS

CPU = torch.device("cpu")
GUIDANCE = {"steps": 2, "training": {"epochs": 2, "batch_size": 3}}


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=12, test=6)


@pytest.fixture(scope="module")
def counted(data):
    splits = {name: Split(len(data.ids(name)), len(data.pairs(name))) for name in ("train", "held_out", "test")}
    return DataFacts(splits, len(data.index.class_names), "counted")


@pytest.fixture(scope="module", params=["resnet_small", "vgg_small"])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def facts_of(arch, counted):
    """The facts of the network with the guidance ``mode``."""
    known = {}

    def get(settings):
        mode = settings.guidance.mode
        if mode not in known:
            known[mode] = network_facts(settings, "net", counted.classes)
        return known[mode]

    return get


@pytest.fixture
def network(arch, counted):
    torch.manual_seed(0)
    return build_network(arch, counted.classes, width=WIDTH).eval()


def settings_of(arch, **guidance):
    return small(arch, size=32, guidance=GUIDANCE | guidance, classifier={"epochs": 2, "batch_size": 3})


def works(settings, counted, known):
    """The work of each step by its name."""
    return {step.name: step.work for step in model_steps(settings, counted, known)}


@pytest.mark.parametrize("changes", [{}, {"mode": "end_to_end"}, {"bottleneck_network": "current"}, None])
def test_training_costs_what_the_plan_states(changes, arch, network, facts_of, data, counted, tmp_path):
    settings = settings_of(arch, **(changes or {}))
    guidance = None if changes is None else settings.guidance
    known = facts_of(settings)
    current = guidance is not None and guidance.bottleneck_network == "current"
    l_ib = torch.ones(len(data.pairs("train")), *known.features[1:])
    passed = []
    network.head.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))

    def run():
        train_guided(
            network,
            data,
            settings.guidance.training,
            guidance=guidance,
            suppression=settings.suppression,
            l_ib=None if current or guidance is None else l_ib,
            bottleneck=settings.bottleneck if current else None,
            statistics=feature_statistics(network, data, 4, CPU) if current else None,
            name="net",
            seed=0,
            device=CPU,
            checkpoint=tmp_path / "checkpoint",
            digest="d",
        )
        for _ in range(2):
            predict(network, data, "test", 4, CPU)

    flops = flops_of(run)
    work = works(settings, counted, known)["control training" if guidance is None else "guided training"]
    besides = 0
    if current:
        examples = settings.guidance.training.epochs * counted.splits["train"].pairs
        channels, side, _ = known.features
        besides = examples * (settings.bottleneck.steps * 2 + 1) * channels * 4 * side**3
        besides += known.work(Passes(stem=counted.splits["train"].images)).flops
    assert flops == work.flops + besides
    assert sum(passed) == work.passes.head


def test_the_classifier_costs_what_the_plan_states(arch, network, facts_of, data, counted, tmp_path):
    settings = settings_of(arch)
    arguments = {"name": "net", "seed": 0, "device": CPU, "checkpoint": tmp_path / "checkpoint", "digest": "d"}

    def run():
        train_classifier(network, data, settings.classifier, **arguments)
        predict(network, data, "test", 4, CPU)

    assert flops_of(run) == works(settings, counted, facts_of(settings))["classifier"].flops


def test_evaluation_costs_what_the_plan_states(arch, network, facts_of, data, counted, tmp_path):
    settings = settings_of(arch)
    known = facts_of(settings)
    work = works(settings, counted, known)
    options = {"batch_size": 4, "device": CPU}
    statistics = []
    flops = flops_of(lambda: statistics.append(feature_statistics(network, data, 4, CPU)))
    assert flops == work["feature statistics"].flops

    method = attribution.get("bottleneck", **settings.bottleneck.model_dump())
    channels, side, _ = known.features
    blur = (2 * method.steps + 1) * channels * 4 * side**3
    held_out, train = data.pairs("held_out"), data.pairs("train")
    maps = []

    def guide():
        for pairs in (held_out, train):
            maps.append(bottleneck_maps(network, data, pairs, method, statistics[0], seed=0, **options))

    assert flops_of(guide) == work["L^ib for the guidance"].flops + blur * (len(held_out) + len(train))

    def effect():
        variants = dict.fromkeys(VARIANTS, network)
        guidance_effect(variants.items(), data, maps[0], r=0.35, cross_entropy="distribution", **options)

    assert flops_of(effect) == work["effect of guidance"].flops

    test, evaluations = data.pairs("test"), settings.evaluations()

    def stored(names):
        maps = dict.fromkeys(names, torch.rand(len(test), 32, 32))
        methods = {name: attribution.get(name) for name in names}
        write_maps(tmp_path / "0.parquet", iter([(test, maps)]), methods, 32, {})
        return Maps([tmp_path / "0.parquet"], test)

    def score():
        for variant in VARIANTS:
            maps = stored([name for evaluated, name in evaluations if evaluated == variant])
            score_maps(network, data, maps, settings.metrics, **options)

    assert flops_of(score) == work["scores"].flops

    def delete():
        for _ in VARIANTS:
            maps = stored(["gradient"])
            deletion_curves(network, data, maps, settings.deletion, r=0.35, seed=0, **options)

    assert flops_of(delete) == work["deletion curves"].flops
    labels = {attribution.get(name).label for name in {name for _, name in evaluations}}
    assert work.keys() - labels == {
        *("classifier", "feature statistics", "L^ib for the guidance", "guided training", "control training"),
        *("scores", "effect of guidance", "deletion curves"),
    }
    assert counted.splits["test"].pairs == len(test)


def test_disk_space(counted):
    settings = small("vgg_small", size=32)
    known = network_facts(settings, "net", counted.classes)
    space = disk_space(settings, counted, [known])
    network = build_network("vgg_small", counted.classes, width=WIDTH)
    assert space["weights"] == 3 * sum(tensor.numel() * tensor.itemsize for tensor in network.state_dict().values())
    # Eleven evaluations: two methods on two variants, Eq. 3 on three, L^ib, and three sanity methods.
    assert space["maps, uncompressed"] == 11 * 6 * 32 * 32 * 4
    channels, side, _ = known.features
    assert space["L^ib for the guidance"] == 12 * side**2 * 4
    assert space["feature statistics"] == 2 * 8 * channels * side**2
    assert "archives" not in space
