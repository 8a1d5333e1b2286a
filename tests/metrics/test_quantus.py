"""Quantus' metrics through the adapter: which work, and that they are as repeatable as ours."""

import inspect
import random

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
    assert values.shape == (2,)
    assert values.isfinite().all()
    assert called == (facts.requires == "method")
    assert facts.higher_is_better == (kind.score_direction.value == "higher")
    np.random.seed(0), random.seed(0)
    again, _ = quantus_page.call(name, kind, pairs=(1,))
    assert torch.allclose(again, values[1:], rtol=1e-3)
    found, _ = quantus_page.evidence()
    before = {key: value.clone() for key, value in found.network.state_dict().items()}
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    adapter.Quantus(name, quantus_page.arguments(kind))(found)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert all(torch.equal(value, before[key]) for key, value in found.network.state_dict().items())


# These give values that are not what they seem.
MISLEADING = {"Consistency", "SmoothMPRT"}


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


def test_a_map_of_zeros_has_no_value():
    found, _ = quantus_page.evidence()
    found.saliency[0] = 0
    values = get("quantus", metric="Sparseness")(found)
    assert values.isnan().tolist() == [True, False]


def test_what_is_wrong_with_a_row_is_said():
    for settings, message in (
        ({"metric": "Sparsity"}, r"quantus: there is no metric 'Sparsity'; take one of FaithfulnessCorrelation, "),
        ({"metric": "PixelFlipping"}, r"quantus: PixelFlipping cannot be used: it gives a curve"),
        (
            {"metric": "TopKIntersection", "arguments": {"top": 5}},
            r"quantus: TopKIntersection has no argument 'top'; its arguments: k, concept_influence",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            get("quantus", **settings)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise adapter.PackageNotFoundError(name)

    monkeypatch.setattr(adapter, "version", missing)
    with pytest.raises(ValueError, match=r"not installed; run: pip install 'ibsgl\[quantus\]'"):
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
