"""Replicates, variants, where methods are run, and alternatives."""

import pytest
from shapes_config import values

from ibsgl import config

HEAVY = ["extremal_perturbation", "rise", "score_cam", "integrated_gradients", "sise"]
LIGHT = ["gradcam", "gradcam_pp", "fullgrad"]
VARIANTS = {"shuffled": {"teacher": "shuffled"}, "direct": {"mode": "end_to_end"}, "longer": {"loss": "none"}}


def test_variants_are_listed_in_order():
    loaded = config.parse(values(variants=VARIANTS))
    assert loaded.variant_names == ["pretrained", "control", "guided", "shuffled", "direct", "longer"]
    assert loaded.trained_variants == loaded.variant_names[1:]
    assert config.parse(values(variants={})).variant_names == ["pretrained", "control", "guided"]


def test_a_variant_changes_what_it_names_of_guidance():
    loaded = config.parse(values(variants=VARIANTS, guidance__mu=3))
    guided = loaded.guidance_of("guided")
    assert (guided.teacher, guided.loss, guided.mode, guided.mu) == ("bottleneck", "localization", "feature", 3)
    for name, changes in (VARIANTS | {"control": {"loss": "none"}}).items():
        assert loaded.guidance_of(name) == guided.model_copy(update=changes)


def test_where_methods_are_run():
    loaded = config.load(values(methods_on={"variants": ["pretrained", "control"], "replicates": 2}))
    built_in = ["gradient", "bottleneck", "center", "random", "oracle"]
    listed = list(loaded.methods)
    assert sorted(listed) == sorted(HEAVY + LIGHT)
    assert loaded.methods_of("pretrained") == loaded.methods_of("pretrained", 1) == [*listed, *built_in]
    assert loaded.methods_of("pretrained", 2) == [*LIGHT, *built_in]
    assert loaded.methods_of("control") == [*listed, "gradient"]
    assert loaded.methods_of("guided") == loaded.methods_of("control", 2) == [*LIGHT, "gradient"]
    assert loaded.heavy_methods("control", 1) == HEAVY
    assert loaded.heavy_methods("control", 2) == loaded.heavy_methods("guided") == []
    assert loaded.light_methods("guided") == [*LIGHT, "gradient"]
    assert loaded.light_methods("pretrained") == [*LIGHT, *built_in]


def test_every_evaluation_is_listed_once():
    evaluations = config.load(values()).evaluations()
    # Of each of three replicates: three methods and Eq. 3 on four variants, and four more on the pretrained one.
    assert len(evaluations) == len(set(evaluations)) == 3 * (4 * 4 + 4) + len(HEAVY)
    assert evaluations[0] == (0, "pretrained", "gradcam")
    assert (0, "pretrained", "rise") in evaluations
    assert {(1, "pretrained", "rise"), (0, "guided", "rise")}.isdisjoint(evaluations)


def test_an_alternative_is_the_config_with_its_changes():
    loaded = config.load(values(alternatives={"a": {"guidance": {"mu": 1}, "methods": {"rise": {"masks": 7}}}}))
    other = loaded.alternative("a")
    assert other.alternatives == {}
    assert other.guidance.mu == 1
    assert other.methods["rise"] == loaded.methods["rise"] | {"masks": 7}
    assert other.guidance.training == loaded.guidance.training
    assert other.variants == loaded.variants
    with pytest.raises(config.ConfigError, match="there is no alternative 'b'; take one of a"):
        loaded.alternative("b")


def test_an_alternative_reaches_the_settings_of_one_model():
    override = {"models": {"vgg": {"override": {"guidance": {"mu": 1}}}}}
    other = config.load(values(alternatives={"a": override})).alternative("a")
    assert [other.for_model(model).guidance.mu for model in ("resnet", "vgg")] == [2, 1]


def test_false_removes_a_method_of_an_earlier_file():
    merged = config.merge(values(), {"methods": {"rise": False}})
    assert set(config.parse(values()).methods) - set(config.parse(merged).methods) == {"rise"}


def test_false_removes_a_network_of_an_earlier_file():
    merged = config.merge(values(), {"models": {"vgg": False}})
    assert list(config.parse(values()).models) == ["resnet", "vgg"]
    assert list(config.parse(merged).models) == ["resnet"]


def test_guidance_of_an_unknown_variant_is_an_error():
    with pytest.raises(config.ConfigError, match="there is no variant 'tuned'; take control, guided"):
        config.parse(values()).guidance_of("tuned")
