"""A job of an alternative that has the lineage of the base's is not run again."""

import pytest
from shapes_config import JOBS, both, named, values

from ibsgl import config
from ibsgl.config.steps import lineage

GUIDED = [("guide", "/guided"), ("guide", "/shuffled")]
TRAINED = [*GUIDED, ("guide", "/control")]
MAPS = [("maps", "/pretrained/rise"), ("maps", "/pretrained/score_cam")]
EVALUATE, BOTTLENECK, CLASSIFIER = ("evaluate", ""), ("bottleneck", ""), ("classifier", "")


def differ(changes, **base):
    """The jobs that an alternative runs itself, as short names."""
    loaded = config.parse(values(alternatives={"a": changes}, **base))
    other = loaded.alternative("a")
    return {
        named(step, where)
        for step, where in JOBS
        if step != "data" and lineage(loaded, step, **where) != lineage(other, step, **where)
    }


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        ({"tables": {"average": "classes"}}, []),
        ({"metrics": {"miou": {"mode": "value"}}}, [EVALUATE]),
        ({"deletion": {"fill": "mean"}}, [EVALUATE]),
        ({"suppression": {"when": "never"}}, [*GUIDED, EVALUATE]),
        ({"guidance": {"steps": 1}}, [*GUIDED, EVALUATE]),
        ({"guidance": {"training": {"lr": 1.0e-4}}}, [*TRAINED, EVALUATE]),
        ({"variants": {"shuffled": {"teacher": "uniform"}}}, [("guide", "/shuffled"), EVALUATE]),
        # The control needs no L^ib.
        ({"bottleneck": {"alpha": 5}}, [BOTTLENECK, *GUIDED, EVALUATE]),
        ({"methods": {"rise": {"masks": 7}}}, [("maps", "/pretrained/rise"), EVALUATE]),
        ({"classifier": {"lr": 0.1}}, [CLASSIFIER, BOTTLENECK, *TRAINED, *MAPS, EVALUATE]),
        ({"data": {"multilabel": True}}, [CLASSIFIER, BOTTLENECK, *TRAINED, *MAPS, EVALUATE]),
    ],
    ids=str,
)
def test_an_alternative_runs_what_it_changes(changes, jobs):
    assert differ(changes) == both(*jobs)


def test_another_index_changes_everything():
    assert differ({"data": {"held_out": 0.5}}) == {named(step, where) for step, where in JOBS if step != "data"}


def test_an_override_changes_its_model_alone():
    changes = {"models": {"vgg": {"override": {"suppression": {"beta": 0.5}}}}}
    assert differ(changes) == {"guide/vgg/guided", "guide/vgg/shuffled", "evaluate/vgg"}


def test_the_evaluation_depends_on_the_maps_of_its_own_replicate():
    loaded = config.parse(values(alternatives={"a": {"methods": {"rise": {"masks": 7}}}}))
    other = loaded.alternative("a")
    same = [
        lineage(loaded, "evaluate", model="vgg", replicate=replicate)
        == lineage(other, "evaluate", model="vgg", replicate=replicate)
        for replicate in range(3)
    ]
    assert same == [False, True, True]


def test_replicates_differ_from_the_classifier_on():
    loaded = config.parse(values())
    for step, where in JOBS:
        if step not in ("data", "index", "maps"):
            one, other = (lineage(loaded, step, **where | {"replicate": replicate}) for replicate in (1, 2))
            assert one != other, step
