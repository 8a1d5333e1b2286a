"""The FLOPs that the plan states for a step are those that torch counts when the functions of the step run."""

import pytest
import torch
from plan_configs import WIDTH, small

from ibsgl import attribution
from ibsgl.attribution import Passes
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.data.sources import Split
from ibsgl.evaluation.classification import predict_variants
from ibsgl.evaluation.held_out import diagnostics, held_out_losses
from ibsgl.evaluation.variants import measure_variants
from ibsgl.inference import predict
from ibsgl.networks import build_network
from ibsgl.plan import DataFacts, Jobs, disk_space, flops_of, model_steps, network_facts
from ibsgl.precompute import bottleneck_maps, feature_statistics, other_targets
from ibsgl.training.classifier import train_classifier
from ibsgl.training.guided import train_guided

CPU = torch.device("cpu")
GUIDANCE = {"steps": 2, "training": {"epochs": 2, "batch_size": 3}}


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=12, test=6)


@pytest.fixture(scope="module")
def counted(data):
    splits = {name: Split(len(data.ids(name)), len(data.pairs(name))) for name in ("train", "held_out", "test")}
    # As many further images as test images.
    splits["further"] = splits["test"]
    return DataFacts(splits, len(data.index.class_names), "counted")


@pytest.fixture(scope="module", params=["resnet_small", "vgg_small"])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def known(arch, counted):
    return network_facts(settings_of(arch), "net", counted.classes)


@pytest.fixture
def network(arch, counted):
    torch.manual_seed(0)
    return build_network(arch, counted.classes, width=WIDTH).eval()


def settings_of(arch, **guidance):
    return small(arch, size=32, guidance=GUIDANCE | guidance, classifier={"epochs": 2, "batch_size": 3})


def works(settings, counted, known):
    """The work of each step by its name."""
    return {step.name: step.work for step in model_steps(Jobs(settings, "net"), counted, known)}


@pytest.mark.parametrize("changes", [{}, {"mode": "end_to_end"}, {"bottleneck_network": "current"}, None])
def test_training_costs_what_the_plan_states(changes, arch, network, known, data, counted, tmp_path):
    settings = settings_of(arch, **(changes or {}))
    guidance = None if changes is None else settings.guidance
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


def test_the_classifier_costs_what_the_plan_states(arch, network, known, data, counted, tmp_path):
    settings = settings_of(arch)
    arguments = {"name": "net", "seed": 0, "device": CPU, "checkpoint": tmp_path / "checkpoint", "digest": "d"}

    def run():
        train_classifier(network, data, settings.classifier, **arguments)
        predict(network, data, "test", 4, CPU)

    assert flops_of(run) == works(settings, counted, known)["classifier"].flops


def test_evaluation_costs_what_the_plan_states(arch, network, known, data, counted, tmp_path):
    settings = settings_of(arch)
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

    held_out_other = []

    def other():
        pairs = held_out.assign(target=other_targets(network, data, held_out, **options).numpy())
        held_out_other.append(bottleneck_maps(network, data, pairs, method, statistics[0], seed=0, **options))

    guide_flops = flops_of(guide) + flops_of(other)
    assert guide_flops == work["L^ib for the guidance"].flops + blur * (2 * len(held_out) + len(train))

    variants = dict.fromkeys(settings.variant_names, network)

    def losses():
        held_out_losses(variants, data, held_out, maps[0], r=0.35, cross_entropy="distribution", **options)

    assert flops_of(losses) == work["losses"].flops
    counted_diagnostics = flops_of(lambda: diagnostics(network, data, held_out, maps[0], held_out_other[0], **options))
    assert counted_diagnostics == work["diagnostics of L^ib"].flops

    test = data.pairs("test")
    counted_predictions = flops_of(lambda: predict_variants(variants, data, data.ids("test"), **options))

    def stored(variant):
        names = [name for name in settings.methods_of(variant) if name != "gradient"]
        path = tmp_path / f"{variant}.parquet"
        maps = dict.fromkeys(names, torch.rand(len(test), 32, 32))
        write_maps(path, iter([(test, maps)]), {name: attribution.get(name) for name in names}, 32, {})
        return Maps([path], test)

    # The maps of Eq. 3 are made here. The others are read, which costs nothing.
    eq3 = {"gradient": attribution.get("gradient")}

    def measure():
        measure_variants(
            variants,
            data,
            test,
            dict.fromkeys(variants, eq3),
            {variant: stored(variant) for variant in variants},
            settings.metrics,
            settings.deletion,
            r=0.35,
            seed=0,
            reference="pretrained",
            **options,
        )

    steps = ("predictions", "scores", "cross-scoring", "deletion curves", "Eq. 3 (HiResCAM)")
    assert flops_of(measure) + counted_predictions == sum(work[name].flops for name in steps)
    labels = {attribution.get(name).label for _, _, name in settings.evaluations()}
    assert work.keys() - labels == {
        *("classifier", "feature statistics", "L^ib for the guidance", "guided training", "control training"),
        *("predictions", "scores", "cross-scoring", "losses", "diagnostics of L^ib", "deletion curves"),
    }


def test_disk_space(counted):
    settings = small("vgg_small", size=32)
    known = network_facts(settings, "net", counted.classes)
    space = disk_space([Jobs(settings, "net")], counted, [known])
    network = build_network("vgg_small", counted.classes, width=WIDTH)
    assert space["weights"] == 3 * sum(tensor.numel() * tensor.itemsize for tensor in network.state_dict().values())
    # RISE on two variants. Maps of methods of one pass are not stored.
    assert space["maps, uncompressed"] == 2 * 6 * 32 * 32 * 4
    methods = {"rise": {"masks": 8}, "mine": {"use": "score_cam"}, "gradcam": {}}
    more = settings.model_copy(update={"methods": methods, "further_metrics": {"sparseness": {}}})
    space = disk_space([Jobs(more, "net")], counted, [known])
    # On two variants RISE has 32×32 numbers. Score-CAM, Grad-CAM and Eq. 3 have the 2×2 of the feature map after four pools.
    # On the pretrained one L^ib has 2×2, and the three sanity methods have 32×32.
    numbers = 2 * (32**2 + 3 * 2**2) + 2**2 + 3 * 32**2
    assert space["maps, uncompressed"] == 6 * 4 * numbers
    channels, side, _ = known.features
    assert space["L^ib for the guidance"] == (8 + 2 * 4) * side**2 * 4
    assert space["feature statistics"] == 2 * 8 * channels * side**2
    assert "archives" not in space
