# Shared by all stages: the checked config, where results live, and how settings reach a job.
import atexit
import functools
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from filelock import FileLock, Timeout

from ibsgl import attribution, devices, doctor, files, lifetime, slurm
from ibsgl import config as configuration
from ibsgl.config.steps import lineage, step_of
from ibsgl.metrics import further
from ibsgl.networks.passes import COMPILED
from ibsgl.progress import TimeLeft
from ibsgl.provenance import folder_digest
from ibsgl.redaction import redacted
from ibsgl.tracking import Tracker
from ibsgl.training.variants import PRETRAINED
from ibsgl.warm import server as warm

try:
    # Snakemake has read them already, and would take the last of two equal keys.
    for each_file in workflow.configfiles:
        configuration.read_file(Path(each_file))
    CONFIG = configuration.load(config)
    # The run itself, and the alternatives of a sensitivity study, each with a folder of its own.
    CONFIGS = {CONFIG.name: CONFIG} | {
        f"{CONFIG.name}/alternatives/{name}": CONFIG.alternative(name)
        for name in CONFIG.alternatives
    }
except configuration.ConfigError as error:
    sys.exit(f"config: {error}")

# Jobs call `ibsgl`. It is beside this interpreter, whether or not its environment is activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

# Each job starts Python anew. With this variable, which containers often set, it would compile torch for every job.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ.setdefault(
        "PYTHONPYCACHEPREFIX", str(Path(".snakemake/bytecode").absolute())
    )
# What a job has compiled, all later jobs use; on a cluster those on the same kind of processor.
os.environ.setdefault(COMPILED, str(Path(".snakemake/compiled").absolute()))
# glibc would return the memory of large tensors after each use, and the kernel would clear it again. 2**25 is its upper limit.
for variable, size in (
    ("MALLOC_MMAP_THRESHOLD_", 2**25),
    ("MALLOC_TRIM_THRESHOLD_", 2**30),
):
    os.environ.setdefault(variable, str(size))

RESULTS = f"results/{CONFIG.name}"
RECORDS = f"{RESULTS}/records"
ROOT = CONFIG.data_root
# With a download the folder is no file of the graph: Snakemake deletes a rule's output before it runs the rule, and the folder may
# hold a user's data. The index waits for the stamp, and every other job waits for the index.
STAMP = f"{RESULTS}/data.json"
DATA = [] if CONFIG.data.archives else ROOT
MODELS = list(CONFIG.models)
# Tables 1 and 3 are the first model's, 2 and 4 the second's.
NUMBERS = {model: (place + 1, place + 3) for place, model in enumerate(MODELS)}

TABLES = [
    f"{RESULTS}/tables/table{number}.csv"
    for number in sorted(n for numbers in NUMBERS.values() for n in numbers)
]
FIGURES = [f"{RESULTS}/figures/figure{number}.png" for number in (2, 3, 4)]
CLAIMS = f"{RESULTS}/claims/claims.csv"
REPORT = f"{RESULTS}/report/index.html"
# Further metrics are those of the base run. Alternatives have none.
FURTHER = {
    row: further.get(
        CONFIG.further_metric(row).use, **CONFIG.further_metric(row).settings
    )
    for row in CONFIG.further_metrics
}
METRICS = [f"{RESULTS}/tables/metrics_{model}.csv" for model in MODELS if FURTHER]
AGREEMENT = [
    f"{RESULTS}/figures/metric_agreement_{model}.png" for model in MODELS if FURTHER
]
SENSITIVITY = f"{RESULTS}/claims/sensitivity.csv"
TORNADO = (
    [Path(SENSITIVITY).with_suffix(".png").as_posix()] if CONFIG.alternatives else []
)
# Pages of the documentation with the answer and with the sensitivity.
PAGES = {
    "claims": f"docs/measured/{CONFIG.name}.md",
    "sensitivity": f"docs/measured/{CONFIG.name}_changes.md",
}


# A killed Snakemake leaves its lock behind, and the next call would be refused until --unlock. The kernel's lock ends with its
# process. So the process that gets it is the only run alive, and a lock of Snakemake, if there is one, belongs to a dead run.
RUNNING = FileLock(".snakemake/running.lock")
if workflow.is_main_process:
    # On a full disk Snakemake cannot write its log, and Python would show a traceback for each line of it.
    logging.raiseExceptions = False
    if shutil.disk_usage(".").free < 2**20:
        sys.exit(
            "the disk of this folder is full; free some space and call the same command again"
        )
    Path(".snakemake").mkdir(exist_ok=True)
    try:
        RUNNING.acquire(blocking=False)
        shutil.rmtree(".snakemake/locks", ignore_errors=True)
    except Timeout:
        pass

TRACKER = Tracker(
    CONFIG.name,
    RECORDS,
    CONFIG.model_dump(mode="json"),
    redacted(" ".join(sys.argv[1:])),
)
if workflow.is_main_process:
    # Records of an earlier run may still wait because its tracking server was away, and Snakemake calls no handler when nothing is
    # to be done. Only at the end is it known whether this call was a dry run, --lint or a real run.
    atexit.register(
        lambda: workflow.executor_plugin is None or workflow.dryrun or TRACKER.close()
    )


wildcard_constraints:
    run="|".join(CONFIGS),
    model="|".join(MODELS),
    replicate=r"\d+",
    variant="|".join({name for each in CONFIGS.values() for name in each.variant_names}),
    method="[A-Za-z0-9_-]+",
    metric="[A-Za-z0-9_-]+",
    shard=r"\d+",
    number=r"\d+",


def step(name, wildcards):
    """The step of a job with these wildcards."""
    where = dict(wildcards.items())
    return step_of(CONFIGS[where.pop("run", CONFIG.name)], name, **where)


def settings(name):
    """The part of the config that a job depends on, as its params. A change of it re-runs the job."""
    return lambda wildcards: step(name, wildcards).to_json()


def code(name):
    """Digest of the code that a job depends on, as its params. An edit of that code re-runs the job."""
    return lambda wildcards: step(name, wildcards).code()


@functools.cache
def folder(run, name, **where):
    """The folder of the run whose job ``name`` makes this result: that of the base run if the job would be the same there."""
    try:
        same = lineage(CONFIG, name, **where) == lineage(CONFIGS[run], name, **where)
    except configuration.ConfigError:
        same = False
    return RESULTS if same else f"results/{run}"


def index_of(wildcards):
    """The index of the data set."""
    return f"{folder(wildcards.get('run', CONFIG.name), 'index')}/index.parquet"


def network_of(wildcards, variant=None):
    """The weights of a variant; without ``variant``, of the job's own."""
    where = _where(wildcards, variant=variant or wildcards.variant)
    root = folder(wildcards.run, "guide", **where)
    return (
        f"{root}/{wildcards.model}/{wildcards.replicate}/{where['variant']}/network.pt"
    )


def pretrained_of(wildcards):
    """The weights of the pretrained variant."""
    return network_of(wildcards, PRETRAINED)


def networks_of(wildcards):
    """The weights of every variant."""
    return [
        network_of(wildcards, variant)
        for variant in CONFIGS[wildcards.run].variant_names
    ]


def bottleneck_of(wildcards):
    """L^ib of the training and held-out pairs."""
    root = folder(wildcards.run, "bottleneck", **_where(wildcards))
    return f"{root}/{wildcards.model}/{wildcards.replicate}/pretrained/bottleneck.pt"


def statistics_of(wildcards):
    """The feature statistics of the pretrained variant."""
    return f"{Path(bottleneck_of(wildcards)).parent}/statistics.pt"


def maps_inputs(wildcards):
    """The feature statistics, for a method that requires them."""
    return _statistics_for([wildcards.method], wildcards)


def heavy_maps_of(wildcards):
    """The maps that jobs of their own have made, for one shard of every variant."""
    run, replicate = CONFIGS[wildcards.run], int(wildcards.replicate)
    files = []
    for variant in run.variant_names:
        for method in run.heavy_methods(variant, replicate):
            where = _where(wildcards, variant=variant, method=method)
            root = folder(wildcards.run, "maps", **where)
            place = f"{root}/{wildcards.model}/{replicate}/{variant}/maps"
            files.append(f"{place}/{method}/{wildcards.shard}.parquet")
    return files


def light_maps_inputs(wildcards):
    """The feature statistics, if a method of one pass requires them."""
    methods = CONFIGS[wildcards.run].light_methods(wildcards.variant)
    return _statistics_for(methods, wildcards)


def stored_maps_of(wildcards):
    """All maps of one shard of a variant: those of the methods of one pass, and each other method's."""
    run, replicate = CONFIGS[wildcards.run], int(wildcards.replicate)
    place = f"results/{wildcards.run}/{wildcards.model}/{replicate}/{wildcards.variant}"
    return [
        f"{place}/light_maps/{wildcards.shard}.parquet",
        *(
            f"{place}/maps/{method}/{wildcards.shard}.parquet"
            for method in run.heavy_methods(wildcards.variant, replicate)
        ),
    ]


def metric_inputs(wildcards):
    """The images and the weights, for a metric that requires them, and the statistics, for methods that require those."""
    if FURTHER[wildcards.metric].requires == "maps":
        return {}
    inputs = {"root": DATA, "weights": [network_of(wildcards)]}
    if FURTHER[wildcards.metric].requires == "network":
        return inputs
    methods = CONFIGS[wildcards.run].methods_of(
        wildcards.variant, int(wildcards.replicate)
    )
    return inputs | _statistics_for(methods, wildcards)


def _statistics_for(methods, wildcards):
    config = CONFIGS[wildcards.run].for_model(wildcards.model)
    needed = any(
        "statistics"
        in attribution.requirements(
            attribution.method_of(row, config.method_settings(row))
        )
        for row in methods
    )
    return {"statistics": [statistics_of(wildcards)]} if needed else {}


def metrics_of(model):
    """The values of the further metrics of a network: a file for each metric, replicate, variant and shard."""
    return [
        f"{RESULTS}/{model}/{replicate}/{variant}/metrics/{row}/{shard}.parquet"
        for row in FURTHER
        for replicate in range(CONFIG.methods_on.replicates)
        for variant in CONFIG.methods_on.variants
        for shard in range(CONFIG.shards)
    ]


def evaluations_of(run, model):
    """What was measured on a network: a folder for each replicate and shard."""
    config = CONFIGS[run]
    return [
        f"{folder(run, 'evaluate', model=model, replicate=replicate)}/{model}/{replicate}/evaluation/{shard}"
        for replicate in range(config.replicates)
        for shard in range(config.shards)
    ]


def first_replicate(wildcards, shard=0):
    """The wildcards of a job of the first replicate of the same network."""
    return SimpleNamespace(
        run=CONFIG.name, model=wildcards.model, replicate="0", shard=shard
    )


def _where(wildcards, **more):
    return {"model": wildcards.model, "replicate": int(wildcards.replicate)} | more


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
    return CONFIGS[wildcards.run].network(wildcards.model).weights_file or []


def gpus(wildcards=None):
    """1 for a job that computes on a GPU, 0 for one on the CPU."""
    return (
        devices.automatic() if CONFIG.device == "auto" else int(CONFIG.device == "cuda")
    )


def doubling(first):
    """Minutes or megabytes of a cluster job, twice as much at each retry. On one machine nothing reads it."""
    return lambda wildcards, attempt: first * 2 ** (attempt - 1)


def guidance_inputs(wildcards):
    """L^ib of the pairs, or the statistics to compute it during training. Many trainings need neither."""
    guidance = (
        CONFIGS[wildcards.run].for_model(wildcards.model).guidance_of(wildcards.variant)
    )
    return {
        None: {},
        "current": {"statistics": statistics_of(wildcards)},
        "pretrained": {"bottleneck": bottleneck_of(wildcards)},
    }[guidance.bottleneck_of]


def guidance_options(wildcards, input):
    """The command line's side of :func:`guidance_inputs`."""
    return [f"--{name}={getattr(input, name)}" for name in guidance_inputs(wildcards)]


def each(option, files):
    """An option that is given once for each file."""
    return [f"--{option}={file}" for file in files]
