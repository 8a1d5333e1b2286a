"""The config key further_metrics: rows, what is refused, and which steps depend on it."""

import json
from dataclasses import fields

import pytest
from shapes_config import JOBS, changed, values

from ibsgl import config
from ibsgl.config.steps import step_of
from ibsgl.metrics import further
from ibsgl.metrics.further.registry import FURTHER
from ibsgl.reporting.metric_table import metrics_in

METRIC = {"model": "resnet", "replicate": 0, "variant": "pretrained"}


def rows(**further):
    return values(further_metrics=further)


def test_a_row_is_the_metric_of_its_name_or_another():
    of = config.load(rows(pointing_game=None, fine={"use": "deletion", "steps": 9, "label": "Fine"}), data=False)
    assert of.further_metric("pointing_game") == ("pointing_game", {}, None)
    assert of.further_metric("fine") == ("deletion", {"steps": 9}, "Fine")


def test_false_removes_a_row_of_an_earlier_file():
    merged = config.merge(rows(deletion={"steps": 5}, sparseness=None), {"further_metrics": {"deletion": False}})
    assert config.parse(merged).further_metrics == {"sparseness": {}}


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            {"pointing": None},
            r"further_metrics.pointing: no further metric 'pointing'; registered are complexity, deletion",
        ),
        (
            {"deletion": {"step": 5}},
            r"further_metrics.deletion: metric 'deletion' has no setting 'step'; its settings: steps",
        ),
        ({"deletion": {"steps": 0}}, r"further_metrics.deletion: steps: Input should be greater than or equal to 1"),
        ({"mine": {"use": 5}}, r"further_metrics: mine.use: this is a text"),
        ({"mine": {"use": "deletion", "label": " "}}, r"further_metrics: mine.label: this is a text of one line"),
        ({"mine": {"use": "deletion", "label": "a\nb"}}, r"further_metrics: mine.label: this is a text of one line"),
        (
            {"one": {"use": "deletion", "label": "Same"}, "two": {"use": "insertion", "label": "Same"}},
            r"further_metrics.two.label: one is called 'Same' in tables too; take another text",
        ),
        (
            {"deletion": None, "mine": {"use": "insertion", "label": "Deletion"}},
            r"further_metrics.mine.label: deletion is called 'Deletion' in tables too",
        ),
        (
            {"mine": {"use": "insertion", "label": "EBPG"}},
            r"further_metrics.mine.label: a metric of Tables 1–4 is called 'EBPG' in tables too",
        ),
        ({"ebpg": {"use": "deletion"}}, r"further_metrics: ebpg is in Tables 1–4 anyway"),
        ({"a b": {"use": "deletion"}}, r"further_metrics"),
        ({"q": {"use": "quantus"}}, r"further_metrics.q: metric: Field required"),
        (
            {"q": {"use": "quantus", "metric": "ROAD"}},
            r"further_metrics.q: quantus: ROAD cannot be used: it numbers the",
        ),
    ],
)
def test_a_wrong_row_is_refused_with_its_name(further, message):
    with pytest.raises(config.ConfigError, match=message):
        config.load(rows(**further), data=False)


def test_an_alternative_has_no_further_metrics_of_its_own():
    tree = rows(sparseness=None) | {"alternatives": {"more": {"further_metrics": {"deletion": None}}}}
    with pytest.raises(
        config.ConfigError, match=r"alternatives.more.further_metrics: an alternative cannot change this key"
    ):
        config.load(tree, data=False)


def test_no_step_of_the_paper_depends_on_further_metrics():
    assert changed(values(), rows(deletion=None, sparseness=None)) == set()
    before, after = config.parse(values()), config.parse(rows(deletion=None))
    for name in ("tables", "claims", "figure4", "thumbnails"):
        where = {"model": "resnet"}
        assert step_of(before, name, **where).to_json() == step_of(after, name, **where).to_json()
    for step, where in JOBS:
        # A step's code does not contain the further metrics'.
        assert "ibsgl.metrics.further" not in " ".join(step_of(after, step, **where).modules())


def test_a_metrics_job_depends_on_its_own_row_alone():
    one = step_of(config.parse(rows(deletion={"steps": 5}, sparseness=None)), "metric", metric="deletion", **METRIC)
    other = step_of(
        config.parse(rows(deletion={"steps": 5, "label": "Another name"}, complexity=None)),
        "metric",
        metric="deletion",
        **METRIC,
    )
    assert one.to_json() == other.to_json()
    steps = step_of(config.parse(rows(deletion={"steps": 6})), "metric", metric="deletion", **METRIC)
    assert steps.to_json() != one.to_json()
    assert "ibsgl.metrics.further.insertion_deletion" in one.modules()


def test_only_a_metric_that_calls_the_methods_depends_on_their_settings():
    tree = rows(deletion=None, max_sensitivity=None)
    settings = {
        name: json.loads(step_of(config.parse(tree), "metric", metric=name, **METRIC).to_json())
        for name in ("deletion", "max_sensitivity")
    }
    assert "methods" not in settings["deletion"]
    assert settings["max_sensitivity"]["methods"]["rise"]["masks"] == tree["methods"]["rise"]["masks"]


def test_the_version_of_a_library_is_a_setting():
    tree = rows(rank={"use": "quantus", "metric": "RelevanceRankAccuracy"})
    step = step_of(config.parse(tree), "metric", metric="rank", **METRIC)
    assert step.version.startswith("quantus 0.6")


def test_maps_of_one_pass_are_those_of_the_variant():
    of = config.parse(rows(deletion=None))
    for variant in ("pretrained", "guided"):
        step = step_of(of, "lightmaps", **(METRIC | {"variant": variant}))
        assert list(step.methods) == of.light_methods(variant)
        assert "rise" not in step.methods


def test_a_limit_that_only_the_table_reads_does_not_run_the_metric_again():
    trees = [
        rows(model_randomisation=settings) for settings in ({}, {"threshold": 0.5}, {"stages": 2, "threshold": 0.5})
    ]
    where = METRIC | {"metric": "model_randomisation"}
    one, other, shorter = (step_of(config.parse(tree), "metric", **where).to_json() for tree in trees)
    assert one == other != shorter
    tables = [step_of(config.parse(tree), "metrics", model="resnet").to_json() for tree in trees]
    assert len(set(tables)) == 3


def test_the_fields_that_only_the_table_reads_are_fields():
    for name in further.names():
        kind = FURTHER.load(name)
        assert getattr(kind, "for_tables", frozenset()) <= {field.name for field in fields(kind)}


def test_the_table_has_the_configs_order_of_metrics_and_methods():
    tree = rows(sparseness=None, deletion=None, complexity=None)
    of = config.parse(tree)
    step = step_of(of, "metrics", model="resnet")
    read = type(step).parse(step.to_json()).resolved()
    assert list(read.further_metrics) == ["sparseness", "deletion", "complexity"]
    assert list(read.methods) == list(of.methods) != sorted(of.methods)
    assert [metric.row for metric in metrics_in(read)] == ["sparseness", "deletion", "complexity"]
    # Another order draws the table again, and measures nothing again.
    other = config.parse(rows(deletion=None, sparseness=None, complexity=None))
    assert step_of(other, "metrics", model="resnet").to_json() != step.to_json()
    wrong = json.loads(step.to_json()) | {"order": {"further_metrics": ["sparseness"], "methods": list(of.methods)}}
    with pytest.raises(ValueError, match=r"order.further_metrics: this has each name of config.further_metrics once"):
        type(step).parse(json.dumps(wrong))
