"""Further metrics in the graph: which jobs they add, and that a metric added to a finished run computes no map anew."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from workspaces import by_hand, configured, job, with_flipped_bits, workspace

METRICS = {"pointing_game": None, "deletion": {"steps": 2}, "model_randomisation": {"stages": 1}}
LIGHT = {job("light_maps", variant, "0") for variant in ("pretrained", "guided")}
RESULT = {"metrics_resnet", "metrics"}


def metric_jobs(*names):
    return {job("metric", variant, name, "0") for variant in ("pretrained", "guided") for name in names}


def commands(output):
    """The arguments of ``ibsgl`` of a dry run, in an order in which every file is made before it is read."""
    return [shlex.split(line)[1:-2] for line in re.findall(r"^Shell command: (ibsgl .*)$", output, re.M)]


@pytest.fixture(scope="module")
def without(dry_run, fork, tmp_path_factory):
    """The folder of a run without further metrics, up to its evaluation, and all jobs of such a run."""
    folder = workspace(tmp_path_factory.mktemp("further") / "clone")
    configured(folder, "minimal")
    jobs, _ = dry_run(folder, "minimal.yaml")
    _, output = dry_run(folder, "minimal.yaml", "results/minimal/resnet/0/evaluation/0")
    fork(by_hand, folder, commands(output))
    return folder, jobs


@pytest.fixture(scope="module")
def measured(dry_run, fork, without):
    """The same run with further metrics, the jobs that they have added, and the commands of these."""
    folder, _ = without
    jobs, output = dry_run(folder, configured(folder, "further", further_metrics=METRICS), "metrics")
    fork(by_hand, folder, commands(output))
    return folder, jobs, commands(output)


@pytest.mark.slow
def test_without_further_metrics_there_are_none_of_their_jobs(without):
    _, jobs = without
    assert not {name for name in jobs if name.startswith(("light_maps", "metric"))}


@pytest.mark.slow
def test_added_to_a_finished_run_they_make_the_maps_of_one_pass_and_no_others(measured):
    _, jobs, _ = measured
    assert jobs == LIGHT | metric_jobs(*METRICS) | RESULT


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"sparseness": None, "rank": {"use": "quantus", "metric": "RelevanceRankAccuracy"}},
        # The same metric with other settings.
        {"finer": {"use": "deletion", "steps": 4}},
    ],
    ids=["metrics", "settings"],
)
def test_a_metric_that_is_added_to_further_metrics_computes_no_map_and_no_other_metric(
    dry_run, measured, request, more
):
    folder, *_ = measured
    configfile = configured(folder, request.node.callspec.id, further_metrics=METRICS | more)
    # Where Snakemake has made the table itself, it sees that its inputs are others.
    jobs, _ = dry_run(folder, configfile, "metrics", "--forcerun", "metrics_resnet")
    assert jobs == metric_jobs(*more) | RESULT


@pytest.mark.slow
def test_the_table_and_the_plot_are_there(measured):
    folder, *_ = measured
    results = folder / "results" / "minimal"
    table = pd.read_csv(results / "tables" / "metrics_resnet.csv")
    assert set(table["metric"]) == set(METRICS)
    assert set(table["variant"]) == {"pretrained", "guided"}
    known = table.dropna(subset=["value", "low"])
    assert (known["low"] <= known["value"]).all()
    text = (results / "tables" / "metrics_resnet.md").read_text()
    assert "does not notice" in text
    # Small settings are named where the values stand.
    assert "RISE masks 8 instead of 8000" in text.splitlines()[0]
    with Image.open(results / "figures" / "metric_agreement_resnet.png") as image:
        image.load()
    assert (results / "figures" / "metric_agreement_resnet.pdf").read_bytes().startswith(b"%PDF")
    taus = pd.read_csv(results / "figures" / "metric_agreement_resnet.csv")
    # Five metrics of the paper and three more, each with itself and each other.
    assert len(taus) == 2 * 8 * 9 / 2
    assert taus["tau"].dropna().between(-1, 1).all()


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_that_they_read_is_found(fork, measured):
    folder, _, called = measured
    found = fork(with_flipped_bits, folder, called, 0)
    assert {Path(file).parts[-3] for file, _ in found} >= {"maps", "metrics"}
    assert [pair for pair in found if not pair[1].startswith(f"{pair[0]} has changed since it was written")] == []
