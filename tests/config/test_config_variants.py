"""Replicates, variants, where methods are run, and alternatives."""

import pytest
from shapes_config import values

from ibsgl import config
from ibsgl.config.steps import step_of
from ibsgl.source_code import imported_modules

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


LOSSES = {
    "energy": {"loss": "energy", "settings": {"weight": 2}},
    "rrr": {"loss": "rrr"},
    "ismail": {"loss": "saliency_guided", "settings": {"k": 0.3}},
}


def test_a_variant_may_have_another_loss():
    loaded = config.parse(values(variants=LOSSES, guidance__bottleneck_network="current"))
    found = {name: loaded.guidance_of(name) for name in (*LOSSES, "guided")}
    assert [found[name].sees_boxes for name in LOSSES] == [True, True, False]
    # None of them takes a teacher's map, so none needs L^ib.
    assert {found[name].teacher for name in LOSSES} == {"none"}
    assert [guidance.bottleneck_of for guidance in found.values()] == [None, None, None, "current"]
    assert found["energy"].build_loss(None).weight == 2
    assert found["ismail"].build_loss(None).k == 0.3
    assert loaded.guidance_of("control").build_loss(None) is None


def test_the_settings_of_a_loss_are_its_own():
    loaded = config.parse(
        values(
            guidance__loss="saliency_guided",
            guidance__settings={"k": 0.3, "weight": 2},
            variants={"a": {"settings": {"weight": 3}}, "b": {"loss": "energy"}, "c": {"loss": "localization"}},
        )
    )
    assert loaded.guidance_of("guided").settings == {"k": 0.3, "weight": 2}
    assert loaded.guidance_of("a").settings == {"k": 0.3, "weight": 3}
    assert loaded.guidance_of("b").settings == loaded.guidance_of("c").settings == {}
    assert loaded.guidance_of("control").settings == {}
    assert loaded.guidance_of("c").teacher == "bottleneck"


def test_a_training_depends_on_the_settings_and_the_code_of_its_own_loss():
    def step(variant, **changes):
        return step_of(
            config.parse(values(variants=LOSSES, **changes)), "guide", model="vgg", replicate=0, variant=variant
        )

    for name in LOSSES:
        assert step(name) == step(name, guidance__mu=7, suppression__beta=0.5) != step("guided")
        assert type(step(name)).parse(step(name).to_json()) == step(name)
    modules = {name: imported_modules(*step(name).modules()).keys() for name in (*LOSSES, "guided", "control")}
    for name, module in (("energy", "energy"), ("ismail", "saliency_guided"), ("guided", "paper")):
        assert [variant for variant, found in modules.items() if f"ibsgl.guidance.{module}" in found] == [name]
    assert [variant for variant, found in modules.items() if "ibsgl.guidance.algorithm" in found] == ["guided"]
