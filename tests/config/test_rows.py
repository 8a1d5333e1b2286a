"""Rows of the tables with names of their own: what computes them, their labels, draws, jobs and digests."""

import pytest
import torch
from shapes_config import changed, values

from ibsgl import attribution, config
from ibsgl.attribution import registry
from ibsgl.config.steps import lineage, step_of
from ibsgl.maps import maps_of_batch
from ibsgl.reporting.notes import method_notes
from ibsgl.reporting.published import comparable_settings

OCCLUSION = {
    "use": "captum",
    "method": "Occlusion",
    "sign": "absolute",
    "arguments": {"sliding_window_shapes": [3, 8, 8]},
}


def loaded(**changes):
    return config.load(values(**changes))


def maps_job(settings, method, variant="pretrained"):
    return step_of(settings, "maps", model="resnet", replicate=0, variant=variant, method=method)


def test_labels_without_one_in_the_config():
    assert attribution.row("rise", {}).label == "RISE"
    assert attribution.row("rise", {"use": "rise"}).label == "RISE"
    assert attribution.row("rise_2000", {"use": "rise", "masks": 2000}).label == "RISE (rise_2000)"
    assert attribution.row("rise_2000", {"use": "rise", "label": "R"}).label == "R"
    assert attribution.row("occlusion", OCCLUSION).label == "Occlusion (captum, absolute)"


def test_a_row_is_its_method():
    row = attribution.row("rise_2000", {"use": "rise", "masks": 2000, "label": "R"})
    assert row.method == attribution.get("rise", masks=2000)
    assert row.requires == frozenset()
    assert attribution.row("ib", {"use": "bottleneck", "alpha": 10}).requires == {"statistics"}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"rise": {"use": "captum"}},
            "methods.rise: this name is that of a registered method, so it cannot use captum",
        ),
        ({"a": {"use": "rises"}}, "methods.a: no saliency method 'rises'; registered are"),
        ({"a": {"use": ["rise"]}}, "methods.a: no saliency method"),
        ({"a": {"use": "rise", "mask": 3}}, "methods.a: method 'rise' has no setting 'mask'"),
        ({"a": {"use": "rise", "label": 3}}, "methods.a: label: this is the name in tables"),
        ({"a": {"use": "rise", "label": " "}}, "methods.a: label: this is the name in tables"),
        ({"a": {"use": "rise", "label": "x\ny"}}, "methods.a: label: this is the name in tables"),
        ({"a": {"use": "rise", "label": "RISE"}}, "methods.a: rise is called 'RISE' in tables too; give one a label"),
        ({"a": {"use": "rise", "label": "Random"}}, "methods.a: random is called 'Random' in tables too"),
        ({"a": OCCLUSION, "b": OCCLUSION}, "methods.b: a is called 'Occlusion (captum, absolute)' in tables too"),
        ({"a": {"use": "center"}}, "methods: a: center is a sanity method"),
        ({"target": {"use": "rise"}}, "methods: 'target' is a column"),
        (
            {"a": {"use": "captum", "method": "LRP", "sign": "absolute"}},
            "methods.a: captum's method LRP is not possible: it",
        ),
        ({"a": OCCLUSION | {"arguments": {}}}, "methods.a: arguments.sliding_window_shapes: captum's Occlusion needs"),
    ],
)
def test_mistakes_are_named_before_a_run(methods, message):
    with pytest.raises(config.ConfigError) as error:
        loaded(methods={"rise": {}} | methods)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_row_has_a_job_where_its_method_has_one():
    settings = loaded(
        methods={"cam": {"use": "gradcam"}, "r": {"use": "rise"}, "o": OCCLUSION, "ib": {"use": "bottleneck"}}
    )
    assert settings.heavy_methods("pretrained") == ["r", "o", "ib"]
    assert "cam" in settings.light_methods("pretrained")
    assert "baselines.rise" in maps_job(settings, "r").modules()
    assert "ibsgl.attribution.adapters.captum" in maps_job(settings, "o").modules()
    evaluate = step_of(settings, "evaluate", model="resnet", replicate=0)
    assert "baselines.gradcam" in evaluate.modules()


def test_rows_of_one_method_draw_alike(small_shapes, networks):
    data = small_shapes(trainval=6, test=3)
    rows = data.pairs("test").iloc[:2]
    images, targets = data.images(rows["image_id"].tolist()), torch.tensor([0, 1])
    settings = {"use": "rise", "masks": 6, "cells": 3}
    methods = {
        "rise": attribution.get("rise", masks=6, cells=3),
        "again": attribution.row("again", settings),
        "fewer": attribution.row("fewer", settings | {"masks": 3}),
    }
    maps = maps_of_batch(networks["resnet"], data, rows, images, targets, methods, seed=1)
    assert torch.equal(maps["rise"], maps["again"])
    assert not torch.equal(maps["rise"], maps["fewer"])


def test_a_label_changes_no_map():
    base = {"r": {"use": "rise", "masks": 9}, "c": {"use": "gradcam"}, "rise": {}, "score_cam": {}}
    named = base | {"r": base["r"] | {"label": "Ours"}}
    assert changed(values(methods=base), values(methods=named)) == {"evaluate/resnet", "evaluate/vgg"}
    one, other = loaded(methods=base), loaded(methods=named)
    assert maps_job(one, "r") == maps_job(other, "r")
    assert step_of(other, "evaluate", model="resnet", replicate=0).labels == {"r": "Ours"}


def test_a_config_without_such_rows_has_no_further_keys():
    settings = loaded()
    assert "libraries" not in maps_job(settings, "rise").to_dict()
    assert "labels" not in step_of(settings, "evaluate", model="resnet", replicate=0).to_dict()


def test_another_version_of_the_library_computes_the_maps_again(monkeypatch):
    settings = loaded(methods={"o": OCCLUSION, "rise": {}})
    where = {"model": "resnet", "replicate": 0, "variant": "pretrained"}
    before = {method: lineage(settings, "maps", method=method, **where) for method in ("o", "rise")}
    monkeypatch.setattr(registry, "version", lambda library: f"{library} 99")
    assert maps_job(settings, "o").to_dict()["libraries"] == {"captum": "captum 99"}
    assert lineage(settings, "maps", method="o", **where) != before["o"]
    assert lineage(settings, "maps", method="rise", **where) == before["rise"]


def test_another_version_of_the_library_of_a_method_of_one_pass_computes_its_maps_again(monkeypatch):
    settings = loaded(methods={"gradcam": {}, "rise": {}})
    monkeypatch.setattr(registry, "library_of", lambda name: "fast-maps" if name == "gradcam" else None)
    monkeypatch.setattr(registry, "version", lambda library: f"{library} 9")
    for step in ("lightmaps", "evaluate", "thumbnails"):
        found = step_of(settings, step, model="resnet", replicate=0, variant="pretrained")
        assert found.to_dict()["libraries"] == {"fast-maps": "fast-maps 9"}
        assert type(found).parse(found.to_json()) == found


def test_overrides_and_alternatives_change_a_rows_settings():
    settings = loaded(
        methods={"r": {"use": "rise", "masks": 9}},
        models__vgg__override={"methods": {"r": {"masks": 5}}},
        alternatives={"more": {"methods": {"r": {"masks": 11}}}},
    )
    assert settings.for_model("vgg").method_settings("r") == {"use": "rise", "masks": 5}
    assert settings.alternative("more").for_model("resnet").method_settings("r") == {"use": "rise", "masks": 11}
    with pytest.raises(config.ConfigError, match=r"models\.vgg\.override\.methods\.r\.use: a row is one method on all"):
        loaded(methods={"r": {"use": "rise"}}, models__vgg__override={"methods": {"r": {"use": "gradcam"}}})
    with pytest.raises(config.ConfigError, match=r"alternatives\.wrong\.methods\.r: no saliency method"):
        loaded(methods={"r": {"use": "rise"}}, alternatives={"wrong": {"methods": {"r": {"use": "x"}}}})


def test_the_papers_settings_are_those_of_the_rows_with_its_methods_names():
    settings = loaded(methods={"rise": {"masks": 7}, "network": {"use": "rise"}, "rise_3": {"use": "rise", "masks": 3}})
    comparable = comparable_settings(settings, "resnet")
    assert comparable["rise"]["masks"] == 7
    assert "rise_3" not in comparable
    assert comparable["network"]["arch"] == "resnet_small"


def test_the_notes_say_what_computes_such_rows():
    settings = loaded(methods={"rise": {}, "r": {"use": "rise", "masks": 9}, "o": OCCLUSION | {"label": "Occ"}})
    (note,) = [note for note in method_notes(settings, "resnet") if note.startswith("Rows of the run's own: ")]
    assert "RISE (r) is rise (masks 9); Occ is captum " in note
    assert '(method "Occlusion", sign "absolute", arguments {"sliding_window_shapes": [3, 8, 8]})' in note
    assert not any("Rows of the run" in note for note in method_notes(loaded(), "resnet"))
