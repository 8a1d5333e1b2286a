"""Folders like a clone without results, and Snakemake and the commands called in them."""

import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace

import yaml

ROOT = Path(__file__).parents[2]


MINIMAL = ROOT / "tests" / "configs" / "minimal.yaml"


TINY = ROOT / "tests" / "configs" / "tiny.yaml"


SNAKEMAKE = Path(sys.executable).with_name("snakemake")


# Variables of whoever runs the tests that would change what a workflow does.
FOREIGN = ("MLFLOW_TRACKING_URI", "SNAKEMAKE_PROFILE", "SNAKEMAKE_OUTPUT_CACHE", "IBSGL_GPU")


# The methods whose values stand in the tables, by variant.
METHODS = {
    "pretrained": ("rise", "gradient", "bottleneck", "center", "random", "oracle"),
    "control": ("gradient",),
    "guided": ("gradient", "rise"),
    "shuffled": ("gradient",),
}


RESULTS = {"tables_resnet", "claims", "figure4", "report"}


# The maps of every variant's first replicate, as the report shows them.
THUMBNAILS = "thumbnails resnet"


FIGURES = {"figure 2", "figure 3"}


def job(rule, *wildcards, replicate=0):
    """A job of the network ``resnet`` in the run ``minimal``."""
    return " ".join([rule, "/".join(["minimal", "resnet", str(replicate), *wildcards])])


EVALUATED = {job("evaluate", "0"), *RESULTS}


# What follows from another guided network, tables and figures included.
GUIDED = {
    *(job("guide", variant) for variant in ("guided", "shuffled")),
    job("maps", "guided", "rise", "0"),
    *EVALUATED,
    *FIGURES,
    THUMBNAILS,
}


EVERYTHING = {
    *("data", "index minimal"),
    *(job("classifier"), job("bottleneck"), job("guide", "control")),
    job("maps", "pretrained", "rise", "0"),
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


def snakemake(folder, arguments, variables=(), free=None):
    """Exit status and output of Snakemake in this process, which does nothing else.

    Args:
        variables: of the environment, besides this process's own.
        free: bytes that the disk says are free, if not as many as there are.
    """
    from snakemake import cli

    os.chdir(folder)
    for variable in FOREIGN:
        os.environ.pop(variable, None)
    os.environ.update(variables)
    if free is not None:
        shutil.disk_usage = lambda _: SimpleNamespace(total=10**12, used=10**12 - free, free=free)
    sys.argv = [str(SNAKEMAKE), *arguments]
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            cli.main(arguments)
        except SystemExit as end:
            # Python prints the text that sys.exit is given, and ends with 1.
            said = f"{end.code}\n" if isinstance(end.code, str) else ""
            return 1 if said else end.code, output.getvalue() + said
    raise AssertionError("snakemake.cli.main returned")


def by_hand(folder, commands):
    """Run ``ibsgl`` commands one after the other in this process."""
    import torch

    from ibsgl.cli import app

    os.chdir(folder)
    # As Snakemake starts a job with one thread; more of them add numbers in another order.
    torch.set_num_threads(1)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for command in commands:
            app(command, standalone_mode=False)


READ = (
    "--index",
    "--weights",
    "--maps",
    "--metric",
    "--statistics",
    "--bottleneck",
    "--evaluation",
    "--claims",
    "--table",
    "--figure",
)


def inputs(command):
    """The files among the results that an ``ibsgl`` command reads, as the seals cover them."""
    words = [part for word in command for part in (word.split("=", 1) if word.startswith("--") else [word])]
    files = []
    for option, value in pairwise(words):
        # The job that makes the statistics names them so too.
        if option in READ and not (command[0] == "bottleneck" and option == "--statistics"):
            path = Path(value)
            files += sorted(path.glob("[!.]*")) if path.is_dir() else [path]
    return files


def with_flipped_bits(folder, commands, seed):
    """Call each command twice for each file that it reads, with one bit of the file flipped; (file, what it said)."""
    from ibsgl.cli import app

    os.chdir(folder)
    random = Random(seed)
    found = []
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for command in commands:
            for file in 2 * inputs(command):
                content, facts = file.read_bytes(), file.stat()
                flipped = bytearray(content)
                flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
                file.write_bytes(flipped)
                os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
                said = "nothing"
                try:
                    app(command, standalone_mode=False)
                except ValueError as error:
                    said = str(error)
                finally:
                    file.write_bytes(content)
                    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
                found.append((file.as_posix(), said))
    return found
