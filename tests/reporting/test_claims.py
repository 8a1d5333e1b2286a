"""Claims: what claims.yaml may say, the verdicts on runs that are made up, and how they are written."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from score_rows import BASELINES, VARIANTS, run

from ibsgl.reporting.claim_texts import answer, write_claims
from ibsgl.reporting.claims import collapsed, evaluate_claims, read_claims
from ibsgl.reporting.verdicts import Verdict

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
CLAIMS = read_claims(PUBLISHED)
KEYS = [claim.key for claim in CLAIMS]
# Guidance works, and only with the bottleneck's map or the boxes.
WORKS = {"guided": 0.1, "boxes": 0.15}


def verdicts(*measurements, variants=VARIANTS, deviations=None, **settings):
    return evaluate_claims(
        CLAIMS,
        {each.model: each for each in measurements},
        variants,
        data="shapes",
        deviations={each.model: [] for each in measurements} if deviations is None else deviations,
        **settings,
    ).set_index(["claim", "model"])


# The file -------------------------------------------------------------------------------------------------------------


def test_the_claims_of_the_paper():
    assert [
        *("localisation", "accuracy", "average_drop", "average_increase", "teacher", "suppression", "deletion"),
        *("bottleneck", "both_networks"),
    ] == KEYS
    by_key = {claim.key: claim for claim in CLAIMS}
    assert (by_key["localisation"].metric, by_key["localisation"].smallest) == ("ebpg", 1)
    assert by_key["accuracy"].rule == "non-inferiority"
    assert by_key["bottleneck"].comparisons == ["shuffled", "uniform"]
    # The seven baselines of the paper's tables.
    published = pd.read_csv(PUBLISHED / "table3.csv")
    baselines = published[published["in_paper"] & (published["variant"] == "pretrained")]["method"]
    assert by_key["average_drop"].methods == list(dict.fromkeys(baselines)) == BASELINES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "up"}, r"claims\.yaml: claims\.localisation\.direction"),
        ({"smalest": 1}, r"claims\.localisation\.smalest: there is no such key"),
        ({"unit": "nats"}, "the unit of a difference in ebpg is points"),
        ({"metric": "speed"}, "no metric 'speed'"),
        ({"methods": ["rise"], "run_on": ["pretrained"]}, "give one of comparisons, methods and same_claim_on_all"),
        ({"comparisons": [], "methods": ["rise"]}, "methods are compared on pretrained"),
        ({"key": "accuracy"}, "there are two claims with this key"),
        ({"key": "other"}, r"both_networks\.same_claim_on_all: there is no claim 'localisation'"),
    ],
)
def test_wrong_claims_are_refused(tmp_path, change, message):
    content = yaml.safe_load((PUBLISHED / "claims.yaml").read_text(encoding="utf-8"))
    content["claims"][0] |= change
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_claims(tmp_path)


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_guidance_that_works():
    table = verdicts(run(WORKS, methods=BASELINES), run(WORKS, model="vgg", methods=BASELINES))
    # Forty images do not show that accuracy is kept, although none has changed.
    expected = dict.fromkeys(KEYS, "supported") | {"accuracy": "not resolved"}
    found = table["verdict"].groupby("claim", sort=False).agg(lambda each: ", ".join(sorted(set(each))))
    assert found.to_dict() == expected
    assert (table["on_paper_setting"] == table["verdict"]).all()
    row = table.loc[("localisation", "vgg")]
    assert row["comparison"] == "guided - control"
    assert row["effect"] == pytest.approx(10, abs=0.3)
    assert row["corrected_low"] < row["low"] < 10 < row["high"] < row["corrected_high"]
    assert (row["replicates"], row["images"], len(row["by_replicate"].split("; "))) == (6, 40, 6)
    assert row["corrected_p"] < 0.05
    assert row["sentence"].startswith(
        "Guidance improves localisation: supported on shapes with vgg (vgg_small): in EBPG, guided - control is +"
    )
    assert "mIoU, guided - control" in row["shown"]
    drop = table.loc[("average_drop", "resnet")]
    assert drop["effect"] < drop["high"] < 0
    assert drop["comparisons"].count("guided Eq. 3 - ") == 14
    assert "the weakest of 14 comparisons," in drop["sentence"]
    assert table.loc[("both_networks", "resnet and vgg"), "verdict"] == "supported"


def test_accuracy_is_kept_on_many_images():
    settings = {"images": 1000, "replicates": 5, "variants": VARIANTS[:3]}
    table = verdicts(run(WORKS, **settings))
    assert table.loc[("accuracy", "resnet"), "verdict"] == "supported"
    assert table.loc[("accuracy", "resnet"), "effect"] == 0
    worse = verdicts(run(WORKS, **settings, accuracy={"guided": 0.8}))
    assert worse.loc[("accuracy", "resnet"), "verdict"] == "contradicted"
    multilabel = verdicts(run(WORKS, images=40, replicates=5, accuracy={"guided": 0.3}), multilabel=True)
    assert multilabel.loc[("accuracy", "resnet"), "metric"] == "map"


def test_guidance_that_harms():
    table = verdicts(run({"guided": -0.1, "boxes": 0.1}, methods=BASELINES), run({"guided": 0.1}, model="vgg"))
    assert table.loc[("localisation", "resnet"), "verdict"] == "contradicted"
    assert table.loc[("average_drop", "resnet"), "verdict"] == "contradicted"
    assert table.loc[("both_networks", "resnet and vgg"), "verdict"] == "contradicted"
    assert table.loc[("bottleneck", "resnet"), "verdict"] == "contradicted"
    # Boxes do not teach the second network.
    row = table.loc[("bottleneck", "vgg")]
    assert row["verdict"] == "not tested"
    assert row["reason"].startswith("the assay is insensitive: boxes - uniform: ")


def test_a_sham_that_teaches_as_well():
    row = verdicts(run({"guided": 0.1, "shuffled": 0.1, "boxes": 0.2})).loc[("bottleneck", "resnet")]
    assert (row["verdict"], row["comparison"]) == ("no relevant effect", "guided - shuffled")


def test_few_replicates_resolve_nothing():
    networks = (run(WORKS, model=name, replicates=4, images=8, methods=BASELINES) for name in ("resnet", "vgg"))
    table = verdicts(*networks)
    assert set(table["verdict"]) == {"not resolved"}
    assert table.loc[("localisation", "vgg"), "reason"] == "a verdict needs 5 replicates"
    one = verdicts(run(WORKS, replicates=1)).loc[("localisation", "resnet")]
    assert "1 replicate, these trainings only, 40 images" in one["sentence"]


def test_methods_on_few_replicates_can_not_support():
    table = verdicts(run(WORKS, method_replicates=3, methods=BASELINES))
    row = table.loc[("average_drop", "resnet")]
    assert row["verdict"] == "not resolved"
    # One method on enough replicates is enough to contradict.
    measurements = run({"guided": -0.1}, methods=["gradcam"])
    few = run({"guided": -0.1}, method_replicates=3, methods=BASELINES).scores
    rest = few[few["method"].isin(BASELINES[1:])]
    measurements = dataclasses.replace(measurements, scores=pd.concat([measurements.scores, rest], ignore_index=True))
    row = verdicts(measurements).loc[("average_drop", "resnet")]
    assert row["verdict"] == "contradicted"
    assert (row["comparison"].split(" - ")[1][:7], row["replicates"]) == ("GRADCAM", 6)


def test_missing_methods_and_variants():
    table = verdicts(run(WORKS, methods=["gradcam"], variants=VARIANTS[:5]), variants=VARIANTS[:5])
    row = table.loc[("average_drop", "resnet")]
    assert row["verdict"] == "not tested"
    assert row["reason"] == f"not run on pretrained: {', '.join(BASELINES[1:])}"
    assert not np.isnan(row["effect"])
    row = table.loc[("bottleneck", "resnet")]
    assert (row["verdict"], row["reason"]) == ("not tested", "no variant boxes in this run")
    assert table.loc[("both_networks", "resnet"), "reason"] == "this run has one network"
    none = verdicts(run(WORKS, methods=[])).loc[("average_increase", "resnet")]
    assert none["verdict"] == "not tested"
    assert np.isnan(none["effect"])
    refuted = verdicts(run({"guided": -0.1}, methods=["gradcam"])).loc[("average_drop", "resnet")]
    assert refuted["verdict"] == "contradicted"


def test_a_further_method_changes_no_verdict():
    table = verdicts(run(WORKS, methods=[*BASELINES, "sise"]))
    assert "SISE" not in table.loc[("average_drop", "resnet"), "comparisons"]
    assert table["verdict"].equals(verdicts(run(WORKS, methods=BASELINES))["verdict"])


# Runs that went wrong -------------------------------------------------------------------------------------------------


def test_a_control_that_has_collapsed():
    measurements = run(WORKS, accuracy={"control": 0.5}, methods=BASELINES)
    assert collapsed(measurements, "control") == dict.fromkeys(range(6), (50.0, 90.0))
    assert collapsed(measurements, "guided") == {}
    assert collapsed(run(WORKS, accuracy={"control": 0.85}), "control") == {}
    table = verdicts(measurements)
    for key in ("localisation", "accuracy", "teacher", "suppression", "deletion"):
        row = table.loc[(key, "resnet")]
        assert row["verdict"] == "not tested"
        assert "the variant control has collapsed: 50.0 % correct in replicate 0 (90.0 % before)" in row["reason"]
    assert table.loc[("bottleneck", "resnet"), "verdict"] == "supported"
    assert table.loc[("average_drop", "resnet"), "comparisons"].count("on pretrained") == 7
    assert "on control" not in table.loc[("average_drop", "resnet"), "comparisons"]


def test_a_flat_teacher():
    table = verdicts(run(WORKS, nats=0.0))
    assert set(table["verdict"]) == {"not tested"}
    assert table["reason"].iloc[0].startswith("L^ib is zero on all held-out images (replicate 0, 1, 2, 3, 4, 5)")


def test_values_that_are_not_finite():
    measurements = run(WORKS)
    measurements.losses["l_ce"] = np.nan
    row = verdicts(measurements).loc[("teacher", "resnet")]
    assert row["verdict"] == "not tested"
    assert "l_ce has values that are NaN" in row["reason"]


@pytest.mark.parametrize(("images", "replicates"), [(1, 1), (1, 6), (2, 1)])
def test_one_test_image(tmp_path, images, replicates):
    measurements = run(WORKS, images=images, replicates=replicates)
    table = verdicts(measurements)
    assert table.loc[("accuracy", "resnet"), "verdict"] == "not resolved"
    write_claims(table.reset_index(), tmp_path / "claims.csv")
    assert "nan" not in (tmp_path / "claims.md").read_text(encoding="utf-8")


# Writing --------------------------------------------------------------------------------------------------------------


def test_the_papers_setting():
    table = verdicts(
        run(WORKS), run(WORKS, model="vgg"), deviations={"resnet": [], "vgg": ["RISE masks 500 instead of 4000"]}
    )
    assert table.loc[("localisation", "resnet"), "on_paper_setting"] == "supported"
    assert table.loc[("localisation", "vgg"), "on_paper_setting"] == "not tested"
    assert table.loc[("both_networks", "resnet and vgg"), "on_paper_setting"] == "not tested"
    unknown = verdicts(run(WORKS), deviations={})
    assert set(unknown["on_paper_setting"]) == {"not tested"}


def test_the_answer():
    table = verdicts(
        run(WORKS, methods=BASELINES), run({"guided": 0.1}, model="vgg", methods=BASELINES), deviations={}
    ).reset_index()
    sentences = answer(table)
    assert len(sentences) == 6
    assert sentences[0].startswith("Guidance improves localisation: supported with resnet (+")
    assert "not tested with vgg (the assay is insensitive" in sentences[1]
    assert "the map moves to that of the bottleneck (resnet, vgg)" in sentences[2]
    assert "Average Drop is lower" in sentences[2]
    assert sentences[3] == "Not resolved: accuracy is kept (resnet, vgg)."
    assert sentences[4] == (
        "This holds for shapes with the networks resnet (resnet_small), vgg (vgg_small), over 6 training replicates."
    )
    assert "not the paper's" in sentences[5]
    assert all(sentence.endswith(".") for sentence in sentences)


def test_the_table_is_written(tmp_path):
    table = verdicts(run(WORKS), run({"guided": -0.1}, model="vgg"), deviations={}).reset_index()
    write_claims(table, tmp_path / "claims.csv")
    read = pd.read_csv(tmp_path / "claims.csv", keep_default_na=False, na_values={"effect": [""]})
    assert read["verdict"].tolist() == table["verdict"].tolist()
    assert read["effect"].dropna().tolist() == table["effect"].dropna().tolist()
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "| **supported** | Guidance improves localisation | resnet | +" in text
    assert "| **contradicted** | Guidance improves localisation | vgg | -" in text
    for verdict in Verdict:
        assert f"- *{verdict}*: " in text
    for claim in CLAIMS:
        assert f"## {claim.title}\n" in text
        assert " ".join(claim.quote.split()) in text
    for sentence in table["sentence"]:
        assert sentence.replace("|", "\\|") in text
    assert "guided - control, by replicate: +" in text
