"""The graph's promises: nothing is made twice, a change re-runs what depends on it alone, and a killed run ends the same.

The whole graph runs once, in a folder of its own, and is killed once on the way. All other questions are dry runs after it;
they are asked in forks of a process that has imported torch and Snakemake already.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from voc_double import CLASSES, make_archives

from ibsgl import tables
from ibsgl.config import CONTROL_METHODS, NETWORKS, OWN_METHODS, merge
from ibsgl.data.shapes import generate

ROOT = Path(__file__).parents[1]
MINIMAL = ROOT / "tests" / "configs" / "minimal.yaml"
TINY = ROOT / "tests" / "configs" / "tiny.yaml"
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
# Variables of whoever runs the tests that would change what a workflow does.
FOREIGN = ("MLFLOW_TRACKING_URI", "SNAKEMAKE_PROFILE", "SNAKEMAKE_OUTPUT_CACHE", "IBSGL_GPU")

MAPS = {
    "pretrained": ("rise", "gradient", "bottleneck", "center", "random", "oracle"),
    "control": ("gradient",),
    "guided": ("gradient", "rise"),
}
TABLES = {"table 1", "table 3"}
FIGURES = {"figure 2", "figure 3", "figure4"}


LIGHT = {"gradient", "gradcam", "center", "random", "oracle"}


def maps(network, *methods):
    groups = {"light" if method in LIGHT else method for method in methods or MAPS[network]}
    return {f"maps resnet/{network}/{group}/0" for group in groups}


def of(rule, *networks):
    return {f"{rule} resnet/{network}" for network in networks}


def scores(*networks):
    return of("evaluation", *networks) | {f"scores resnet/{network}/0" for network in networks}


# What follows from another guided network, tables and figures included.
GUIDED = {
    *of("guide", "guided"),
    "effect resnet",
    *maps("guided"),
    *scores("guided"),
    "deletion resnet/0",
    *TABLES,
    *FIGURES,
}
EVERYTHING = {
    *("data", "index", "classifier resnet", "statistics resnet/pretrained", "bottleneck resnet"),
    *of("guide", "control"),
    *(job for network in NETWORKS for job in maps(network)),
    *scores(*NETWORKS),
    *GUIDED,
}


def workspace(folder):
    """``folder`` as a clone of the repository without results."""
    (folder / "results").mkdir(parents=True)
    for name in ("Snakefile", "workflow", "config", "profiles", "environment.yml", "results/published"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def environment():
    return {key: value for key, value in os.environ.items() if key not in FOREIGN}


def configured(folder, name, source=MINIMAL, **changes):
    """A copy of ``source`` in ``folder`` with changes given as dotted keys (``__`` for the dot); its name."""
    tree = yaml.safe_load(source.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return f"{name}.yaml"


def _snakemake(folder, arguments):
    """Exit status and output of Snakemake in this process, which does nothing else."""
    from snakemake import cli

    os.chdir(folder)
    for variable in FOREIGN:
        os.environ.pop(variable, None)
    sys.argv = [str(SNAKEMAKE), *arguments]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            cli.main(arguments)
        except SystemExit as end:
            return end.code, said.getvalue()
    raise AssertionError("snakemake.cli.main returned")


def _by_hand(folder, commands):
    """Run ``ibsgl`` commands one after the other in this process."""
    import torch

    from ibsgl.cli import app

    os.chdir(folder)
    # As Snakemake starts a job with one thread; more of them add numbers in another order.
    torch.set_num_threads(1)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for command in commands:
            app(command, standalone_mode=False)


def _answer(connection, function, arguments):
    connection.send(function(*arguments))


@pytest.fixture(scope="module")
def fork():
    """Call a function in a fresh process that has torch and Snakemake imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["ibsgl.cli", "ibsgl.attribution", "ibsgl.tracking", "torch", "snakemake.cli"])

    def call(function, *arguments):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            raise AssertionError(f"{function.__name__} failed; its traceback is on standard error") from None
        finally:
            process.join()

    return call


@pytest.fixture(scope="module")
def ask(fork):
    """(jobs, output) of a dry run in a folder; a job is its rule and wildcards, as ``maps resnet/guided/rise/0``."""

    def dry_run(folder, configfile, *arguments):
        code, said = fork(_snakemake, folder, [*arguments, "--dry-run", "--configfile", configfile])
        assert code == 0, said
        blocks = re.findall(r"^rule (\w+):\n((?:    .*\n)+)", said, re.M)
        jobs = []
        for rule, facts in blocks:
            wildcards = re.search(r"^    wildcards: (.*)$", facts, re.M)
            values = [pair.split("=")[1] for pair in wildcards[1].split(", ")] if wildcards else []
            jobs.append(" ".join([rule, "/".join(values)]).strip())
        assert len(jobs) == len(set(jobs)), jobs
        assert jobs or "Nothing to be done" in said, said
        return set(jobs) - {"all"}, said

    return dry_run


@pytest.fixture(scope="module")
def killed_and_restarted(tmp_path_factory):
    """The folder of a run that was killed with all its jobs in the middle of guided training, and started again."""
    folder = workspace(tmp_path_factory.mktemp("run") / "clone")
    command = [SNAKEMAKE, "--configfile", configured(folder, "minimal")]
    with (folder / "first.txt").open("w") as said:
        run = subprocess.Popen(
            command, cwd=folder, env=environment(), start_new_session=True, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            while not list(folder.glob("results/minimal/resnet/guided*")):
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


def test_from_scratch_every_job_runs_once(ask, tmp_path):
    folder = workspace(tmp_path / "clone")
    assert ask(folder, configured(folder, "minimal"))[0] == EVERYTHING


def test_table3_from_scratch_asks_for_the_first_network_and_no_figure(ask, tmp_path):
    folder = workspace(tmp_path / "clone")
    jobs, _ = ask(folder, configured(folder, "tiny", TINY), "table3")
    before = {"data", "index", "classifier resnet", "statistics resnet/pretrained", "bottleneck resnet"}
    evaluated = {job for network in NETWORKS for job in maps(network)} | scores(*NETWORKS)
    of_gradcam = maps("pretrained", "gradcam") | maps("guided", "gradcam")
    assert jobs == before | of("guide", "guided", "control") | evaluated | of_gradcam | {"table 3", "table3"}


def test_a_bad_config_stops_before_any_job_with_one_line_naming_the_key(tmp_path):
    folder = workspace(tmp_path / "clone")
    configfile = configured(folder, "bad", suppression__r=2)
    run = subprocess.run(
        [SNAKEMAKE, "--configfile", configfile],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    said = [
        line
        for line in (run.stdout + run.stderr).splitlines()
        if not line.startswith("Using workflow specific profile")
    ]
    assert said == ["config: suppression.r: Input should be less than or equal to 1 (it is 2.0)"]
    assert [path.name for path in (folder / "results").iterdir()] == ["published"]


@pytest.fixture(scope="module")
def to_download(fork, tmp_path_factory):
    """A folder without data, its config, and the data set's only mirror."""
    folder, mirror = workspace(tmp_path_factory.mktemp("download") / "clone"), tmp_path_factory.mktemp("a mirror")
    generate(mirror / "VOCdevkit" / "VOC2007", seed=0, trainval=24, test=6, size=32, progress=False)
    with tarfile.open(mirror / "set.tar", "w") as archive:
        archive.add(mirror / "VOCdevkit", "VOCdevkit")
    content = (mirror / "set.tar").read_bytes()
    described = {"name": "set.tar", "md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}
    data = {
        "source": "voc",
        "root": "kept/VOC2007",
        "held_out": 0.3,
        "download": {"mirrors": [str(mirror)], "archives": [described], "images": {"trainval": 24, "test": 6}},
    }
    configured(folder, "minimal", data=data)
    return folder, data


def test_a_download_is_in_the_graph_and_its_folder_is_not(ask, fork, to_download):
    folder, data = to_download
    assert ask(folder, "minimal.yaml")[0] == EVERYTHING
    index = "results/minimal/index.parquet"
    code, said = fork(_snakemake, folder, [index, "--configfile", "minimal.yaml"])
    assert code == 0, said
    assert (folder / "kept" / "VOC2007" / "JPEGImages").is_dir()
    # The folder was not there when the first graph was made; that is no change, nor is another place to have it from.
    moved = data | {"download": data["download"] | {"mirrors": ["nowhere"], "folder": "elsewhere"}}
    assert ask(folder, configured(folder, "moved", data=moved))[0] == EVERYTHING - {"data", "index"}
    # A file that has changed is, as long as the folder is there.
    image = next((folder / "kept" / "VOC2007" / "JPEGImages").iterdir())
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert ask(folder, "minimal.yaml", index)[0] == {"index"}
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "kept" / "VOC2007").rename(folder / "kept" / "away")
    assert ask(folder, "minimal.yaml", index)[0] == set()


def test_forcing_a_download_leaves_the_users_folder_alone(fork, to_download, tmp_path):
    _, data = to_download
    folder = workspace(tmp_path / "clone")
    root = folder / "kept" / "VOC2007"
    root.mkdir(parents=True)
    (root / "mine").write_text("mine")
    configfile = configured(folder, "minimal", data=data)
    stamp = "results/minimal/data.json"
    code, said = fork(_snakemake, folder, [stamp, "--configfile", configfile, "--forcerun", "data"])
    assert code == 0, said
    assert json.loads((folder / stamp).read_text())["archives"] == "taken as it is"
    assert (root / "mine").read_text() == "mine"


def test_after_a_run_nothing_is_to_be_done(ask, killed_and_restarted):
    assert ask(killed_and_restarted, "minimal.yaml")[0] == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"methods__rise__masks": 9},
            {
                *maps("pretrained", "rise"),
                *maps("guided", "rise"),
                *scores("pretrained", "guided"),
                *TABLES,
            },
        ),
        # r is in L_SS, which guides, and marks the region of the deletion curves.
        ({"suppression__r": 0.2}, GUIDED),
        (
            {"bottleneck__alpha": 5.0},
            {"bottleneck resnet", *maps("pretrained", "bottleneck"), *scores("pretrained"), *GUIDED},
        ),
        ({"seed": 1}, EVERYTHING),
        ({"metrics__miou__top": 0.3}, scores(*NETWORKS) | TABLES),
        ({"batch_size": 3, "threads": 2, "device": "cuda"}, set()),
        (
            {"shard_size": 3},
            {
                *(job[:-1] + shard for network in NETWORKS for job in maps(network) for shard in "01"),
                *(f"scores resnet/{network}/{shard}" for network in NETWORKS for shard in "01"),
                *of("evaluation", *NETWORKS),
                *(f"deletion resnet/{shard}" for shard in "01"),
                *TABLES,
                "figure4",
            },
        ),
    ],
    ids=["masks", "r", "alpha", "seed", "miou", "machine", "shards"],
)
def test_a_change_reruns_exactly_what_depends_on_it(ask, killed_and_restarted, request, changes, expected):
    configfile = configured(killed_and_restarted, request.node.callspec.id, **changes)
    assert ask(killed_and_restarted, configfile)[0] == expected


def test_tables_equal_those_of_the_same_commands_run_by_hand_without_a_break(ask, fork, killed_and_restarted, tmp_path):
    """And in two pieces, where the workflow's run had its test images in one."""
    folder = workspace(tmp_path / "clone")
    _, said = ask(folder, configured(folder, "minimal", shard_size=3))
    # Listed in an order in which every file is made before it is read.
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (ibsgl .*)$", said, re.M)]
    assert len(commands) > len(EVERYTHING)
    for command in commands:
        assert command[-2] == "2>"
    fork(_by_hand, folder, [command[1:-2] for command in commands])
    results = folder / "results" / "minimal"
    made = sorted(path.relative_to(results) for path in results.glob("*/*") if path.suffix in (".csv", ".md", ".tex"))
    assert [path.name for path in made] == [
        "figure4.csv",
        "classification_resnet.csv",
        "guidance_resnet.csv",
        "guidance_resnet.md",
        *(f"table{number}.{kind}" for number in (1, 3) for kind in ("csv", "md", "tex")),
    ]
    for path in made:
        assert (results / path).read_bytes() == (killed_and_restarted / "results" / "minimal" / path).read_bytes(), path


def test_tables_and_figures_are_there_and_parse(killed_and_restarted):
    results = killed_and_restarted / "results" / "minimal"
    for number, metrics in ((1, {"ebpg", "miou", "bbox"}), (3, {"average_drop", "average_increase"})):
        table = pd.read_csv(results / "tables" / f"table{number}.csv")
        assert set(table["metric"]) == metrics
        ran = table[table["value"] != tables.NOT_RUN]
        assert set(zip(ran["network"], ran["method"], strict=True)) == {
            (network, method) for network in NETWORKS for method in MAPS[network]
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


def test_mlflow_has_a_parent_per_invocation_and_every_result_once(killed_and_restarted):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed_and_restarted}/mlflow.db")
    experiment = client.get_experiment_by_name("minimal")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_id: run for run in runs if run.data.tags["ibsgl.kind"] == "invocation"}
    assert sorted(run.info.status for run in parents.values()) == ["FINISHED", "KILLED"]
    children = [run for run in runs if run.info.run_id not in parents and "ibsgl.superseded" not in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == set(parents)
    assert sorted((run.data.tags["ibsgl.kind"], run.data.tags["ibsgl.cell"]) for run in children) == sorted(
        [
            *(("training", f"resnet/{name}") for name in ("classifier", "control", "guided")),
            *(("evaluation", f"resnet/{network}/{method}") for network in NETWORKS for method in MAPS[network]),
            *(("table", name) for name in ("table1", "table3", "resnet/effect")),
            *(("figure", f"figure{number}") for number in (2, 3, 4)),
        ]
    )
    assert {run.info.status for run in children} == {"FINISHED"}
    (table,) = (run for run in children if run.data.tags["ibsgl.cell"] == "table1")
    assert {file.path for file in client.list_artifacts(table.info.run_id, "tables")} == {
        f"tables/table1.{kind}" for kind in ("csv", "md", "tex")
    }
    (guided,) = (run for run in children if run.data.tags["ibsgl.cell"] == "resnet/guided")
    epochs = client.get_metric_history(guided.info.run_id, next(k for k in guided.data.metrics if "test" not in k))
    assert [metric.step for metric in sorted(epochs, key=lambda metric: metric.step)] == [1, 2]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A stand-in's archives behind a server: (address, entries of the config)."""
    folder = tmp_path / "served"
    entries = make_archives(folder, {"trainval": 60, "test": 24})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", entries
    server.shutdown()


# Sizes and nothing else: of the images, the networks (the small ones, which have no ImageNet weights), trainings and methods.
SIZES = {
    "device": "cpu",
    "batch_size": 8,
    "shard_size": 12,
    "models": {
        name: {"arch": arch, "weights": None, "image_size": 32, "options": {"width": 2}, "override": {}}
        for name, arch in (("resnet50", "resnet_small"), ("vgg16", "vgg_small"))
    },
    "classifier": {"epochs": 1},
    "bottleneck": {"steps": 2, "samples": 2},
    "guidance": {"steps": 1, "training": {"epochs": 1}},
    "methods": {
        "extremal_perturbation": {"iterations": 2},
        "rise": {"masks": 8},
        "integrated_gradients": {"steps": 2},
    },
    "deletion": {"points": 2, "repeats": 1},
    "figures": {"examples": 1},
    "tables": {"resamples": 100},
}


def test_the_reproduction_on_a_stand_in_goes_from_the_archives_to_the_four_tables(
    ask, fork, served, tmp_path, monkeypatch
):
    """Every command of its graph, in the graph's order, in one process: starting sixty would take minutes."""
    address, entries = served
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = workspace(tmp_path / "clone")
    download = {"mirrors": [address], "archives": entries, "images": {"trainval": 60, "test": 24}}
    loaded = yaml.safe_load((ROOT / "config" / "voc2007.yaml").read_text(encoding="utf-8"))
    sizes = merge(loaded, SIZES | {"data": {"download": download}})
    (folder / "sizes.yaml").write_text(yaml.safe_dump(sizes))
    _, said = ask(folder, "sizes.yaml")
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (ibsgl .*)$", said, re.M)]
    assert commands[0][1] == "fetch"
    fork(_by_hand, folder, [command[1:-2] for command in commands])
    results = folder / "results" / "voc2007"
    scores = pd.read_parquet(results / "resnet50" / "scores" / "pretrained.parquet")
    pairs = pd.read_parquet(results / "index.parquet").query("split == 'test'")
    assert pairs["image_id"].nunique() == 24
    assert len(pairs) > 24
    assert (scores.groupby("method").size() == len(pairs)).all()
    assert set(scores["class_name"]) <= set(CLASSES)
    for number in (1, 2, 3, 4):
        table = pd.read_csv(results / "tables" / f"table{number}.csv")
        ran = table[table["value"] != tables.NOT_RUN]
        assert set(ran["method"]) == {*loaded["methods"], *OWN_METHODS, *CONTROL_METHODS}
        assert set(table["method"]) - set(ran["method"]) == {"sise"}
        assert "not comparable" in (results / "tables" / f"table{number}.md").read_text()
    for number in (2, 3, 4):
        assert (results / "figures" / f"figure{number}.png").stat().st_size > 0
    classes = pd.read_csv(results / "tables" / "classification_resnet50.csv")
    assert set(CLASSES) <= set(classes["class"])
