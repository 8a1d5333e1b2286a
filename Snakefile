# The benchmark as a graph: data → classifier → L^ib → guided network, control and shams → maps → scores → tables and claims.
# `snakemake --cores all` makes everything, `snakemake table3` one table. `snakemake --list-rules` lists the targets.
import os
import sys
from snakemake.benchmark import BenchmarkTimer
from snakemake.utils import min_version

min_version("9.27")


# The first page of `snakemake --report`.
report: "workflow/report/workflow.rst"


# The default, if the command line names no config. Otherwise Snakemake would merge the two, key by key. The targets `study` and
# `sensitivity` have a config of their own on top of it. A cluster's jobs read the target from the environment.
if "models" not in config:
    chosen = [target for target in ("study", "sensitivity") if target in sys.argv]
    if len(chosen) > 1:
        sys.exit(
            "study and sensitivity have different configs: run one after the other"
        )
    if chosen:
        os.environ.update(IBSGL_TARGET=chosen[0])
    TARGET = os.getenv("IBSGL_TARGET")

    configfile: "config/shapes.yaml"

    if TARGET:

        configfile: f"config/{TARGET}.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        TABLES,
        FIGURES,
        CLAIMS,
        REPORT,
        METRICS,
        AGREEMENT,


# One process beside the jobs logs to MLflow, from the records that they write; see ibsgl/tracking.
onstart:
    # Only a dry run beside this one can still hold the lock, and not for long.
    RUNNING.acquire(timeout=60)
    # Snakemake would delete what is made from such a file, and make it again.
    if workflow.executor_plugin.name != "touch" and (
        ahead := files.of_the_future(RESULTS)
    ):
        sys.exit(
            f"{ahead} has a date in the future, so all that is made from it would be made again. Delete it; or if it is right, "
            f"run: find {RESULTS} -newermt now -exec touch {{}} + && snakemake --touch --cores 1, with the same config"
        )
    configuration.record_passes(CONFIG)
    if workflow.executor_plugin.name == "slurm":
        if leftovers := slurm.cancel_leftovers():
            logger.info(
                f"Cancelled what an earlier run left in the queue: {', '.join(leftovers)}"
            )
    if workflow.executor_plugin.name == "local":
        # A job ends with this process.
        os.environ[lifetime.VARIABLE] = str(os.getpid())
        disk = doctor.guarded("disk", lambda: doctor.check_disk(CONFIG))
        if disk.state == "problem":
            logger.warning(f"{disk.found}. {disk.advice.capitalize()}")
        # On a cluster the jobs' machines have GPUs, and this one may have none.
        wanted = any(
            job.resources.get("gpu") for job in workflow.dag.needrun_jobs()
        )
        if CONFIG.device == "cuda" and wanted and not devices.available():
            sys.exit(
                "config: device: torch finds no CUDA GPU here; take auto or cpu"
            )
        # Snakemake 9.27 limits how many jobs start in a second. For that its scheduler wakes once a second for every job that
        # has ended, which takes half a core after 150 jobs. Here the cores limit the jobs.
        workflow.scheduler.job_rate_limiter = None
        # On a cluster the time left depends on its queue.
        limit = workflow.global_resources.get("gpu").value if gpus() else None
        logger.addHandler(
            TimeLeft(workflow.dag, logger, workflow.cores, limit, CONFIG.threads)
        )
        # It takes as long as two jobs need to start by themselves. GPUs cannot be used in a copy of a process that has used one.
        # With several threads the libraries start some, and a copy has none.
        alone = min(CONFIG.threads, workflow.cores) == 1
        if not gpus() and alone and len(list(workflow.dag.needrun_jobs())) > 4:
            warm.start()
            warm.measured(BenchmarkTimer)
    TRACKER.start()


onsuccess:
    TRACKER.finish("FINISHED")


onerror:
    # A job writes its reason to the disk too.
    if said := files.full_disk(RESULTS):
        logger.error(said)
    TRACKER.finish("FAILED")
