"""One line naming the key, and the settings of a step are exactly what its result depends on."""

import pytest
import yaml
from shapes_config import JOBS, SHAPES, changed, values

from ibsgl import attribution, config
from ibsgl.config.steps import step_of

ARCHIVE = {"name": "set.tar", "md5": "0" * 32, "bytes": 1}
DOWNLOAD = {"mirrors": ["https://example.org/"], "archives": [ARCHIVE], "images": {"trainval": 2, "test": 1}}
IMAGENET = SHAPES.with_name("imagenet.yaml")
# Some file that is there.
TORCHRAY = {"arch": "resnet50", "source": "torchray", "weights": str(SHAPES)}


# The file that each overlay belongs on top of.
BASES = {"study": "shapes", "sensitivity": "shapes", "losses": "shapes", "torchray": "voc2007"}


def test_the_default_config_is_valid():
    assert config.load(values()).name == "shapes"


@pytest.mark.parametrize("name", sorted(path.stem for path in SHAPES.parent.glob("*.yaml")))
def test_every_config_is_valid_named_after_its_file_and_listed(name):
    files = [SHAPES.with_stem(stem) for stem in (BASES.get(name), name) if stem]
    assert config.read(files, data=False).name == name
    assert f"| `config/{name}.yaml` |" in SHAPES.with_name("README.md").read_text(encoding="utf-8")


def test_the_demo_has_one_network_one_training_and_methods_of_one_pass():
    demo = config.read([SHAPES.with_stem("demo")])
    assert (len(demo.models), demo.replicates, demo.variants) == (1, 1, {})
    assert demo.methods
    assert all(attribution.is_single_pass(method) for method in demo.methods)
    assert demo.data.trainval < config.load(values()).data.trainval


def test_numbers_as_people_write_them():
    loaded = config.load(values(bottleneck__alpha=1000, guidance__training__lr="1e-3"))
    assert loaded.bottleneck.alpha == 1000.0
    assert loaded.guidance.training.lr == 1e-3


def test_a_data_set_that_will_be_downloaded_need_not_be_there():
    loaded = config.load(values(data__source="voc", data__root="nowhere", data__download=DOWNLOAD))
    assert step_of(loaded, "fetch").to_dict() == {"archives": [ARCHIVE]}


def test_where_an_archive_comes_from_changes_no_step():
    """Not even a table, which depends on most of the config."""
    downloads = [DOWNLOAD, DOWNLOAD | {"mirrors": ["here"], "folder": "elsewhere"}]
    one, other = (config.parse(values(data__source="voc", data__root="x", data__download=d)) for d in downloads)
    for step, where in [*JOBS, ("fetch", {}), ("tables", {"model": "vgg"}), ("claims", {})]:
        assert step_of(one, step, **where) == step_of(other, step, **where)


def test_a_new_seed_changes_every_step_that_draws():
    names = {"data", "index", "classifier/resnet", "bottleneck/vgg", "maps/resnet/pretrained/rise", "evaluate/vgg"}
    assert names <= changed(values(), values(seed=1))


def test_override_is_merged_for_its_model_alone():
    loaded = config.load(values(models__vgg__override={"methods": {"rise": {"masks": 3}}, "guidance": {"mu": 1}}))
    made_with = step_of(loaded, "maps", model="vgg", replicate=0, variant="pretrained", method="rise").to_dict()
    assert made_with["methods"] == {"rise": {"masks": 3, "chunk": 16}}
    assert loaded.for_model("vgg").guidance.mu == 1.0
    assert loaded.for_model("resnet").guidance.mu == 2.0
    assert loaded.for_model("vgg").guidance.step_size == loaded.guidance.step_size


def test_imagenet_has_the_published_settings_of_every_method():
    """The papers' own values. Settings that they do not give have the defaults, which are tested against reference code."""
    loaded = config.parse(yaml.safe_load(IMAGENET.read_text()))
    assert set(loaded.methods) == set(values()["methods"])
    methods = {
        model: {name: attribution.get(name, **loaded.for_model(model).methods[name]) for name in loaded.methods}
        for model in loaded.models
    }
    assert [loaded.models[m].arch for m in methods] == ["resnet50", "vgg16"]
    assert [of["rise"].masks for of in methods.values()] == [8000, 4000]
    for of in methods.values():
        assert (of["rise"].cells, of["rise"].p) == (7, 0.5)
        ep = of["extremal_perturbation"]
        assert (tuple(ep.areas), ep.iterations, ep.lr, ep.weight, ep.growth) == ((0.1,), 800, 0.01, 300, 1.0035)
        assert (ep.grid_spacing, ep.sigma, ep.levels) == (7, 21, 8)
        assert of["integrated_gradients"].steps == 50
        assert of["score_cam"].weight == "increase"
        assert (of["sise"].layers, of["sise"].mu) == ("before", 0)
    ib, guidance = loaded.bottleneck, loaded.guidance
    assert (ib.alpha, ib.gamma, ib.sigma, guidance.mu) == (1000, 5, 1, 2)
    assert (loaded.suppression.r, loaded.suppression.beta) == (0.35, 1)
    assert {model.image_size for model in loaded.models.values()} == {224}
    assert loaded.classifier.epochs == 0
    assert not loaded.data.multilabel


def test_imagenet_is_read_with_its_own_settings_alone():
    tree = values(data__source="imagenet", data__root="somewhere", data__test_per_class=3)
    expected = {"source": "imagenet", "held_out": 0.166667, "train_per_class": 10, "test_per_class": 3}
    assert step_of(config.parse(tree), "index").to_dict() == {"seed": 0, "data": expected}


@pytest.mark.parametrize("part", ["a", "ab", "a-b"])
def test_names_are_refused_that_snakemake_takes_for_a_recursion(part):
    from snakemake.io import PeriodicityDetector

    for times in (2, 10, 19, 20, 25):
        for name in (part * times, f"x{part * times}", f"{part * times}x"):
            refused = PeriodicityDetector().is_periodic(name) is not None
            assert refused == (times >= 20 and not name.endswith("x"))
            if refused:
                with pytest.raises(config.ConfigError, match="is repeated twenty times"):
                    config.parse(values(name=name))
            else:
                assert config.parse(values(name=name)).name == name
