"""The change of an effect with an alternative: by hand on runs that are made up, what is missing, and the files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from score_rows import VARIANTS, run

from ibsgl import config
from ibsgl.reporting.claims import read_claims
from ibsgl.reporting.sensitivity import sensitivity_table, tornado, write_sensitivity

ROOT = Path(__file__).parents[2]
CLAIMS = read_claims(ROOT / "results" / "published")
ALTERNATIVES = {"stronger": {"guidance": {"mu": 4}}, "other_mean": {"tables": {"average": "classes"}}}


@pytest.fixture(scope="module")
def settings():
    values = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text())
    variants = {name: {"teacher": name} for name in VARIANTS[3:]}
    return config.parse(values | {"variants": variants, "alternatives": ALTERNATIVES})


@pytest.fixture(scope="module")
def table(settings):
    base = run({"guided": 0.02}, replicates=4)
    stronger = run({"guided": 0.05}, replicates=4)
    return sensitivity_table(CLAIMS, settings, {"resnet": base}, {"stronger": {"resnet": stronger}})


def test_the_change_is_the_difference_of_the_effects(table):
    rows = table[(table["claim"] == "localisation") & (table["comparison"] == "guided - control") & table["judged"]]
    stronger = rows.set_index("alternative").loc["stronger"]
    # The made-up noise is the same in both runs, so the change is exact: 3 points of EBPG.
    assert stronger["change"] == pytest.approx(3)
    assert stronger["effect"] - stronger["base"] == pytest.approx(3)
    assert (stronger["low"], stronger["high"]) == pytest.approx((3, 3))
    assert (stronger["replicates"], stronger["images"], stronger["unit"]) == (4, 40, "points")


def test_an_alternative_that_measures_nothing_anew_uses_the_bases_values(table):
    rows = table[(table["claim"] == "localisation") & (table["alternative"] == "other_mean")]
    # Both classes have as many images, so the mean over classes is that over pairs.
    assert rows["change"].to_numpy() == pytest.approx(0, abs=1e-9)


def test_a_claim_about_all_networks_has_no_effect_of_its_own(table):
    assert set(table["claim"]) == {claim.key for claim in CLAIMS if claim.same_claim_on_all is None}
    assert not table.duplicated(["claim", "model", "metric", "comparison", "alternative"]).any()


def test_what_a_claim_only_reports_is_there_too(table):
    rows = table[(table["claim"] == "localisation") & (table["alternative"] == "stronger")]
    compared = rows[["metric", "comparison", "judged"]].itertuples(index=False, name=None)
    assert list(compared) == [
        ("ebpg", "guided - control", True),
        ("ebpg", "guided - pretrained", False),
        ("miou", "guided - control", False),
        ("bbox", "guided - control", False),
    ]
    assert set(rows["override"]) == {'{"guidance": {"mu": 4}}'}


def test_what_was_not_measured_has_a_reason(table):
    rows = table[(table["claim"] == "average_drop") & table["judged"]]
    assert rows["change"].isna().all()
    assert rows["reason"].str.contains("was not run on pretrained").all()


def test_other_images_are_not_compared(settings):
    base, fewer = run({"guided": 0.02}, replicates=2), run({"guided": 0.02}, replicates=2, images=20)
    table = sensitivity_table(CLAIMS, settings, {"resnet": base}, {"stronger": {"resnet": fewer}})
    rows = table[(table["alternative"] == "stronger") & (table["claim"] == "localisation")]
    assert set(rows["reason"]) == {"it is measured on other images or replicates"}


def test_files_and_plots(table, tmp_path):
    write_sensitivity(table, tmp_path / "new" / "s.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "new" / "s.csv", keep_default_na=False, na_values=[""]).fillna({"reason": ""}), table
    )
    stronger = table[table["alternative"] == "stronger"].iloc[0]
    text = (tmp_path / "new" / "s.md").read_text()
    assert f"| stronger | {stronger['effect']:+.3f} | +3.000 [+3.000, +3.000] | 4 |" in text
    figure = tornado(table)
    drawn = [axes for axes in figure.axes if axes.get_visible()]
    judged = table[table["judged"]].dropna(subset="change")
    assert len(drawn) == len(judged.drop_duplicates(["title", "model", "comparison"]))
    # The largest change is on top.
    first = drawn[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["other_mean", "stronger"]
    assert np.isclose(max(bar.get_width() for bar in first.patches), 3)
    one = judged[judged["alternative"] == "stronger"]
    changed = [one.assign(alternative=f"a{n}", change=n, low=n - 1.0, high=n + 1.0) for n in range(20)]
    many = pd.concat(changed, ignore_index=True)
    first = tornado(many).axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == [f"a{n}" for n in range(8, 20)]
    with pytest.raises(ValueError, match="no alternative was measured"):
        tornado(table[table["claim"] == "average_drop"])
