"""The table of the further metrics and the agreement of their rankings, on values whose results are known by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats
from table_rows import PAIRS, PUBLISHED, ROOT, group, measurements

from ibsgl import config
from ibsgl.metrics import METRICS
from ibsgl.reporting.figures import agreement_figure
from ibsgl.reporting.formats import write_metrics_markdown
from ibsgl.reporting.metric_files import MetricFiles, read_metrics, write_metric
from ibsgl.reporting.metric_table import agreement_table, check_run, metric_notes, metric_table

TREE = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text()) | {
    "methods": {"gradcam": {}, "gradcam_pp": {}},
    "variants": {},
    "methods_on": {"variants": ["pretrained"]},
}
CANDIDATES = ("gradcam", "gradcam_pp", "gradient", "bottleneck")
METHODS = (*CANDIDATES, "center", "random", "oracle")


def settings(**changes):
    return config.parse(TREE | changes)


def files(values, reasons=(), pairs=PAIRS):
    """The files of metrics on the pretrained variant: by metric and method, a value or one for each pair (and replicate)."""
    rows = []
    for metric, of_methods in values.items():
        for method, value in of_methods.items():
            replicates = value if isinstance(value, tuple) else (value,)
            for replicate, of_replicate in enumerate(replicates):
                frame = pd.DataFrame(pairs, columns=["image_id", "class_name"])
                names = {"metric": metric, "variant": "pretrained", "replicate": replicate, "method": method}
                rows.append(frame.assign(value=of_replicate, **names))
    return MetricFiles(pd.concat(rows, ignore_index=True), dict(reasons), {})


def constant(**values):
    """A value for each method; 0.5 for the others."""
    return dict.fromkeys(METHODS, 0.5) | values


def scores(*methods, **of_metrics):
    """The paper's metrics: the same for all methods, or by metric a value for each method."""
    return measurements(
        *(
            group("pretrained", method, **{metric: value[place] for metric, value in of_metrics.items()})
            for place, method in enumerate(methods or METHODS)
        )
    )


def table_of(values, of, **more):
    return metric_table(files(values, **more), scores(), of, "resnet", PUBLISHED)


def cell(table, method, metric):
    (row,) = table[(table["method"] == method) & (table["metric"] == metric)].itertuples()
    return row


def test_a_value_its_interval_and_its_numbers():
    values = [0.6, 0.4, 0.45, 0.55]
    pairs = [("1", "cat"), ("2", "cat"), ("3", "dog"), ("4", "dog")]
    row = cell(
        table_of({"sparseness": constant(gradcam=values)}, settings(further_metrics={"sparseness": {}}), pairs=pairs),
        "gradcam",
        "sparseness",
    )
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert (row.value, row.low, row.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert (row.replicates, row.images, row.pairs, row.left_out) == (1, 4, 4, 0)
    assert (row.label, row.metric_label) == ("Grad-CAM", "Sparseness (Gini)")


def test_pairs_without_a_value_in_a_replicate_are_left_out_and_counted():
    values = ([0.2, math.nan, 0.4, 0.9], [0.4, 0.5, 0.6, math.nan])
    of = settings(
        further_metrics={"sparseness": {}}, replicates=2, methods_on={"variants": ["pretrained"], "replicates": 2}
    )
    row = cell(table_of({"sparseness": constant(gradcam=values)}, of), "gradcam", "sparseness")
    assert (row.value, row.pairs, row.left_out, row.replicates, row.images) == (pytest.approx(0.4), 2, 2, 2, 2)


def test_the_pointing_game_is_the_mean_over_classes():
    """Three cats of which one is hit, and one dog that is: (1/3 + 1) / 2 and not 2/4."""
    pairs = [("1", "cat"), ("2", "cat"), ("3", "cat"), ("4", "dog")]
    values = {"pointing_game": constant(gradcam=[1.0, 0.0, 0.0, 1.0], gradient=[1.0] * 4)}
    table = table_of(values, settings(further_metrics={"pointing_game": {}}), pairs=pairs)
    assert cell(table, "gradcam", "pointing_game").value == pytest.approx(2 / 3)
    # All hits: the interval of a proportion, not a point. A cat counts as a sixth, the dog as a half: as three equal images.
    full = cell(table, "gradient", "pointing_game")
    assert full.value == 1
    assert full.low == pytest.approx(3 / (3 + stats.norm.ppf(0.975) ** 2))


def test_no_interval_leaves_the_range_of_its_metric():
    pairs = [(str(place), "cat") for place in range(20)]
    misses, high = [0.0] + [1.0] * 19, [0.5] + [1.0] * 19
    of = settings(further_metrics={"pointing_game": {}, "sparseness": {}})
    table = table_of({"pointing_game": constant(gradcam=misses), "sparseness": constant(gradcam=high)}, of, pairs=pairs)
    game, sparse = (cell(table, "gradcam", metric) for metric in ("pointing_game", "sparseness"))
    # Wilson's interval of 19 of 20, computed apart.
    assert (game.low, game.high) == pytest.approx((0.7639, 0.9911), abs=1e-4)
    assert sparse.value < sparse.high == 1


def test_an_interval_of_several_replicates_is_clipped_too():
    of = settings(
        further_metrics={"pointing_game": {}}, replicates=2, methods_on={"variants": ["pretrained"], "replicates": 2}
    )
    values = constant(gradcam=([1.0, 1.0, 1.0, 0.0], [1.0] * 4))
    row = cell(table_of({"pointing_game": values}, of), "gradcam", "pointing_game")
    assert 0 <= row.low < row.value < row.high == 1


def test_what_is_printed_alike_has_one_rank_and_no_order():
    """Two implementations of one map differ in the last digits."""
    values = {"gradcam": 0.18380000, "gradcam_pp": 0.18380000 + 1e-9, "gradient": 0.3, "bottleneck": 0.1}
    of = settings(further_metrics={"sparseness": {}})
    table = table_of({"sparseness": constant(**values)}, of)
    assert [cell(table, method, "sparseness").rank for method in CANDIDATES] == [2, 2, 1, 4]
    # The paper's metrics too: they are in percent.
    ebpg = (0.1838, 0.1838 - 1e-9, 0.3, 0.1)
    agreement = agreement_table(table, scores(*CANDIDATES, ebpg=ebpg), of).set_index(["first", "second"])
    assert agreement.loc[("EBPG", "Sparseness (Gini)"), "tau"] == pytest.approx(1)


def test_ranks_and_agreement_are_over_the_pairs_that_all_candidates_have():
    """Without a value for its worst pair a method is no better."""
    values = constant(gradcam=[0.5, 0.5, 0.5, math.nan], gradient=[0.6, 0.6, 0.6, 0.0], gradcam_pp=0.1, bottleneck=0.2)
    # A sanity method without values takes no pair away.
    values["random"] = math.nan
    of = settings(further_metrics={"sparseness": {}})
    table = table_of({"sparseness": values}, of)
    rows = [cell(table, method, "sparseness") for method in CANDIDATES]
    assert [row.value for row in rows] == pytest.approx([0.5, 0.1, 0.45, 0.2])
    assert [row.ranked_value for row in rows] == [0.5, 0.1, 0.6, 0.2]
    assert [row.rank for row in rows] == [2, 4, 1, 3]
    assert {row.ranked_pairs for row in rows} == {3}
    agreement = agreement_table(table, scores(*CANDIDATES, ebpg=(0.5, 0.1, 0.6, 0.2)), of)
    assert agreement.set_index(["first", "second"]).loc[("EBPG", "Sparseness (Gini)"), "tau"] == pytest.approx(1)
    note = "Sparseness (Gini) on pretrained: the ranks are over the 3 pairs that all ranked methods have."
    assert note in metric_notes(table, of)


def test_without_a_pair_that_all_candidates_have_there_are_no_ranks():
    values = constant(gradcam=[0.5, 0.5, math.nan, math.nan], gradient=[math.nan, math.nan, 0.5, 0.5])
    of = settings(further_metrics={"sparseness": {}})
    table = table_of({"sparseness": values}, of)
    assert table["rank"].isna().all()
    assert "so there are no ranks" in str(metric_notes(table, of))


def test_ranks_have_the_metrics_direction_and_leave_sanity_methods_out():
    values = {"gradcam": 0.1, "gradcam_pp": 0.3, "gradient": 0.2, "bottleneck": 0.2, "center": 0.9, "random": 0.0}
    of = settings(further_metrics={"sparseness": {}, "complexity": {}})
    table = table_of({"sparseness": constant(**values), "complexity": constant(**values)}, of)
    ranks = {
        metric: [cell(table, method, metric).rank for method in CANDIDATES] for metric in ("sparseness", "complexity")
    }
    # Equal values share the better rank.
    assert ranks == {"sparseness": [4, 1, 2, 2], "complexity": [1, 4, 2, 2]}
    assert all(math.isnan(cell(table, method, "sparseness").rank) for method in ("center", "random", "oracle"))


def test_a_method_that_does_not_notice_is_marked():
    of = settings(further_metrics={"model_randomisation": {"threshold": 0.6}})
    table = table_of({"model_randomisation": constant(center=1.0, gradcam=0.6, gradient=0.59)}, of)
    marked = {method: cell(table, method, "model_randomisation").mark for method in METHODS}
    assert [method for method, mark in marked.items() if mark] == ["gradcam", "center"]
    assert set(marked.values()) == {"", "does not notice"}
    notes = metric_notes(table, of)
    assert (
        'Marked "does not notice" by Model randomisation, from a mean of 0.6 on: Grad-CAM, Centre Gaussian. A method with '
        "random masks has the same masks for all networks, so with few masks it can be marked too." in notes
    )


def test_a_method_without_values_has_its_reason_below_the_table(tmp_path):
    of = settings(further_metrics={"max_sensitivity": {"samples": 2}})
    reasons = {("max_sensitivity", "pretrained", "gradcam"): "too many passes"}
    table = table_of({"max_sensitivity": constant(gradcam=math.nan)}, of, reasons=reasons)
    row = cell(table, "gradcam", "max_sensitivity")
    assert math.isnan(row.value)
    assert (row.pairs, row.left_out, row.reason) == (0, 4, "too many passes")
    assert math.isnan(row.rank)
    notes = metric_notes(table, of)
    assert "Max-sensitivity: no values for Grad-CAM: too many passes." in notes
    assert "Max-sensitivity: `max_sensitivity` (samples 2); lower is better; from the method, called again" in notes[0]
    write_metrics_markdown(
        table, tmp_path / "metrics.md", model="resnet", deviations=["RISE masks 8 instead of 8000"], notes=notes
    )
    heading = (tmp_path / "metrics.md").read_text(encoding="utf-8").splitlines()[0]
    assert heading == "**Further metrics on resnet.** Not the published settings: RISE masks 8 instead of 8000."
    text = (tmp_path / "metrics.md").read_text()
    assert "| Grad-CAM | – |" in text
    assert "| Eq. 3 (HiResCAM) | 0.5000 [0.5000, 0.5000] (1) |" in text
    assert "| Centre Gaussian | 0.5000 [0.5000, 0.5000] |" in text
    assert "4 (image, class) pairs" in text


def test_two_rows_of_one_metric_have_labels_of_their_own():
    rows = {"deletion": {}, "finer": {"use": "deletion", "steps": 9}, "named": {"use": "deletion", "label": "By hand"}}
    table = table_of({row: constant() for row in rows}, settings(further_metrics=rows))
    assert table.drop_duplicates("metric")["metric_label"].tolist() == [
        "Deletion, deletion",
        "Deletion, finer",
        "By hand",
    ]


def test_a_method_that_was_not_measured_is_named():
    values = constant()
    del values["gradient"]
    with pytest.raises(ValueError, match="resnet: there are no values of deletion for gradient on pretrained"):
        table_of({"deletion": values}, settings(further_metrics={"deletion": {}}))


def test_published_values_are_comparable_on_their_data_and_networks_alone():
    torchray = config.read([ROOT / "config" / "voc2007.yaml", ROOT / "config" / "torchray.yaml"], data=False)
    of = config.parse(
        torchray.model_dump()
        | {"further_metrics": {"pointing_game": {}, "wide": {"use": "pointing_game", "tolerance": 30}}}
    )
    names = yaml.safe_load((PUBLISHED / "settings.yaml").read_text())["test_set"]["class_names"]
    methods = of.methods_of("pretrained")
    values = {row: {key: [1.0, 0.0, 1.0, 0.0] for key in methods} for row in of.further_metrics}
    found = files(values)
    of = of.model_copy(update={"methods_on": of.methods_on.model_copy(update={"variants": ["pretrained"]})})
    model = next(iter(of.models))
    right = group("pretrained", "gradcam", pairs=[(str(number), "cat") for number in range(4952)])
    for scored, class_names, expected in (
        (right, names, 0.904),
        (right, ["cat"], "not comparable"),
        (right[:9], names, "not comparable"),
    ):
        measured = measurements(scored, class_names=class_names)
        table = metric_table(found, measured, of, model, PUBLISHED)
        assert cell(table, "gradcam", "pointing_game").published == expected
        # The centre's value needs the data alone.
        assert cell(table, "center", "pointing_game").published == (0.696 if expected == 0.904 else expected)
        assert cell(table, "gradcam", "wide").published == "not comparable"
        assert cell(table, "gradient", "pointing_game").published == ""
    assert "Fong et al." in metric_notes(table, of)[-1]
    trained = of.model_copy(update={"classifier": of.classifier.model_copy(update={"epochs": 1})})
    table = metric_table(found, measurements(right, class_names=names), trained, model, PUBLISHED)
    published = [cell(table, method, "pointing_game").published for method in ("gradcam", "center")]
    assert published == ["not comparable", 0.696]


def test_agreement_is_kendalls_tau_between_the_candidates_of_the_table_and_the_paper():
    of = settings(further_metrics={"sparseness": {}, "complexity": {}})
    first, second = (0.1, 0.2, 0.3, 0.4), (0.1, 0.3, 0.2, 0.2)
    ebpg = (0.2, 0.1, 0.4, 0.3)
    table = table_of(
        {
            "sparseness": constant(**dict(zip(CANDIDATES, first, strict=True))),
            "complexity": constant(**dict(zip(CANDIDATES, second, strict=True))),
        },
        of,
    )
    measured = scores(*CANDIDATES, ebpg=ebpg)
    agreement = agreement_table(table, measured, of).set_index(["first", "second"])
    assert len(agreement) == len(METRICS) * (len(METRICS) + 1) / 2 + 2 * len(METRICS) + 3
    # Lower complexity is better.
    assert agreement.loc[("Sparseness (Gini)", "Complexity (nats)"), "tau"] == pytest.approx(
        -stats.kendalltau(first, second).statistic
    )
    assert agreement.loc[("EBPG", "Sparseness (Gini)"), "tau"] == pytest.approx(stats.kendalltau(ebpg, first).statistic)
    assert agreement.loc[("EBPG", "EBPG"), "tau"] == 1
    # All methods have the same mIoU, so there is no ranking.
    assert math.isnan(agreement.loc[("EBPG", "mIoU"), "tau"])
    assert set(agreement["methods"]) == {4}


def test_with_two_methods_there_is_no_agreement():
    of = settings(further_metrics={"sparseness": {}}, methods={}, methods_on={"variants": ["pretrained"]})
    methods = ("gradient", "bottleneck", "center", "random", "oracle")
    table = metric_table(
        files({"sparseness": dict(zip(methods, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))}),
        scores(),
        of,
        "resnet",
        PUBLISHED,
    )
    assert agreement_table(table, scores(), of)["tau"].isna().all()


def test_the_plot_has_every_value_and_a_dash_where_there_is_none():
    of = settings(further_metrics={"sparseness": {}})
    table = table_of({"sparseness": constant(gradcam=0.9, gradient=0.1)}, of)
    agreement = agreement_table(table, scores(*CANDIDATES, ebpg=(0.1, 0.2, 0.9, 0.3)), of)
    figure = agreement_figure(agreement, model="resnet")
    (panel, _) = figure.axes
    texts = [text.get_text() for text in panel.texts]
    assert len(texts) == (len(METRICS) + 1) ** 2
    assert texts.count("–") == 36 - 4
    tau = stats.kendalltau((0.1, 0.2, 0.9, 0.3), (0.9, 0.5, 0.1, 0.5)).statistic
    assert texts.count(f"{tau:.2f}".replace("-", "−")) == 2
    assert "pretrained has 4." in " ".join(figure.get_supxlabel().split())


def test_the_plot_says_how_few_methods_some_metrics_have():
    of = settings(further_metrics={"sparseness": {}})
    table = table_of({"sparseness": constant(gradcam=math.nan)}, of)
    agreement = agreement_table(table, scores(), of)
    caption = " ".join(agreement_figure(agreement, model="resnet").get_supxlabel().split())
    assert "pretrained has from 3 to 4." in caption


FACTS = {"model": "resnet", "replicate": 0, "variant": "guided", "reasons": {"rise": "why"}}
FACTS |= {"settings": {"seed": 0}, "started": 0.0, "seconds": 1.0, "data_digest": "d", "class_names": ["cat", "dog"]}
ROWS = pd.DataFrame({"method": ["rise"], "image_id": ["1"], "class_name": ["cat"], "target": [0], "value": [math.nan]})


def test_files_are_read_as_they_were_written(tmp_path):
    paths = [tmp_path / "guided" / "metrics" / row / "0.parquet" for row in ("deletion", "mine")]
    for path in paths:
        path.parent.mkdir(parents=True)
        write_metric(path, ROWS, FACTS)
    found = read_metrics(paths)
    assert found.values["metric"].tolist() == ["deletion", "mine"]
    assert found.values["value"].isna().all()
    assert found.reasons == {(row, "guided", "rise"): "why" for row in ("deletion", "mine")}


def test_files_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "metrics" / "deletion" / "0.parquet"
    path.parent.mkdir(parents=True)
    write_metric(path, ROWS, FACTS)
    with pytest.raises(ValueError, match="there are no values of further metrics"):
        read_metrics([])
    with pytest.raises(ValueError, match="several values of deletion for 1"):
        read_metrics([path, path])
    other = path.with_name("1.parquet")
    write_metric(other, ROWS.assign(image_id="2"), FACTS | {"data_digest": "other"})
    with pytest.raises(ValueError, match="differ in data_digest"):
        read_metrics([path, other])
    facts = json.dumps({"model": "resnet"})
    pq.write_table(pq.read_table(other).replace_schema_metadata({"ibsgl": facts}), other)
    with pytest.raises(ValueError, match=r"1.parquet has no values of a further metric"):
        read_metrics([other])


def written(tmp_path, *facts):
    """A file of the metric `deletion` with each of ``facts``, which change those of one file."""
    paths = []
    for place, changes in enumerate(facts):
        path = tmp_path / str(place) / "metrics" / "deletion" / "0.parquet"
        path.parent.mkdir(parents=True)
        write_metric(path, ROWS.assign(image_id=str(place)), FACTS | changes)
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"settings": {"seed": 0, "settings": {"steps": 9}}}, "settings"),
        ({"settings": {"seed": 1}}, "seed"),
        ({"settings": {"seed": 0, "version": "quantus 9"}}, "settings"),
        ({"settings": {"seed": 0, "methods": {"rise": {"masks": 9}}}}, "settings of the methods"),
        ({"model": "vgg"}, "model"),
    ],
)
def test_files_of_one_metric_that_disagree_are_named(tmp_path, changes, what):
    first, second = written(tmp_path, {}, changes)
    with pytest.raises(ValueError, match=f"{first} and {second} differ in {what};"):
        read_metrics([first, second])


def test_variants_may_have_methods_of_their_own(tmp_path):
    methods = ({"rise": {"masks": 9}}, {"gradient": {}})
    paths = written(
        tmp_path,
        *(
            {"variant": variant, "settings": {"seed": 0, "methods": of_variant}}
            for variant, of_variant in zip(("pretrained", "guided"), methods, strict=True)
        ),
    )
    assert len(read_metrics(paths).values) == 2


def test_files_of_another_run_than_the_evaluation_are_named(tmp_path):
    (path,) = written(tmp_path, {"data_digest": "d1"})
    found = read_metrics([path])
    check_run(found, scores())
    for measured, message in (
        (
            measurements(group("pretrained", "gradcam"), data_digest="other"),
            "data_digest 'd1', and the evaluation has 'other'",
        ),
        (measurements(group("pretrained", "gradcam"), seed=5), "seed 0, and the evaluation has 5"),
        (
            measurements(group("pretrained", "gradcam"), class_names=["owl"]),
            r"class_names \['cat', 'dog'\], and the evaluation has \['owl'\]",
        ),
        (replace(scores(), model="vgg"), "model 'resnet', and the evaluation has 'vgg'"),
    ):
        with pytest.raises(ValueError, match=f"{path} has the {message}"):
            check_run(found, measured)


def test_a_metric_of_other_weights_than_the_evaluation_is_named(tmp_path):
    path, other = written(tmp_path, {"data_digest": "d1"}, {"data_digest": "d1", "weights_digest": "w1"})
    run = measurements(
        group("pretrained", "gradcam"), replicates={0: {"weights_digest": {"pretrained": "w0", "guided": "w1"}}}
    )
    check_run(read_metrics([path, other]), run)
    run.metadata["replicates"][0]["weights_digest"]["guided"] = "w2"
    check_run(read_metrics([path]), run)
    with pytest.raises(ValueError, match=f"{other} has the weights_digest 'w1', and the evaluation has 'w2'"):
        check_run(read_metrics([path, other]), run)
