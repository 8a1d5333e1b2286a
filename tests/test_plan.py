"""The plan says what the code then does: its FLOPs are those that torch counts around every method and step."""

import io
import json
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import small_methods
import torch
import yaml
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ibsgl import attribution, cli, config, evaluation, plan, training
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.shapes import generate
from ibsgl.data.voc import build_index
from ibsgl.network import SplitNetwork, build_network
from ibsgl.passes import Cost, Passes
from ibsgl.plan import Split, flops_of
from ibsgl.randomness import generator

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "configs" / "tiny.yaml"
VOC2007 = ROOT / "config" / "voc2007.yaml"
SIZE = 48
# Several areas and chunks count too; all nodes of the integral at once, for a single one would need no matrix product.
METHODS = small_methods.METHODS | {
    "extremal_perturbation": {"iterations": 3, "areas": (0.1, 0.3)},
    "integrated_gradients": {"steps": 5, "chunk": 30},
}


def tiny(**changes):
    return config.parse(yaml.safe_load(TINY.read_text()) | changes)


def small(arch, size=SIZE, width=4, **changes):
    model = {"arch": arch, "image_size": size, "options": {"width": width}}
    return tiny(models={"net": model}, methods={"gradcam": {}, "rise": {"masks": 8}}, **changes)


def facts(arch, classes=4, **changes):
    return plan.network_facts(small(arch, **changes), "net", classes)


class Ramp(nn.Module):
    """Adds what differs from place to place: no channel is constant, so that Score-CAM leaves none out."""

    def forward(self, features):
        ramp = torch.linspace(0, 1, features.shape[-1])
        return features + ramp + ramp[:, None]


@pytest.fixture(params=["resnet_small", "vgg_small"])
def arch(request):
    return request.param


@pytest.fixture
def network(arch):
    torch.manual_seed(0)
    built = build_network(arch, 4, width=4).eval()
    return SplitNetwork(nn.Sequential(built.stem, Ramp()), built.head)


def own_arithmetic(method, name, channels, side, pairs):
    """FLOPs of matrix products that a method does beside its passes, by hand."""
    pixels = SIZE**2
    return (
        pairs
        * {
            # Masks, weighted by scores.
            "rise": lambda: 2 * method.masks * pixels,
            # Channels, weighted by scores.
            "score_cam": lambda: 2 * channels * side**2,
            # Gradients, weighted by the quadrature.
            "integrated_gradients": lambda: 2 * method.steps * 3 * pixels,
            # λ blurred along both sides: in every step, its gradient too, and once at the end.
            "bottleneck": lambda: (2 * method.steps + 1) * channels * 2 * 2 * side**3,
            # Each blurred level of the image, along both sides.
            "extremal_perturbation": lambda: len(method.areas) * (method.levels - 1) * 3 * 2 * 2 * SIZE**3,
        }.get(name, lambda: 0)()
    )


def test_every_registered_method_is_tested():
    assert sorted(METHODS) == attribution.names()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_costs_what_it_says(name, arch, network):
    """Three images, the first and the last with several classes, in one batch."""
    shown = torch.tensor([0, 0, 1, 2, 2, 2])
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))[shown]
    targets = torch.tensor([2, 0, 3, 0, 1, 2])
    with torch.no_grad():
        features = network.stem(images)
    context = {
        "region": torch.ones(6, SIZE, SIZE, dtype=torch.bool),
        "statistics": FeatureStatistics().update(features),
    }
    method = attribution.get(name, **METHODS[name])
    generators = [generator(0, name, i) for i in shown.tolist()]
    found = flops_of(
        lambda: method(network, images, targets, generators, **{key: context[key] for key in method.requires})
    )
    work, at_most = plan.method_work(method, facts(arch), Split(images=3, pairs=6), batch_size=6)
    _, channels, side, _ = features.shape
    assert found == work.flops + own_arithmetic(method, name, channels, side, pairs=6)
    assert at_most == (name == "score_cam")
    assert (work.flops > 0) == (name not in ("center", "random", "oracle"))


def test_score_cam_may_need_less_than_it_says(arch):
    """A channel that is constant in an image is not passed."""
    torch.manual_seed(0)
    network = build_network(arch, 4, width=4).eval()
    flat = SplitNetwork(nn.Sequential(network.stem, nn.Threshold(1e9, 0)), network.head)
    method = attribution.get("score_cam")
    images, targets = torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1])
    known = facts(arch)
    # What is left: the stem of each image, the black image, and the sum of channels.
    whole = known.work(Passes(stem=3, head=1)).flops
    channels, side, _ = known.features
    assert flops_of(lambda: method(flat, images, targets)) == whole + 2 * 2 * channels * side**2
    assert whole < plan.method_work(method, known, Split(2, 2), 2)[0].flops


def by_hand(num_classes):
    """3→2 channels of 8×8 by a 3×3 convolution, pooled, and a linear layer."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes))
    return SplitNetwork(nn.Conv2d(3, 2, 3, padding=1), head)


def test_flops_of_a_factorys_network_by_hand():
    model = {"arch": f"{__name__}:by_hand", "image_size": 16}
    settings = tiny(models={"net": model}, guidance={"mode": "end_to_end"})
    known = plan.network_facts(settings, "net", 5)
    convolution, linear = 2 * 16 * 16 * 2 * 3 * 9, 2 * 2 * 5
    assert known.features == (2, 16, 16)
    assert known.parameters == 2 * 3 * 9 + 2 + 2 * 5 + 5
    assert known.bytes == 4 * known.parameters
    assert astuple(known.flops.full) == (convolution, linear, convolution, linear)
    # To the weights of both and to the head's input; nobody asks for the image's gradient.
    assert known.flops.training == 2 * convolution + 3 * linear


def test_the_papers_networks_cost_what_is_known_of_them():
    """4.09 and 15.5 thousand million multiply-adds with a thousand classes (torchvision's documentation)."""
    for name, billions, parameters in (("resnet50", 4.09, 25_557_032), ("vgg16", 15.47, 138_357_544)):
        settings = tiny(models={"net": {"arch": name}}, methods={"gradcam": {}})
        known = plan.network_facts(settings, "net", 1000)
        assert known.parameters == parameters
        assert (known.flops.full.stem + known.flops.full.head) / 2e9 == pytest.approx(billions, rel=2e-3)


def test_counting_is_torchs_own(arch):
    network = build_network(arch, 4, width=4).eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    assert counter.get_total_flops() == facts(arch).work(Passes(stem=2, head=2)).flops


# Steps other than maps, against the functions that run them.


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=12, test=6)


@pytest.fixture
def splits(data):
    counted = {name: Split(len(data.ids(name)), len(data.pairs(name))) for name in ("train", "held_out", "test")}
    return plan.DataFacts(counted, len(data.index.class_names), "counted")


@pytest.fixture
def ready(arch, data, splits):
    """Config, network and the plan's rows by name."""
    guidance = {"steps": 2, "training": {"epochs": 2, "batch_size": 3}}
    settings = small(arch, size=32, guidance=guidance, classifier={"epochs": 2, "batch_size": 3})
    known = plan.network_facts(settings, "net", splits.classes)
    torch.manual_seed(0)
    network = build_network(arch, splits.classes, width=4).eval()
    return settings, known, network, {row.name: row.work for row in plan.steps(settings, splits, known)}


@pytest.mark.parametrize("changes", [{}, {"mode": "end_to_end"}, {"bottleneck_network": "current"}, None])
def test_training_costs_what_the_plan_says(changes, ready, data, splits, tmp_path):
    settings, _, network, _ = ready
    guidance = None if changes is None else settings.guidance.model_copy(update=changes)
    settings = settings.model_copy(update={"guidance": guidance or settings.guidance})
    known = plan.network_facts(settings, "net", splits.classes)
    rows = {row.name: row.work for row in plan.steps(settings, splits, known)}
    current = guidance is not None and guidance.bottleneck_network == "current"
    l_ib = torch.ones(len(data.pairs("train")), *known.features[1:])
    passed = []
    network.head.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))

    def run():
        training.train_guided(
            network,
            data,
            settings.guidance.training,
            guidance=guidance,
            suppression=settings.suppression,
            l_ib=None if current or guidance is None else l_ib,
            bottleneck=settings.bottleneck if current else None,
            statistics=training.feature_statistics(network, data, 4, CPU) if current else None,
            name="net",
            seed=0,
            device=CPU,
            checkpoint=tmp_path / "checkpoint",
            digest="d",
        )
        for _ in range(2):
            training.predict(network, data, "test", 4, CPU)

    found = flops_of(run)
    row = rows["control training" if guidance is None else "guided training"]
    side = known.features[1]
    blur = settings.bottleneck.steps * 2 + 1
    beside = 0
    if current:
        seen = settings.guidance.training.epochs * splits.splits["train"].pairs
        beside = seen * blur * known.features[0] * 4 * side**3
        beside += known.work(Passes(stem=splits.splits["train"].images)).flops
    assert found == row.flops + beside
    assert sum(passed) == row.passes.head


def test_the_classifier_costs_what_the_plan_says(ready, data, tmp_path):
    settings, _, network, rows = ready
    arguments = {"name": "net", "seed": 0, "device": CPU, "checkpoint": tmp_path / "checkpoint", "digest": "d"}

    def run():
        training.train_classifier(network, data, settings.classifier, **arguments)
        training.predict(network, data, "test", 4, CPU)

    assert flops_of(run) == rows["classifier"].flops


def test_evaluation_costs_what_the_plan_says(ready, data, splits, tmp_path):
    settings, known, network, rows = ready
    options = {"batch_size": 4, "device": CPU}
    statistics = []
    found = flops_of(lambda: statistics.append(training.feature_statistics(network, data, 4, CPU)))
    assert found == rows["feature statistics"].flops

    method = attribution.get("bottleneck", **settings.bottleneck.model_dump())
    channels, side, _ = known.features
    blur = (2 * method.steps + 1) * channels * 4 * side**3
    held_out, train = data.pairs("held_out"), data.pairs("train")
    maps = []

    def guide():
        for pairs in (held_out, train):
            maps.append(evaluation.bottleneck_maps(network, data, pairs, method, statistics[0], seed=0, **options))

    found = flops_of(guide)
    assert found == rows["L^ib for the guidance"].flops + blur * (len(held_out) + len(train))

    def effect():
        for _ in config.NETWORKS:
            evaluation.guidance_effect(network, data, maps[0], r=0.35, cross_entropy="distribution", **options)

    assert flops_of(effect) == rows["effect of guidance"].flops

    test, cells = data.pairs("test"), settings.cells()

    def stored(methods):
        maps = dict.fromkeys(methods, torch.rand(len(test), 32, 32))
        made = {name: attribution.get(name) for name in methods}
        evaluation.write_maps(tmp_path / "0.parquet", iter([(test, maps)]), made, 32, {})
        return evaluation.Maps([tmp_path / "0.parquet"], test)

    def score():
        for place in config.NETWORKS:
            maps = stored([name for where, name in cells if where == place])
            evaluation.score_maps(network, data, maps, settings.metrics, **options)

    assert flops_of(score) == rows["scores"].flops

    def delete():
        for _ in config.NETWORKS:
            maps = stored(["gradient"])
            evaluation.deletion_curves(network, data, maps, settings.deletion, r=0.35, seed=0, **options)

    assert flops_of(delete) == rows["deletion curves"].flops
    assert {name for name in rows if name not in {attribution.get(m).label for _, m in cells}} == {
        *("classifier", "feature statistics", "L^ib for the guidance", "guided training", "control training"),
        *("scores", "effect of guidance", "deletion curves"),
    }
    assert splits.splits["test"].pairs == len(test)


def test_images_cut_by_the_end_of_a_batch_are_passed_twice():
    assert plan._passed_images(Split(images=6, pairs=6), 4) == 6
    # Every other place between two pairs lies within an image.
    assert plan._passed_images(Split(images=2, pairs=4), 3) == 2.5
    assert plan._passed_images(Split(images=2, pairs=4), 4) == 2


def test_passes_and_prices():
    two = Passes(stem=1) + Passes(head=1, head_backward=2) * 3
    assert two == Passes(stem=1, head=3, head_backward=6)
    assert two.at(Passes(100, 10, 7, 1)) == 136
    assert attribution.get("rise").cost(2048) == Cost(image=Passes(8000, 8000), mixed=True)
    assert attribution.get("extremal_perturbation").cost(2048).pair == Passes(800, 800, 800, 800)
    assert attribution.get("integrated_gradients").cost(2048).pair == Passes(50, 50, 50, 50)
    assert attribution.get("score_cam").cost(2048).image == Passes(stem=2049, head=2048)


# Data that is there, counted, and data that is not.


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def voc(root, **changes):
    section = {"source": "voc", "root": str(root), "multilabel": True, "held_out": 0.25} | changes
    return tiny(data=section)


def test_pairs_of_the_built_in_data_are_as_generated(elsewhere):
    settings = tiny()
    generate(elsewhere / "VOC2007", seed=0, **settings.data.shapes.model_dump())
    index = build_index(
        elsewhere / "VOC2007", splits={"train": "trainval", "test": "test"}, held_out=settings.data.held_out, seed=0
    )
    expected = {name: Split(len(set(rows["image_id"])), len(rows)) for name, rows in index.table.groupby("split")}
    absent = plan.data_facts(settings)
    assert absent.splits == expected
    assert absent.classes == len(index.class_names)
    folder = Path(elsewhere / "results" / settings.name)
    folder.mkdir(parents=True)
    index.save(folder / "index.parquet")
    counted = plan.data_facts(settings)
    assert (counted.splits, counted.classes) == (absent.splits, absent.classes)
    assert counted.source.startswith("counted in results")


def test_pairs_of_a_folder_are_counted(elsewhere):
    def annotation(name, *objects):
        items = "".join(f"<object><name>{kind}</name><difficult>{hard}</difficult></object>" for kind, hard in objects)
        path = elsewhere / "VOC2007" / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation>{items}</annotation>")

    lists = elsewhere / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    (lists / "test.txt").write_text("e\nf\n")
    for name in "abc":
        annotation(name, ("cat", 0), ("cat", 1), ("dog", 1))
    annotation("d", ("cat", 0), ("dog", 0))
    annotation("e", ("bird", 1))
    annotation("f", ("dog", 0), ("dog", 0))
    keep = plan.data_facts(voc(elsewhere / "VOC2007"))
    assert keep.splits == {"train": Split(3, 6), "held_out": Split(1, 2), "test": Split(2, 2)}
    assert keep.classes == 3
    drop = plan.data_facts(voc(elsewhere / "VOC2007", difficult="drop"))
    # An image that shows nothing else is no image of the run.
    assert drop.splits == {"train": Split(3, 4), "held_out": Split(1, 1), "test": Split(1, 1)}


def test_pairs_of_absent_data(elsewhere):
    lists = {"trainval": 5011, "test": 4952}
    published = plan.data_facts(voc("gone"), lists)
    assert published.splits["test"] == Split(4952, 7632)
    assert published.splits["train"].images + published.splits["held_out"].images == 5011
    assert published.splits["train"].pairs + published.splits["held_out"].pairs == 7913
    assert "lists of VOC 2007" in published.source
    assert plan.data_facts(voc("gone", difficult="drop"), lists).splits["test"].pairs == 7013
    assert plan.data_facts(voc("gone", multilabel=False), lists).splits["test"].pairs == 4952
    other = plan.data_facts(voc("gone"), lists | {"test": 1000})
    # 15 545 pairs of 9963 images.
    assert other.splits["test"].pairs == 1560
    assert "estimated" in other.source
    assert plan.data_facts(voc("gone"), lists, pairs_per_image=2).splits["test"].pairs == 9904
    with pytest.raises(ValueError, match=r"no folder 'gone'.*--images trainval=… --images test=…"):
        plan.data_facts(voc("gone"))


def test_the_reproduction_is_planned_without_its_data(elsewhere):
    made = plan.plan(config.parse(yaml.safe_load(VOC2007.read_text())), calibration=False)
    assert {name: split.pairs for name, split in made.data.splits.items()} == {
        "train": 7122,
        "held_out": 791,
        "test": 7632,
    }
    assert made.disk_bytes["archives"] == 460032000 + 451020800
    seven = {"Grad-CAM", "Grad-CAM++", "Extremal Perturbation", "RISE", "Score-CAM", "Integrated Gradients", "FullGrad"}
    for network in made.networks:
        work = {row.name: row.work for row in made.steps if row.model == network.model}
        assert seven <= work.keys()
        assert all(work[name].flops > 0 for name in seven)


def test_imagenets_numbers_are_in_its_config(elsewhere):
    loaded = config.parse(yaml.safe_load(VOC2007.with_name("imagenet.yaml").read_text()))
    facts = plan.data_facts(loaded)
    assert (facts.classes, facts.splits["test"], facts.splits["train"]) == (
        1000,
        plan.Split(2000, 2000),
        plan.Split(9000, 9000),
    )


def test_the_papers_run_is_planned_without_its_data(elsewhere):
    """On VGG-16: images × masks × a pass, but for the images that two batches share; pairs × steps × there and back."""
    settings = voc("gone").model_copy(
        update={
            "models": {"vgg": config.Model(arch="vgg16", weights="imagenet")},
            "methods": {"rise": {"masks": 4000}, "extremal_perturbation": {}},
            "batch_size": 32,
        }
    )
    made = plan.plan(settings, {"trainval": 5011, "test": 4952}, calibration=False)
    rows = {row.name: row for row in made.steps}
    forward = made.networks[0].flops.full.stem + made.networks[0].flops.full.head
    assert rows["RISE"].work.flops == pytest.approx(2 * 4952 * 4000 * forward, rel=0.02)
    assert rows["Extremal Perturbation"].work.flops == 2 * 7632 * 800 * 2 * forward
    assert made.disk_bytes["maps, uncompressed"] == 7632 * 11 * 224 * 224 * 4


def test_disk(splits):
    settings = small("vgg_small", size=32)
    known = plan.network_facts(settings, "net", splits.classes)
    space = plan.disk(settings, splits, [known])
    network = build_network("vgg_small", splits.classes, width=4)
    assert space["weights"] == 3 * sum(tensor.numel() * tensor.itemsize for tensor in network.state_dict().values())
    # Eleven cells: two methods on two networks, Eq. 3 on three, L^ib, and three controls.
    assert space["maps, uncompressed"] == 11 * 6 * 32 * 32 * 4
    channels, side, _ = known.features
    assert space["L^ib for the guidance"] == 12 * side**2 * 4
    assert space["feature statistics"] == 2 * 8 * channels * side**2
    assert "archives" not in space


# What is printed.


def printed(made):
    console = Console(markup=False, highlight=False, width=200, record=True, file=io.StringIO())
    plan.show(made, console)
    return console.export_text()


def test_a_method_that_does_not_say_is_unknown(elsewhere, monkeypatch, splits):
    get = attribution.get

    class Silent:
        label, requires = "Silent", frozenset()

    monkeypatch.setattr(
        attribution, "get", lambda name, **settings: Silent() if name == "gradcam" else get(name, **settings)
    )
    settings = small("resnet_small", size=32)
    made = plan.plan(settings, calibration=False)
    (row,) = [row for row in made.steps if row.name == "Silent"]
    assert row.work is None
    text = printed(made)
    assert "unknown" in next(line for line in text.splitlines() if line.startswith("Silent"))
    assert "Methods marked unknown are not in it." in text
    assert made.total().flops == sum(row.work.flops for row in made.steps if row.work)
    json.dumps(made.as_dict())


def test_the_command_prints_and_writes(elsewhere):
    def run(*arguments):
        result = CliRunner().invoke(cli.app, ["plan", "--config", str(TINY), *map(str, arguments)])
        assert result.exception is None, result.exception
        return result.output

    text = run("--json", elsewhere / "new" / "plan.json")
    written = json.loads((elsewhere / "new" / "plan.json").read_text())
    for name in ("gradcam", "rise", "gradient", "bottleneck", "center"):
        assert text.count(f"\n{attribution.get(name).label} ") == 2, name
    assert written["device"] == "CPU, 1 thread(s)"
    assert written["total"]["seconds"] > 0
    assert written["total"]["flops"] == sum(step["work"]["flops"] for step in written["steps"])
    assert all(network["seconds"]["training"] > 0 for network in written["networks"])
    # Nothing for the eye where the output is piped.
    assert not set("│─┃━\x1b") & set(text)
    assert "time not measured" not in text
    text = run("--no-calibrate")
    assert "time not measured" in text
    assert max(map(len, text.splitlines())) <= 200


def test_the_command_refuses_in_one_line(elsewhere):
    result = CliRunner().invoke(cli.app, ["plan", "--config", str(TINY), "--images", "test=many"])
    assert result.exit_code == 2
    assert "'test=many' is not <list>=<images>, like test=4952" in result.output


def test_a_gpu_that_is_not_here_is_not_timed(elsewhere, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = plan.plan(small("resnet_small", size=32, device="cuda"))
    assert made.device is None
    assert made.total().seconds is None


def test_time_is_passes_times_their_seconds(splits):
    known = facts("vgg_small")
    seconds = plan.Prices(Passes(1, 10, 100, 1000), Passes(0.1, 0.2), 7, 70)
    timed = replace(known, seconds=seconds, batch=4)
    assert timed.work(Passes(2, 1, 1, 1)).seconds == 1112
    assert timed.work(Passes(2, 1), mixed=True).seconds == pytest.approx(0.4)
    assert timed.training(3).seconds == 21
    assert timed.training(3, config.Guidance()).seconds == 210
    assert known.training(3).seconds is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (999.7, "1.00 kFLOP"), (8.178e9, "8.18 GFLOP"), (1.2345e20, "123 EFLOP")],
)
def test_numbers_have_three_digits_and_a_unit(number, text):
    assert plan._si(number, "FLOP") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0123, "12.3 ms"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (129600, "1.5 d")],
)
def test_durations(seconds, text):
    assert plan._duration(seconds) == text
