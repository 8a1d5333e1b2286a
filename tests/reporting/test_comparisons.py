"""Comparisons of variants: own values, paired differences, cross-scoring and diagnostics."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from score_rows import VARIANTS, run

from ibsgl.reporting.comparisons import (
    comparison_table,
    cross_scoring_table,
    diagnostics_table,
    estimate_difference,
    estimate_value,
    interval_note,
)
from ibsgl.reporting.measurements import Quantity


def rows_of(table, metric):
    return table[table["metric"] == metric].set_index("comparison")


def test_every_variant_and_every_difference_has_a_row():
    table = comparison_table(run({"guided": 0.05, "boxes": 0.1}), VARIANTS)
    assert list(dict.fromkeys(table["metric"])) == [
        *("ebpg", "miou", "bbox", "average_drop", "average_increase", "deletion_area", "deletion_area_relative"),
        *("l_ce", "l_ss", "overlap", "accuracy"),
    ]
    ebpg = rows_of(table, "ebpg")
    others = ["control", "pretrained", "shuffled", "uniform", "boxes"]
    assert ebpg.index.tolist() == [
        *VARIANTS,
        *(f"guided - {other}" for other in others),
        *(f"{other} - control" for other in others[2:]),
        "boxes - uniform",
    ]
    row = ebpg.loc["guided - control"]
    assert row["value"] == pytest.approx(5, abs=0.3)
    assert row["low"] < 5 < row["high"]
    assert (row["unit"], row["replicates"], row["images"]) == ("points", 6, 40)
    assert np.mean([float(value) for value in row["by_replicate"].split("; ")]) == pytest.approx(row["value"])
    # The noise of images is shared, so the difference is known better than either value.
    assert row["high"] - row["low"] < ebpg.loc["guided", "high"] - ebpg.loc["guided", "low"]
    assert rows_of(table, "l_ce").loc["guided", "unit"] == "nats"
    assert rows_of(table, "l_ss").loc["guided - control", "unit"] == "fraction"
    assert rows_of(table, "deletion_area_relative").loc["guided", "unit"] == "%"


def test_variants_that_were_not_measured_have_no_row():
    table = comparison_table(run({}, replicates=1, images=4, variants=VARIANTS[:3]), VARIANTS)
    assert rows_of(table, "ebpg").index.tolist() == [*VARIANTS[:3], "guided - control", "guided - pretrained"]


def test_map_takes_the_place_of_accuracy():
    table = comparison_table(run({}, replicates=2, images=8), VARIANTS, multilabel=True)
    assert "accuracy" not in set(table["metric"])
    assert len(rows_of(table, "map")) == 15


@pytest.mark.parametrize("replicates", [1, 3])
def test_all_images_right_is_not_certainty(replicates):
    measurements = run({}, replicates=replicates, images=96, accuracy=dict.fromkeys(VARIANTS, 1.0))
    value = estimate_value(measurements, Quantity("accuracy", "guided"))
    # Wilson's interval of 96 of 96.
    assert (value.low, value.high) == (pytest.approx(100 * 96 / (96 + 1.96**2), abs=0.01), pytest.approx(100))
    difference = estimate_difference(measurements, Quantity("accuracy", "guided"), Quantity("accuracy", "control"))
    half = 100 * 1.96**2 / (96 + 1.96**2)
    assert difference.mean == 0
    assert (difference.low, difference.high) == (pytest.approx(-half, abs=0.01), pytest.approx(half, abs=0.01))
    assert difference.interval(0.95) == (pytest.approx(difference.low), pytest.approx(difference.high))
    assert difference.interval(0.99)[1] > difference.high


def test_some_images_wrong():
    measurements = run({}, replicates=1, images=10, accuracy={"guided": 0.5})
    value = estimate_value(measurements, Quantity("accuracy", "guided"))
    assert (value.low, value.mean, value.high) == (pytest.approx(23.66, abs=0.01), 50, pytest.approx(76.34, abs=0.01))


def test_only_shared_replicates_are_compared():
    measurements = run({}, methods=["rise"], method_replicates=2)
    quantities = Quantity("average_drop", "guided"), Quantity("average_drop", "pretrained", "rise")
    assert estimate_difference(measurements, *quantities).replicates == 2
    late = measurements.scores[(measurements.scores["method"] != "rise") | (measurements.scores["replicate"] == 1)]
    late = late[(late["variant"] != "guided") | (late["replicate"] == 0)]
    measurements = dataclasses.replace(measurements, scores=late)
    with pytest.raises(
        ValueError, match=r"average_drop of gradient on guided and .* of rise on pretrained share no replicate"
    ):
        estimate_difference(measurements, *quantities)


def test_one_image_and_one_replicate():
    table = comparison_table(run({}, replicates=1, images=1), VARIANTS)
    ebpg = rows_of(table, "ebpg")
    assert (ebpg.loc["guided", "low"], ebpg.loc["guided", "high"]) == (0, 100)
    assert np.isinf(ebpg.loc["guided - control", ["low", "high"]].astype(float)).all()
    several = estimate_difference(run({}, images=1), Quantity("accuracy", "guided"), Quantity("accuracy", "control"))
    assert several.high > 70


def test_maps_are_scored_crosswise():
    table = cross_scoring_table(run({"guided": 0.05}), VARIANTS[:3])
    drops = table[table["metric"] == "average_drop"]
    assert drops[["maps_of", "scored_on"]].to_numpy().tolist() == [
        ["pretrained", "pretrained"],
        ["control", "control"],
        ["guided", "guided"],
        ["control", "pretrained"],
        ["guided", "pretrained"],
        ["pretrained", "control"],
        ["pretrained", "guided"],
    ]
    assert drops["value"].tolist()[3:] == pytest.approx([60] * 4)
    assert set(table["metric"]) == {"average_drop", "average_increase"}


def test_diagnostics():
    measurements = run({}, replicates=2, images=4)
    measurements.diagnostics.loc[0, "r_other"] = np.nan
    measurements.diagnostics.loc[measurements.diagnostics["replicate"] == 1, "nats"] = 10.0
    table = diagnostics_table(measurements).set_index("quantity")
    assert table.loc["nats", ["value", "lowest", "highest"]].tolist() == [20, 10, 30]
    assert table.loc["r_other", ["value", "undefined"]].tolist() == [pytest.approx(0.9), 1]
    assert table.loc["region_share", ["value", "unit", "replicates", "pairs"]].tolist() == [
        pytest.approx(30),
        "%",
        2,
        4,
    ]
    measurements.diagnostics["r_other"] = np.nan
    assert np.isnan(diagnostics_table(measurements).set_index("quantity").loc["r_other", "value"])


def test_notes():
    assert interval_note([1, 0]).startswith("[low, high] is the 95 % t-interval over images alone.")
    assert "these trainings only" in interval_note([3, 1])
    assert "these trainings" not in interval_note([3])
    assert isinstance(comparison_table(run({}, replicates=1, images=2), []), pd.DataFrame)
