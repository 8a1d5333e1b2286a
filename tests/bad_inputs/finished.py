"""A finished run in miniature, and the commands that made it: what the bad inputs are put into."""

import functools
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
import yaml

from ibsgl import cli, config, seals
from ibsgl.config.steps import step_of

MINIMAL = Path(__file__).parents[1] / "configs" / "minimal.yaml"
VALUES = yaml.safe_load(MINIMAL.read_text()) | {"variants": {}}
RUN, OTHER = "results/minimal", "results/other"


@functools.cache
def commands():
    """The arguments of ``ibsgl`` for the steps of the run, by name."""
    return _commands(config.parse(VALUES), RUN)


def _commands(of, run):
    place = f"{run}/resnet/0"
    index = ["--index", f"{run}/index.parquet"]
    data = [*index, "--root", f"{RUN}/data/VOCdevkit/VOC2007"]
    pretrained = f"{place}/pretrained/network.pt"
    l_ib = ["--bottleneck", f"{place}/pretrained/bottleneck.pt"]
    statistics = ["--statistics", f"{place}/pretrained/statistics.pt"]
    evaluation = ["--evaluation", f"{place}/evaluation/0", "--published", "results/published"]
    networks = [f"--weights={place}/{variant}/network.pt" for variant in ("pretrained", "control", "guided")]
    maps = f"{place}/pretrained/maps/rise/0.parquet"

    def settings(step, **where):
        return ["--settings", step_of(of, step, **where).to_json()]

    def guide(variant):
        where = {"model": "resnet", "replicate": 0, "variant": variant}
        names = ["--model", "resnet", "--variant", variant]
        out = ["--out", f"{place}/{variant}/network.pt"]
        return ["guide", *names, *data, "--weights", pretrained, *settings("guide", **where), *out]

    one = {"model": "resnet", "replicate": 0}
    rise = settings("maps", **one, variant="pretrained", method="rise")
    shard = ["--shard", "0", "--gpu", "0", "--batch-size", "8"]
    made = {
        "data": ["data", *settings("data"), "--out", f"{run}/data/VOCdevkit/VOC2007"],
        "index": ["index", *data[2:], *settings("index"), "--out", f"{run}/index.parquet"],
        "classifier": ["classifier", "--model", "resnet", *data, *settings("classifier", **one), "--out", pretrained],
        "bottleneck": ["bottleneck", *data, "--weights", pretrained, *settings("bottleneck", **one), *statistics],
        "control": guide("control"),
        "guide": [*guide("guided"), *l_ib],
        "maps": ["maps", *data, "--weights", pretrained, *rise, *shard, "--out", maps],
        "evaluate": [
            "evaluate",
            "--model",
            "resnet",
            "--replicate",
            "0",
            *data,
            *networks,
            "--maps",
            maps,
            *statistics,
        ],
        "tables": ["tables", "--model", "resnet", *index, *evaluation, *settings("tables", model="resnet")],
        "figure4": ["figure4", *evaluation[:2], *settings("figure4"), "--out", f"{run}/figures/figure4.png"],
    }
    made["bottleneck"] += ["--out", l_ib[1]]
    made["evaluate"] += [*l_ib, *settings("evaluate", model="resnet"), *shard, "--out", f"{place}/evaluation/0"]
    made["tables"] += ["--out", f"{run}/tables"]
    return made


def finish():
    """Make the run in the working directory, and a few files of another one: of the same images, with another seed."""
    torch.set_num_threads(1)
    for name, arguments in commands().items():
        if name != "tables":
            run(arguments)
    other = _commands(config.parse(VALUES | {"seed": 1}), OTHER)
    # The same index, so that only the weights differ; and an index of another split.
    shutil.copytree(RUN, OTHER, ignore=shutil.ignore_patterns("data", "resnet", "figures"))
    for name in ("classifier", "bottleneck", "maps"):
        run(other[name])
    run([*other["index"][:-1], f"{OTHER}/split/index.parquet"])


def run(arguments):
    """Call ``ibsgl`` in this process. An error is raised."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        cli.app(arguments, standalone_mode=False)
    seals.begin()
