"""The graph's promises: nothing is made twice, a change re-runs what depends on it alone, and a killed run ends the same.

The whole graph runs once, in a folder of its own, and is killed once on the way. All other tests are dry runs after it.
"""

import os
import re
import shlex
import signal
import subprocess
import time

import pandas as pd
import pytest
from PIL import Image
from workspaces import (
    EVALUATED,
    EVERYTHING,
    GUIDED,
    METHODS,
    RESULTS,
    SNAKEMAKE,
    THUMBNAILS,
    by_hand,
    configured,
    environment,
    job,
    with_flipped_bits,
    workspace,
)

from ibsgl.metrics import METRICS
from ibsgl.reporting.tables import NOT_RUN


@pytest.fixture(scope="module")
def killed_and_restarted(tmp_path_factory):
    """The folder of a run that was killed with all its jobs in the middle of guided training, and started again."""
    folder = workspace(tmp_path_factory.mktemp("run") / "clone")
    command = [SNAKEMAKE, "--configfile", configured(folder, "minimal")]
    with (folder / "first.txt").open("w") as output:
        run = subprocess.Popen(
            command, cwd=folder, env=environment(), start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while not list(folder.glob("results/minimal/resnet/*/guided/*")):
                assert run.poll() is None, (folder / "first.txt").read_text()
                time.sleep(0.01)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert not list(folder.glob("results/minimal/tables/table*.csv"))
    again = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    return folder


def test_after_a_run_nothing_is_to_be_done(dry_run, killed_and_restarted):
    assert dry_run(killed_and_restarted, "minimal.yaml")[0] == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"methods__rise__masks": 9},
            {
                *(job("maps", variant, "rise", "0") for variant in ("pretrained", "guided")),
                job("evaluate", "0"),
                THUMBNAILS,
                *RESULTS,
            },
        ),
        # r is in L_SS, which guides, and marks the region of the deletion curves.
        ({"suppression__r": 0.2}, GUIDED),
        ({"bottleneck__alpha": 5.0}, {job("bottleneck"), *GUIDED}),
        ({"seed": 1}, EVERYTHING),
        ({"metrics__miou__top": 0.3}, EVALUATED),
        ({"variants__shuffled__teacher": "uniform"}, {job("guide", "shuffled"), THUMBNAILS, *EVALUATED}),
        (
            {"replicates": 2},
            {
                *(job(rule, replicate=1) for rule in ("classifier", "bottleneck")),
                *(job("guide", variant, replicate=1) for variant in ("control", "guided", "shuffled")),
                job("evaluate", "0", replicate=1),
                *RESULTS,
            },
        ),
        ({"batch_size": 3, "threads": 2, "device": "cuda"}, set()),
        (
            {"shard_size": 3},
            {
                *(job("maps", variant, "rise", shard) for variant in ("pretrained", "guided") for shard in "01"),
                *(job("evaluate", shard) for shard in "01"),
                THUMBNAILS,
                *RESULTS,
            },
        ),
    ],
    ids=["masks", "r", "alpha", "seed", "miou", "teacher", "replicates", "machine", "shards"],
)
def test_a_change_reruns_exactly_what_depends_on_it(dry_run, killed_and_restarted, request, changes, expected):
    configfile = configured(killed_and_restarted, request.node.callspec.id, **changes)
    assert dry_run(killed_and_restarted, configfile)[0] == expected


ALTERNATIVES = {
    "miou": ({"metrics": {"miou": {"top": 0.3}}}, {"evaluate"}),
    "never": ({"suppression": {"when": "never"}}, {"guide guided", "guide shuffled", "maps guided/rise", "evaluate"}),
    "alpha": (
        {"bottleneck": {"alpha": 5.0}},
        {"bottleneck", "guide guided", "guide shuffled", "maps guided/rise", "evaluate"},
    ),
    "masks": ({"methods": {"rise": {"masks": 9}}}, {"maps pretrained/rise", "maps guided/rise", "evaluate"}),
}


def test_an_alternative_runs_only_what_it_changes(dry_run, killed_and_restarted):
    """One of a metric makes no map, and one of suppression trains no classifier and no control."""
    changes = {name: override for name, (override, _) in ALTERNATIVES.items()}
    configfile = configured(killed_and_restarted, "alternatives", alternatives=changes)
    jobs, _ = dry_run(killed_and_restarted, configfile, "sensitivity")
    expected = {"sensitivity", "alternatives", "measured_sensitivity"}
    for name, (_, steps) in ALTERNATIVES.items():
        for step in steps:
            rule, _, wildcards = step.partition(" ")
            last = ["0"] if rule in ("maps", "evaluate") else []
            parts = [f"minimal/alternatives/{name}", "resnet", "0", *wildcards.split("/"), *last]
            expected.add(f"{rule} {'/'.join(part for part in parts if part)}")
    assert jobs == expected


def test_tables_equal_those_of_the_same_commands_run_by_hand_without_a_break(
    dry_run, fork, killed_and_restarted, tmp_path
):
    """And in two pieces, where the workflow's run had its test images in one."""
    folder = workspace(tmp_path / "clone")
    _, output = dry_run(folder, configured(folder, "minimal", shard_size=3))
    # Listed in an order in which every file is made before it is read.
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (ibsgl .*)$", output, re.M)]
    assert len(commands) > len(EVERYTHING)
    for command in commands:
        assert command[-2] == "2>"
    fork(by_hand, folder, [command[1:-2] for command in commands])
    results = folder / "results" / "minimal"
    kinds = (".csv", ".md", ".tex")
    made = sorted(path.relative_to(results) for path in results.glob("*/*") if path.suffix in kinds)
    assert [path.name for path in made] == [
        *("claims.csv", "claims.md", "figure4.csv"),
        "classification_resnet.csv",
        *("comparisons_resnet.csv", "comparisons_resnet.md"),
        *("cross_scoring_resnet.csv", "diagnostics_resnet.csv"),
        *(f"table{number}{kind}" for number in (1, 3) for kind in kinds),
    ]
    for path in made:
        assert (results / path).read_bytes() == (killed_and_restarted / "results" / "minimal" / path).read_bytes(), path


def test_a_flipped_bit_in_any_file_that_a_job_reads_stops_it(dry_run, fork, killed_and_restarted):
    _, output = dry_run(killed_and_restarted, "minimal.yaml", "--forceall")
    commands = [shlex.split(line)[1:-2] for line in re.findall(r"^Shell command: (ibsgl .*)$", output, re.M)]
    found = fork(with_flipped_bits, killed_and_restarted, commands, 0)
    assert len(found) >= 100
    unnoticed = [
        (file, said) for file, said in found if not said.startswith(f"{file} has changed since it was written")
    ]
    assert unnoticed == []
    kinds = {re.sub(r"\d|resnet/|/(pretrained|guided|control|shuffled)", "", file) for file, _ in found}
    assert len(kinds) >= 12, kinds


def test_tables_and_figures_are_there_and_parse(killed_and_restarted):
    results = killed_and_restarted / "results" / "minimal"
    for number, kind in ((1, "localization"), (3, "faithfulness")):
        table = pd.read_csv(results / "tables" / f"table{number}.csv")
        assert set(table["metric"]) == {key for key, metric in METRICS.items() if metric.table == kind}
        ran = table[table["value"] != NOT_RUN]
        assert set(zip(ran["variant"], ran["method"], strict=True)) == {
            (variant, method) for variant, methods in METHODS.items() for method in methods
        }
        numbers = ran[["value", "low", "high"]].astype(float)
        assert ((numbers["low"] <= numbers["value"]) & (numbers["value"] <= numbers["high"])).all()
        assert numbers.to_numpy().min() >= 0
        assert numbers.to_numpy().max() <= 100
        assert r"\begin{tabular}" in (results / "tables" / f"table{number}.tex").read_text()
        assert "RISE" in (results / "tables" / f"table{number}.md").read_text()
    for number in (2, 3, 4):
        figure = results / "figures" / f"figure{number}.png"
        with Image.open(figure) as image:
            image.load()
            assert round(image.info["dpi"][0]) == 200
        assert figure.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_snakemake_measures_the_process_that_does_the_work(killed_and_restarted):
    """torch alone takes more than 100 MB; the command that waits for a copy of the server takes 15."""
    file = killed_and_restarted / "results" / "minimal" / "benchmarks" / "resnet" / "0" / "evaluation" / "0.tsv"
    measured = pd.read_csv(file, sep="\t").iloc[0]
    assert measured["max_rss"] > 100
    assert measured["cpu_time"] > 0.2


def test_mlflow_has_a_parent_per_invocation_and_every_result_once(killed_and_restarted):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed_and_restarted}/mlflow.db")
    experiment = client.get_experiment_by_name("minimal")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_id: run for run in runs if run.data.tags["kind"] == "invocation"}
    assert sorted(run.info.status for run in parents.values()) == ["FINISHED", "KILLED"]
    children = [run for run in runs if run.info.run_id not in parents and "ibsgl.superseded" not in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == set(parents)
    assert sorted((run.data.tags["kind"], run.data.tags["ibsgl.result_id"]) for run in children) == sorted(
        [
            *(("training", f"resnet/0/{variant}") for variant in METHODS),
            *(
                ("evaluation", f"resnet/0/{variant}/{method}")
                for variant, methods in METHODS.items()
                for method in methods
            ),
            *(("table", name) for name in ("table1", "table3", "comparisons_resnet", "claims")),
            *(("figure", f"figure{number}") for number in (2, 3, 4)),
        ]
    )
    assert {run.info.status for run in children} == {"FINISHED"}
    (table,) = (run for run in children if run.data.tags["ibsgl.result_id"] == "table1")
    assert {file.path for file in client.list_artifacts(table.info.run_id, "tables")} == {
        f"tables/table1.{kind}" for kind in ("csv", "md", "tex")
    }
    (guided,) = (run for run in children if run.data.tags["ibsgl.result_id"] == "resnet/0/guided")
    epochs = client.get_metric_history(guided.info.run_id, next(k for k in guided.data.metrics if "test" not in k))
    assert [metric.step for metric in sorted(epochs, key=lambda metric: metric.step)] == [1, 2]
