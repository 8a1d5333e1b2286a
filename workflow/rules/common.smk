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
from ibsgl.network import is_torchvision_weights
from ibsgl.provenance import folder_digest, source_digest
from ibsgl.tracking import Tracker

try:
    CONFIG = configuration.load(config)
except configuration.ConfigError as error:
    sys.exit(f"config: {error}")

# Jobs call `ibsgl`, which stands beside this interpreter whether or not its environment is activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

RESULTS = f"results/{CONFIG.name}"
RECORDS = f"{RESULTS}/records"
ROOT = CONFIG.data_root
INDEX = f"{RESULTS}/index.parquet"
# With a download the folder is no file of the graph: Snakemake would delete it, somebody's data, before making it. The index
# waits for the stamp, and every other job for the index.
STAMP = f"{RESULTS}/data.json"
DATA = [] if CONFIG.data.download else ROOT
SHARDS = range(CONFIG.shards)
MODELS = list(CONFIG.models)
NETWORKS = configuration.NETWORKS
# Tables 1 and 3 are the first model's, 2 and 4 the second's.
NUMBERS = [number for number in (1, 2, 3, 4) if (number - 1) % 2 < len(MODELS)]

TABLES = [f"{RESULTS}/tables/table{number}.csv" for number in NUMBERS]
FIGURES = [f"{RESULTS}/figures/figure{number}.png" for number in (2, 3, 4)]
EFFECTS = [f"{RESULTS}/tables/guidance_{model}.csv" for model in MODELS]


# A killed Snakemake leaves its lock behind and the next call would be refused until --unlock. The kernel's lock ends with its
# process: whoever gets it knows that no other run is alive and that Snakemake's lock, if there is one, is a dead run's.
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
    # Records of an earlier run wait where its tracking server was away; when nothing is to be done no handler is called.
    # What kind of call this is (a dry run, --lint, …) is known only at its end.
    atexit.register(
        lambda: workflow.executor_plugin is None or workflow.dryrun or TRACKER.close()
    )


wildcard_constraints:
    model="|".join(MODELS),
    network="|".join(NETWORKS),
    group="[A-Za-z0-9_-]+",
    shard=r"\d+",
    number=r"\d+",


def settings(step):
    """The job's part of the config, as its params; a change re-runs the job, and only such a change does."""
    return lambda wildcards: CONFIG.settings(step, **dict(wildcards.items()))


def data_root(wildcards, input):
    """Where the images are, for the command line: not compared, for another place with the same files is no change."""
    return ROOT


def data_files(wildcards):
    """Digest of what is in the data folder: Snakemake sees a folder's own date, not what changes inside it.

    Asked for anew when the job starts, after a download. A folder deleted since is as it was: finished results stay so.
    """
    if CONFIG.data.download and not Path(ROOT).is_dir() and Path(STAMP).is_file():
        return json.loads(Path(STAMP).read_text())["files"]
    return folder_digest(ROOT)


def weights_file(wildcards):
    """The file that a network starts from, if the config names one."""
    weights = CONFIG.models[wildcards.model].weights
    return [] if weights is None or is_torchvision_weights(weights) else weights


def gpus(wildcards=None):
    """1 for a job that computes on a GPU, 0 for one on the CPU."""
    return (
        devices.automatic() if CONFIG.device == "auto" else int(CONFIG.device == "cuda")
    )


def doubling(first):
    """What a cluster job asks for, minutes or megabytes: twice as much at each retry. On one machine nothing reads it."""
    return lambda wildcards, attempt: first * 2 ** (attempt - 1)


def maps_of(wildcards):
    """Every map that one shard of one network's scores is made of."""
    return expand(
        f"{RESULTS}/{wildcards.model}/maps/{wildcards.network}/{{group}}/{wildcards.shard}.parquet",
        group=CONFIG.groups(wildcards.network),
    )


def eq3_maps_of(wildcards):
    """One shard of every network's own Eq. 3 maps, in the networks' order."""
    return [
        f"{RESULTS}/{wildcards.model}/maps/{network}/{group}/{wildcards.shard}.parquet"
        for network in NETWORKS
        for group, methods in CONFIG.groups(network).items()
        if "gradient" in methods
    ]


def scores_of(wildcards):
    """The score files behind a table."""
    model = MODELS[(int(wildcards.number) - 1) % 2]
    return expand(f"{RESULTS}/{model}/scores/{{network}}.parquet", network=NETWORKS)


def guidance_inputs(wildcards):
    """Cached bottleneck maps, or the statistics to compute them as training goes; the control needs neither."""
    if wildcards.network == "control":
        return {}
    if CONFIG.for_model(wildcards.model).guidance.bottleneck_network == "current":
        return {"statistics": f"{RESULTS}/{wildcards.model}/statistics/pretrained.pt"}
    return {"bottleneck": f"{RESULTS}/{wildcards.model}/bottleneck.pt"}


def guidance_options(wildcards, input):
    """The command line's side of :func:`guidance_inputs`."""
    return [f"--{name}={getattr(input, name)}" for name in guidance_inputs(wildcards)]


def statistics_of(wildcards):
    """The statistics of the network's features, for the methods that ask for them."""
    methods = CONFIG.groups(wildcards.network)[wildcards.group]
    if any("statistics" in attribution.requirements(method) for method in methods):
        return {
            "statistics": f"{RESULTS}/{wildcards.model}/statistics/{wildcards.network}.pt"
        }
    return {}


def network_code(wildcards):
    """The module of a network that the config brings in by its factory."""
    name, colon, _ = CONFIG.models[wildcards.model].arch.partition(":")
    return [name] if colon else []


# The modules that a stage's results depend on, besides the module of a method: an edit re-runs the stage.
DATA_CODE = (
    "ibsgl.data.loading",
    "ibsgl.network",
    "ibsgl.weights",
    "ibsgl.torchray",
    "ibsgl.randomness",
)
TRAINING_CODE = (*DATA_CODE, "ibsgl.training", "ibsgl.metrics.classification")
STATISTICS_CODE = (*DATA_CODE, "ibsgl.training", "ibsgl.bottleneck")
BOTTLENECK_CODE = (*DATA_CODE, "ibsgl.bottleneck", "ibsgl.evaluation")
GUIDANCE_CODE = (
    *TRAINING_CODE,
    "ibsgl.guidance",
    "ibsgl.saliency",
    "ibsgl.suppression",
    "ibsgl.bottleneck",
)
SCORES_CODE = ("ibsgl.metrics", "ibsgl.evaluation", *DATA_CODE)
