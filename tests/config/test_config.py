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
BASES = {"study": "shapes", "sensitivity": "shapes", "torchray": "voc2007"}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 1}, "sead: there is no such key"),
        ({"suppression__r": 1.5}, "suppression.r: Input should be less than or equal to 1 (it is 1.5)"),
        ({"suppression__r": 0}, "suppression.r: Input should be greater than 0 (it is 0.0)"),
        ({"seed": "one"}, "seed: Input should be a valid integer (it is 'one')"),
        ({"seed": True}, "seed: Input should be a valid integer (it is True)"),
        ({"guidance__training__lr": float("nan")}, "guidance.training.lr: Input should be a finite number (it is nan)"),
        ({"guidance__training__leraning_rate": 1}, "guidance.training.leraning_rate: there is no such key"),
        ({"metrics__bbox__ties": "loose"}, "metrics.bbox.ties: Input should be 'strict' or 'index' (it is 'loose')"),
        ({"data": None}, "data: this is a section with keys of its own, such as source: shapes (it is None)"),
        ({"data": {"source": None}}, "data: this is a section with keys of its own"),
        ({"models__resnet__arch": ":f"}, "models.resnet.arch: ':f' is not package.module:function"),
        (
            {"models__resnet__options": {"width": "x"}},
            "models.resnet.options: resnet_small: width must be an integer from 8",
        ),
        ({"metrics__bbox": "loose"}, "metrics.bbox: this is a section with keys of its own (it is 'loose')"),
        ({"models__resnet__arch": "resnet5"}, "models.resnet.arch: 'resnet5' is unknown"),
        ({"models__resnet__arch": "no_such_package:f"}, "models.resnet.arch: 'no_such_package:f': no module"),
        ({"models__resnet__weights": "gone.pt"}, "models.resnet.weights: there is no file 'gone.pt'"),
        ({"models": {}}, "models: give one network"),
        *[
            (
                {"models__vgg__options": {"width": width}},
                "models.vgg.options: vgg_small: width must be an integer from 1 to",
            )
            for width in (-2, 0, "two", True, 10**9)
        ],
        ({"models__vgg__options": {"num_classes": 7}}, "models.vgg.options: num_classes is the number of the data's"),
        ({"models__vgg__image_size": 16}, "models.vgg.image_size: vgg_small needs at least 32 pixels, not 16"),
        ({"models__vgg": {"arch": "vgg16", "image_size": 16}}, "models.vgg.image_size: vgg16 needs at least 32 pixels"),
        ({"models__vgg__image_size": 10**6}, "models.vgg.image_size: Input should be less than or equal to 4096"),
        ({"classifier__lr": "1e300"}, "classifier.lr: Input should be less than or equal to 1000 "),
        ({"classifier__epochs": 10**12}, "classifier.epochs: Input should be less than"),
        ({"methods__rise__masks": 10**11}, "methods.rise.masks: 1e+11 is more than 10000000"),
        ({"methods__rise__p": float("nan")}, "methods.rise"),
        ({"deletion__points": 10**9}, "deletion.points: Input should be less than or equal to 1001"),
        ({"deletion__repeats": 10**12}, "deletion.repeats: Input should be less than"),
        ({"replicates": 10**4}, "replicates: Input should be less than or equal to 1000"),
        ({"name": "a" * 300}, "name: String should have at most 100 characters"),
        ({"data__size": 10**7}, "data.size: Input should be less than or equal to 4096"),
        ({"data__source": "voc", "data__root": "{wildcards}"}, "data.root: Snakemake reads braces as wildcards"),
        (
            {"data__source": "voc", "data__root": "x", "data__classes": ["a", "a"]},
            "data.classes: 'a' is listed more than",
        ),
        ({"methods__rises": {}}, "methods.rises: no saliency method 'rises'; registered are"),
        ({"methods__rise__mask": 5}, "methods.rise: method 'rise' has no setting 'mask'; its settings:"),
        ({"methods__rise__masks": "many"}, "methods.rise: masks:"),
        ({"methods__rise__masks": 0}, "methods.rise: "),
        ({"methods__gradient": {}}, "methods: gradient is in every table anyway"),
        ({"data__source": "voc"}, "data.root: give the folder"),
        ({"data__source": "voc", "data__root": "nowhere"}, "data.root: there is no folder 'nowhere'"),
        ({"data__download": DOWNLOAD}, "data.download: there is no such key where data.source is shapes"),
        (
            {"data__source": "voc", "data__root": "nowhere", "data__download": DOWNLOAD | {"images": {"test": 1}}},
            "data.download.images: give the number of images of the list 'trainval'",
        ),
        (
            {"data__source": "voc", "data__root": "nowhere", "data__download": DOWNLOAD | {"mirrors": []}},
            "data.download.mirrors: List should have at least 1 item",
        ),
        *[
            (
                {
                    "data__source": "voc",
                    "data__root": "x",
                    "data__download": DOWNLOAD | {"archives": [ARCHIVE | change]},
                },
                f"data.download.archives.0.{next(iter(change))}: ",
            )
            for change in ({"name": "../up.tar"}, {"md5": "0"}, {"bytes": 0}, {"sha256": "0"})
        ],
        (
            {
                "data__source": "voc",
                "data__root": "x",
                "data__download": DOWNLOAD | {"mirrors": ["https://me:secret@host/voc/"]},
            },
            "data.download.mirrors: an address with a user or a token would stand in logs; put them into ~/.netrc (it is "
            "['https://host/voc/'])",
        ),
        ({"models__vgg__override": {"metrics": {}}}, "models.vgg.override.metrics: only"),
        ({"models__vgg__override": {"guidance": {"mu": -1}}}, "models.vgg.override.guidance.mu: Input should be"),
        ({"classifier__epochs": -1}, "classifier.epochs: Input should be greater than or equal to 0 (it is -1)"),
        ({"guidance__training__epochs": 0}, "guidance.training.epochs: Input should be greater than or equal to 1"),
        ({"models__resnet__source": "caffe"}, "models.resnet.source: Input should be 'torchvision' or 'torchray'"),
        (
            {"models__resnet": TORCHRAY | {"weights": "gone.pt"}, "data__multilabel": True},
            "models.resnet.weights: there is no file 'gone.pt'",
        ),
        (
            {"models__resnet": TORCHRAY | {"weights": None}},
            "models.resnet.weights: give the file of TorchRay's resnet50",
        ),
        (
            {"models__resnet": TORCHRAY},
            "models.resnet.source: TorchRay's networks are multi-label; set data.multilabel to true",
        ),
        (
            {"models__resnet": TORCHRAY | {"arch": "vgg11"}, "data__multilabel": True},
            "models.resnet.source: TorchRay has resnet50 and vgg16, not vgg11",
        ),
        (
            {"models__resnet": TORCHRAY | {"weights": "imagenet"}, "data__multilabel": True},
            "models.resnet.weights: 'imagenet' is a name of torchvision's weights; give the file of TorchRay's network",
        ),
        (
            {"models__resnet": {"arch": "resnet18", "weights": "IMAGENET1K_V2"}},
            "models.resnet.weights: torchvision has IMAGENET1K_V1 for resnet18, not IMAGENET1K_V2",
        ),
        ({"data__source": "imagenet"}, "data.root: give the folder that holds ImageNet's train and val"),
        ({"data__source": "imagenet", "data__root": "nowhere"}, "data.root: there is no folder 'nowhere'"),
        ({"data__source": "imagenet", "data__root": ".", "data__multilabel": True}, "data.multilabel: ImageNet has"),
        (
            {"data__source": "imagenet", "data__root": ".", "data__classes": ["a", "b"]},
            "data.classes: there is no such key where data.source is imagenet",
        ),
        ({"replicates": 0}, "replicates: Input should be greater than or equal to 1 (it is 0)"),
        (
            {"variants__sham": {"teecher": "uniform"}},
            "variants.sham.teecher: a variant may change teacher, loss, mode of",
        ),
        ({"variants__sham": {"mu": 1}}, "variants.sham.mu: a variant may change teacher, loss, mode of guidance only"),
        ({"variants__sham": {"training": {"lr": 1}}}, "variants.sham.training: a variant may change"),
        ({"variants__sham": {"teacher": "me"}}, "variants.sham.teacher: Input should be 'bottleneck', 'shuffled', "),
        (
            {"variants__sham": {"loss": "all"}},
            "variants.sham.loss: Input should be 'localization' or 'none' (it is 'all')",
        ),
        ({"variants__sham": None}, "variants.sham: Input should be a valid dictionary (it is None)"),
        ({"variants__pretrained": {}}, "variants.pretrained: this variant has no guidance"),
        ({"variants__control": {"teacher": "none"}}, "variants.control: this variant is always there"),
        ({"variants__guided": {}}, "variants.guided: this variant is always there"),
        (
            {"methods_on__variants": ["sham"]},
            "methods_on.variants: there is no variant 'sham'; take pretrained, control,",
        ),
        ({"methods_on__replicates": 4}, "methods_on.replicates: 4 of 3 replicates; raise `replicates`"),
        ({"alternatives__a": {"metrics": {"miuo": {}}}}, "alternatives.a.metrics.miuo: there is no such key"),
        (
            {"alternatives__a": {"bottleneck": {"alpha": -1}}},
            "alternatives.a.bottleneck.alpha: Input should be greater",
        ),
        ({"alternatives__a": {"variants": {"x": {"mu": 1}}}}, "alternatives.a: variants.x.mu: a variant may change"),
        ({"alternatives__a": {"methods": {"rise": {"masks": 0}}}}, "alternatives.a.methods.rise: "),
        ({"alternatives__a": {"methods": {"rises": {}}}}, "alternatives.a.methods.rises: no saliency method 'rises'"),
        (
            {"alternatives__a": {"models": {"resnet": {"options": {"width": "x"}}}}},
            "alternatives.a.models.resnet.options: resnet_small: width must be",
        ),
        (
            {"alternatives__a": {"models": {"vgg": {"weights": "gone.pt"}}}},
            "alternatives.a.models.vgg.weights: there is no file 'gone.pt'",
        ),
        (
            {"alternatives__a": {"models": {"vgg": {"override": {"metrics": {}}}}}},
            "alternatives.a.models.vgg.override.metrics: only",
        ),
        ({"alternatives__a": {"seed": 1}}, "alternatives.a.seed: an alternative cannot change this key"),
        ({"alternatives__a": {"name": "b"}}, "alternatives.a.name: an alternative cannot change this key"),
        ({"alternatives__a": {"data": {"size": 64}}}, "alternatives.a.data: all alternatives use the images of the"),
        (
            {"models": {"net": {"arch": "vgg_small"}}, "alternatives__a": {"models": {"more": {"arch": "vgg_small"}}}},
            "alternatives.a.models: an alternative has the networks of the config, no others",
        ),
        ({"name": "../up"}, "name: String should match pattern"),
    ],
)
def test_a_mistake_is_one_line_naming_the_key(changes, message):
    with pytest.raises(config.ConfigError) as error:
        config.load(values(**changes))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


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


def test_what_a_network_cannot_be_built_with_is_said_before_any_job():
    for changes, message in [
        (
            {"models__resnet__options": {"widht": 2}},
            "models.resnet.options: resnet_small: got an unexpected keyword argument 'widht'",
        ),
        ({"models__resnet__weights": "imagenet"}, "models.resnet.weights: resnet_small has no ImageNet weights"),
        ({"models": {"tables": {"arch": "vgg_small"}}}, "models: 'tables' is a folder of the results"),
        ({"metrics__kept__top": 1.0}, "metrics.kept.top: Input should be less than 1"),
        ({"bottleneck__gamma": float("nan")}, "bottleneck.gamma: Input should be a finite number"),
    ]:
        with pytest.raises(config.ConfigError) as error:
            config.load(values(**changes))
        assert str(error.value).startswith(message)


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
