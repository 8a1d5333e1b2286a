"""What the plan states for further metrics: how many maps are stored, and the work of each metric, counted by hand."""

import pytest
from plan_configs import facts, small

from ibsgl.attribution import Passes, row
from ibsgl.data.sources import Split
from ibsgl.plan import DataFacts, Jobs, method_work, model_steps

PAIRS = 7
DATA = DataFacts(
    {name: Split(6, PAIRS) for name in ("train", "held_out", "test", "further")},
    4,
    "counted",
)
ON = {"variants": ["pretrained", "guided"], "replicates": 2}


def planned(further, **changes):
    """The steps of the plan by name."""
    settings = small("resnet_small", further_metrics=further, replicates=3, methods_on=ON, **changes)
    return settings, {step.name: step for step in model_steps(Jobs(settings, "net"), DATA, facts("resnet_small"))}


def test_maps_of_one_pass_are_stored_on_the_networks_with_further_metrics_alone():
    settings, steps = planned({"sparseness": {}})
    # Grad-CAM on both; Eq. 3 too, and on the pretrained network L^ib and the three sanity methods.
    light = len(settings.light_methods("pretrained")) + len(settings.light_methods("guided"))
    assert light == (2 + 1 + 3) + 2
    assert sum(Jobs(settings, "net").light_maps().values()) == 2 * light
    step = steps["maps for further metrics"]
    assert (step.networks, step.examples) == (4, PAIRS)


def test_without_further_metrics_nothing_is_stored_or_measured():
    settings, steps = planned({})
    jobs = Jobs(settings, "net")
    assert (jobs.light_maps(), jobs.further_networks()) == ({}, [])
    assert "maps for further metrics" not in steps


def test_an_alternative_measures_no_further_metrics():
    settings, _ = planned({"sparseness": {}}, alternatives={"other": {"suppression": {"r": 0.2}}})
    other = Jobs(settings.alternative("other"), "net", base=Jobs(settings, "net"))
    assert (other.further_networks(), other.light_maps()) == ([], {})


def test_a_metric_of_stored_maps_passes_no_image():
    _, steps = planned({"sparseness": {}})
    step = steps["Sparseness (Gini)"]
    assert step.work.flops == 0
    # RISE, Grad-CAM and the others on four networks.
    assert step.networks == 2 * (7 + 3)


def test_a_metric_of_the_network_costs_its_passes_for_each_map():
    _, steps = planned({"deletion": {"steps": 9, "label": "Mine"}})
    forward = facts("resnet_small").work(Passes(stem=1, head=1) * (10 * PAIRS), mixed=True)
    assert steps["Mine"].work.flops == forward.flops * 2 * (7 + 3)


def test_a_metric_that_calls_the_methods_costs_their_maps_again():
    settings, steps = planned({"max_sensitivity": {"samples": 3, "max_passes": None}})
    network, expected = facts("resnet_small"), 0
    for variant in ON["variants"]:
        for method in settings.methods_of(variant):
            built = row(method, settings.method_settings(method)).method
            work, _ = method_work(built, network, DATA.splits["test"], settings.batch_size)
            expected += 2 * 3 * work.flops
    assert steps["Max-sensitivity"].work.flops == expected


def test_a_method_that_is_left_out_costs_nothing():
    """RISE has 8 masks, L^ib more steps."""
    _, all_of_them = planned({"max_sensitivity": {"samples": 1, "max_passes": None}})
    _, few = planned({"max_sensitivity": {"samples": 1, "max_passes": 7}})
    assert 0 < few["Max-sensitivity"].work.flops < all_of_them["Max-sensitivity"].work.flops / 2


@pytest.mark.parametrize("further", [{"q": {"use": "quantus", "metric": "Sparseness"}}])
def test_what_states_no_cost_has_unknown_work(further):
    _, steps = planned(further)
    assert steps["Sparseness (Quantus)"].work is None
