"""Quantus' metrics through the adapter: which work, and that they are as repeatable as ours."""

import inspect
import random
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch

from ibsgl.metrics.further import get
from ibsgl.metrics.further import quantus as adapter
from tests.metrics import quantus_page


@pytest.fixture(scope="module")
def kinds():
    """Quantus' metrics by class."""
    return quantus_page.metrics()


def test_every_metric_of_quantus_works_or_is_refused_with_a_reason(kinds):
    assert sorted([*adapter.WORKING, *adapter.REFUSED]) == sorted(kinds)


@pytest.mark.parametrize("name", adapter.WORKING)
def test_a_metric_that_works(kinds, name):
    """It has one finite value per map, the same alone and at any time, and leaves network and random states as they were."""
    kind, facts = kinds[name], adapter.WORKING[name]
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    expected = torch.rand(1), random.random(), np.random.rand()
    values, called = quantus_page.call(name, kind)
    assert values.shape == (3,)
    assert values.isfinite().all()
    # A metric that says nothing about single maps gives all the same value.
    assert len(set(values.tolist())) > 1
    assert called == (facts.requires == "method")
    assert facts.higher_is_better == (kind.score_direction.value == "higher")
    np.random.seed(0), random.seed(0)
    again, _ = quantus_page.call(name, kind, pairs=(1,))
    assert torch.allclose(again, values[1:2], rtol=1e-3)
    found, _ = quantus_page.evidence()
    before = {key: value.clone() for key, value in found.network.state_dict().items()}
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    adapter.Quantus(name, quantus_page.arguments(kind))(found)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert all(torch.equal(value, before[key]) for key, value in found.network.state_dict().items())


# These give values that are not what they seem.
MISLEADING = {"Completeness", "Consistency", "Monotonicity", "SmoothMPRT", "Sufficiency"}


@pytest.mark.parametrize("name", sorted(adapter.REFUSED.keys() - MISLEADING))
def test_a_metric_that_is_refused_gives_no_values(kinds, name):
    more = {"return_auc_per_sample": True} if name == "PixelFlipping" else {}
    found, _ = quantus_page.evidence()
    errors = (ValueError, TypeError, AttributeError, IndexError, AssertionError)
    with quantus_page.nothing_refused(), pytest.raises(errors, match="trapz" if more else ""):
        adapter.Quantus(name, quantus_page.arguments(kinds[name]) | more)(found)


def test_a_metric_that_makes_other_maps_is_refused(kinds):
    with quantus_page.nothing_refused():
        found, calls = quantus_page.evidence((0,))
        settings = quantus_page.arguments(kinds["SmoothMPRT"]) | {"return_average_correlation": True}
        assert adapter.Quantus("SmoothMPRT", settings)(found).isfinite().all()
    assert calls == []


@pytest.mark.parametrize(("name", "value"), [("Completeness", 0), ("Monotonicity", 1), ("Sufficiency", 0)])
def test_a_metric_that_cannot_tell_our_maps_apart_is_refused(kinds, name, value):
    with quantus_page.nothing_refused():
        values, _ = quantus_page.call(name, kinds[name])
    assert values.tolist() == [value] * 3


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_a_map_of_one_value_has_no_value(constant):
    found, _ = quantus_page.evidence()
    found.saliency[0] = constant
    values = get("quantus", metric="Sparseness")(found)
    assert values.isnan().tolist() == [True, False, False]


def test_a_pair_whose_map_of_a_changed_image_has_one_value_has_none(kinds):
    found, _ = quantus_page.evidence()
    explain = found.explain

    def flat(network, images, classes=None, places=None):
        made = explain(network, images, classes, places)
        made[places == 0] = 0.3
        return made

    found = replace(found, explain=flat)
    values = get("quantus", metric="MPRT", arguments=quantus_page.arguments(kinds["MPRT"]))(found)
    assert values.isnan().tolist() == [True, False, False]


def test_hits_of_the_pointing_game_are_a_share():
    assert get("quantus", metric="PointingGame").binary
    assert not get("quantus", metric="PointingGame", arguments={"weighted": True}).binary
    assert not get("quantus", metric="Sparseness").binary


def test_what_is_wrong_with_a_row_is_said():
    for settings, message in (
        ({"metric": "Sparsity"}, r"quantus: there is no metric 'Sparsity'; take one of FaithfulnessCorrelation, "),
        ({"metric": "PixelFlipping"}, r"quantus: PixelFlipping cannot be used: it gives a curve"),
        (
            {"metric": "TopKIntersection", "arguments": {"top": 5}},
            r"quantus: TopKIntersection has no argument 'top'; its arguments: k, concept_influence",
        ),
        (
            {"metric": "FaithfulnessCorrelation", "arguments": {"nr_runs": "many"}},
            r"quantus: FaithfulnessCorrelation: nr_runs: Input should be a valid integer",
        ),
        (
            {"metric": "FaithfulnessCorrelation", "arguments": {"similarity_func": "correlation"}},
            r"quantus: FaithfulnessCorrelation: similarity_func: Input should be callable",
        ),
        (
            {"metric": "EffectiveComplexity", "arguments": {"normalise_func_kwargs": [1]}},
            r"quantus: EffectiveComplexity: normalise_func_kwargs: Input should be a valid dictionary",
        ),
        (
            {"metric": "MPRT", "arguments": {"layer_order": "sideways"}},
            r"quantus: MPRT: ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            get("quantus", **settings)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ibsgl.extras.version", missing)
    with pytest.raises(ValueError, match=r"quantus is not installed; install ibsgl\[quantus\]"):
        get("quantus", metric="Sparseness")


def test_the_adapter_sets_only_arguments_that_exist(kinds):
    assert inspect.signature(kinds["Sparseness"]).parameters.keys() >= adapter._SET


def test_the_table_in_the_documentation_is_up_to_date(kinds):
    text = quantus_page.PAGE.read_text(encoding="utf-8")
    assert quantus_page.rewritten(text) == text, "run: python -m tests.metrics.quantus_page"


def test_our_own_metrics_agree_with_quantus():
    found, _ = quantus_page.evidence()
    assert get("quantus", metric="Sparseness")(found).tolist() == pytest.approx(
        get("sparseness")(found).tolist(), abs=1e-4
    )
    assert get("quantus", metric="Complexity")(found).tolist() == pytest.approx(
        get("complexity")(found).tolist(), abs=1e-3
    )
