# What every rule shares: the checked config, where results live, and how settings reach a job.
import atexit
import os
import sys
from pathlib import Path

from ibsgl import config as configuration
from ibsgl.provenance import source_digest
from ibsgl.tracking import Tracker

try:
    CONFIG = configuration.load(config)
except configuration.ConfigError as error:
    sys.exit(f"config: {error}")

# Jobs call `ibsgl`, which stands beside this interpreter whether or not its environment is activated.
os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"]]
)

RESULTS = f"results/{CONFIG.name}"
RECORDS = f"{RESULTS}/records"
ROOT = CONFIG.data_root
INDEX = f"{RESULTS}/index.parquet"
SHARDS = range(CONFIG.shards)
MODELS = list(CONFIG.models)
NETWORKS = configuration.NETWORKS
# Tables 1 and 3 are the first model's, 2 and 4 the second's.
NUMBERS = [number for number in (1, 2, 3, 4) if (number - 1) % 2 < len(MODELS)]

TABLES = [f"{RESULTS}/tables/table{number}.csv" for number in NUMBERS]
FIGURES = [f"{RESULTS}/figures/figure{number}.png" for number in (2, 3, 4)]
EFFECTS = [f"{RESULTS}/tables/guidance_{model}.csv" for model in MODELS]


TRACKER = Tracker(CONFIG.name, RECORDS, CONFIG.model_dump(mode="json"), " ".join(sys.argv[1:]))
if workflow.is_main_process:
    # Records of an earlier run wait where its tracking server was away; when nothing is to be done no handler is called.
    # What kind of call this is (a dry run, --lint, …) is known only at its end.
    atexit.register(lambda: workflow.executor_plugin is None or workflow.dryrun or TRACKER.close())


wildcard_constraints:
    model="|".join(MODELS),
    network="|".join(NETWORKS),
    method="[A-Za-z0-9_-]+",
    shard=r"\d+",
    number=r"\d+",


def settings(step):
    """The job's part of the config, as the params of its rule: a change re-runs the job, and only such a change does."""
    return lambda wildcards: CONFIG.settings(step, **dict(wildcards.items()))


def gpus(wildcards=None):
    """1 for a job that computes on a GPU, 0 for one on the CPU."""
    if CONFIG.device == "auto":
        import torch

        return int(torch.cuda.is_available())
    return int(CONFIG.device == "cuda")


def methods_on(network):
    """The methods that the tables need on ``network``."""
    return [method for where, method in CONFIG.cells() if where == network]


def maps_of(wildcards):
    """Every shard of every map that the scores of one network are made of."""
    return expand(
        f"{RESULTS}/{wildcards.model}/maps/{wildcards.network}/{{method}}/{{shard}}.npz",
        method=methods_on(wildcards.network),
        shard=SHARDS,
    )


def scores_of(wildcards):
    """The score files behind a table."""
    model = MODELS[(int(wildcards.number) - 1) % 2]
    return expand(f"{RESULTS}/{model}/scores/{{network}}.parquet", network=NETWORKS)
