# Shared by all stages: the checked config, where results live, and how settings reach a job.
import atexit
import json
import os
import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from ibsgl import attribution, devices, slurm
from ibsgl import config as configuration
from ibsgl.config.steps import step_of
from ibsgl.provenance import folder_digest
from ibsgl.tracking import Tracker
from ibsgl.training.variants import VARIANTS

try:
    CONFIG = configuration.load(config)
except configuration.ConfigError as error:
    sys.exit(f"config: {error}")

# Jobs call `ibsgl`. It is beside this interpreter, whether or not its environment is activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

RESULTS = f"results/{CONFIG.name}"
RECORDS = f"{RESULTS}/records"
ROOT = CONFIG.data_root
INDEX = f"{RESULTS}/index.parquet"
# With a download the folder is no file of the graph: Snakemake deletes a rule's output before it runs the rule, and the folder may
# hold a user's data. The index waits for the stamp, and every other job waits for the index.
STAMP = f"{RESULTS}/data.json"
DATA = [] if CONFIG.data.archives else ROOT
SHARDS = range(CONFIG.shards)
MODELS = list(CONFIG.models)
# Tables 1 and 3 are the first model's, 2 and 4 the second's.
NUMBERS = [number for number in (1, 2, 3, 4) if (number - 1) % 2 < len(MODELS)]

TABLES = [f"{RESULTS}/tables/table{number}.csv" for number in NUMBERS]
FIGURES = [f"{RESULTS}/figures/figure{number}.png" for number in (2, 3, 4)]
EFFECTS = [f"{RESULTS}/tables/guidance_{model}.csv" for model in MODELS]


# A killed Snakemake leaves its lock behind, and the next call would be refused until --unlock. The kernel's lock ends with its
# process. So the process that gets it is the only run alive, and a lock of Snakemake, if there is one, belongs to a dead run.
RUNNING = FileLock(".snakemake/running.lock")
if workflow.is_main_process:
    Path(".snakemake").mkdir(exist_ok=True)
    try:
        RUNNING.acquire(blocking=False)
        shutil.rmtree(".snakemake/locks", ignore_errors=True)
    except Timeout:
        pass

TRACKER = Tracker(
    CONFIG.name, RECORDS, CONFIG.model_dump(mode="json"), " ".join(sys.argv[1:])
)
if workflow.is_main_process:
    # Records of an earlier run may still wait because its tracking server was away, and Snakemake calls no handler when nothing is
    # to be done. Only at the end is it known whether this call was a dry run, --lint or a real run.
    atexit.register(
        lambda: workflow.executor_plugin is None or workflow.dryrun or TRACKER.close()
    )


wildcard_constraints:
    model="|".join(MODELS),
    variant="|".join(VARIANTS),
    group="[A-Za-z0-9_-]+",
    shard=r"\d+",
    number=r"\d+",


def settings(step):
    """The part of the config that a job depends on, as its params. A change of it re-runs the job."""
    return lambda wildcards: step_of(CONFIG, step, **dict(wildcards.items())).to_json()


def code(step):
    """Digest of the code that a job depends on, as its params. An edit of that code re-runs the job."""
    return lambda wildcards: step_of(CONFIG, step, **dict(wildcards.items())).code()


def data_root(wildcards, input):
    """Where the images are, for the command line. It is not compared: the same files in another place are no change."""
    return ROOT


def data_files(wildcards):
    """Digest of what is in the data folder: Snakemake sees a folder's own date, not what changes inside it.

    It is computed again when the job starts, after a download. If the folder was deleted since, its old digest holds and
    finished results stay finished.
    """
    if CONFIG.data.archives and not Path(ROOT).is_dir() and Path(STAMP).is_file():
        return json.loads(Path(STAMP).read_text())["files"]
    return folder_digest(ROOT)


def weights_file(wildcards):
    """The file that a network starts from, if the config names one."""
    return CONFIG.network(wildcards.model).weights_file or []


def gpus(wildcards=None):
    """1 for a job that computes on a GPU, 0 for one on the CPU."""
    return (
        devices.automatic() if CONFIG.device == "auto" else int(CONFIG.device == "cuda")
    )


def doubling(first):
    """Minutes or megabytes of a cluster job, twice as much at each retry. On one machine nothing reads it."""
    return lambda wildcards, attempt: first * 2 ** (attempt - 1)


def maps_of(wildcards):
    """Every map that one shard of one variant's scores is made of."""
    return expand(
        f"{RESULTS}/{wildcards.model}/maps/{wildcards.variant}/{{group}}/{wildcards.shard}.parquet",
        group=CONFIG.groups(wildcards.variant),
    )


def eq3_maps_of(wildcards):
    """One shard of every variant's own Eq. 3 maps, in the variants' order."""
    return [
        f"{RESULTS}/{wildcards.model}/maps/{variant}/{group}/{wildcards.shard}.parquet"
        for variant in VARIANTS
        for group, methods in CONFIG.groups(variant).items()
        if "gradient" in methods
    ]


def scores_of(wildcards):
    """The score files behind a table."""
    model = MODELS[(int(wildcards.number) - 1) % 2]
    return expand(f"{RESULTS}/{model}/scores/{{variant}}.parquet", variant=VARIANTS)


def guidance_inputs(wildcards):
    """Cached bottleneck maps, or the statistics to compute them during training. The control needs neither."""
    if wildcards.variant == "control":
        return {}
    if CONFIG.for_model(wildcards.model).guidance.bottleneck_network == "current":
        return {"statistics": f"{RESULTS}/{wildcards.model}/statistics/pretrained.pt"}
    return {"bottleneck": f"{RESULTS}/{wildcards.model}/bottleneck.pt"}


def guidance_options(wildcards, input):
    """The command line's side of :func:`guidance_inputs`."""
    return [f"--{name}={getattr(input, name)}" for name in guidance_inputs(wildcards)]


def statistics_of(wildcards):
    """The statistics of the variant's features, for the methods that require them."""
    methods = CONFIG.groups(wildcards.variant)[wildcards.group]
    if any("statistics" in attribution.requirements(method) for method in methods):
        return {
            "statistics": f"{RESULTS}/{wildcards.model}/statistics/{wildcards.variant}.pt"
        }
    return {}
