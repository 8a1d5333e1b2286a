"""The time left of a graph whose jobs have known durations, and the events of Snakemake that lead to a line."""

import logging
from types import SimpleNamespace

import pytest

from ibsgl import progress
from ibsgl.progress import TimeLeft, in_words, job_seconds


class Dag:
    """What is used of Snakemake's graph. Each job needs the jobs that are named."""

    def __init__(self, folder):
        self.folder, self.jobs, self.needs = folder, [], {}

    def add(self, rule, seconds=None, needs=(), heavy=False, benchmark=True, **wildcards):
        """A job, with the benchmark file of an earlier run if there are ``seconds``."""
        name = "_".join([rule, *map(str, wildcards.values())])
        job = SimpleNamespace(
            rule=SimpleNamespace(name=rule, resources={"gpu": 0} if heavy else {}),
            benchmark=str(self.folder / f"{name}.tsv") if benchmark else None,
            wildcards_dict=wildcards,
        )
        job = type("Job", (SimpleNamespace,), {"__hash__": object.__hash__, "__eq__": object.__eq__})(**vars(job))
        self.jobs.append(job)
        self.needs[job] = list(needs)
        if seconds is not None:
            self.measure(job, seconds)
        return job

    def measure(self, job, seconds):
        with open(job.benchmark, "w") as file:
            file.write(f"s\th:m:s\tcpu_time\n{seconds}\t0:00:01\t1.0\n")

    def jobid(self, job):
        return self.jobs.index(job)

    def needrun_jobs(self):
        return iter(self.jobs)

    def job_dependencies(self, job):
        return self.needs[job]


@pytest.fixture
def dag(tmp_path):
    return Dag(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """The time, which a test moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def left(dag, **arguments):
    return TimeLeft(dag, logging.getLogger("none"), **{"cores": 1} | arguments).seconds_left()


def test_nothing_to_estimate_from(dag):
    dag.add("train")
    assert left(dag) == (None, False)


def test_work_is_divided_by_the_cores_and_no_chain_of_jobs_is_shorter(dag):
    first = dag.add("train", 100, replicate=0)
    dag.add("train", 60, replicate=1)
    dag.add("score", 20, [first])
    dag.add("all", benchmark=False)
    # Jobs of one rule are expected to take as long as each did.
    assert left(dag) == (180, True)
    assert left(dag, cores=2) == (120, True)
    assert left(dag, cores=64) == (120, True)


def test_jobs_on_a_gpu_wait_for_one_another_and_threads_take_cores(dag):
    for replicate in range(4):
        dag.add("train", 50, heavy=True, replicate=replicate)
    assert left(dag, cores=8, gpus=1) == (200, True)
    assert left(dag, cores=8, gpus=2) == (100, True)
    assert left(dag, cores=8) == (50, True)
    assert left(dag, cores=8, threads=8) == (200, True)
    assert left(dag, cores=2, threads=8) == (200, True)


def test_a_job_that_has_not_run_takes_as_long_as_its_kind_else_as_its_rule(dag):
    dag.add("maps", 100, method="rise", replicate=0)
    dag.add("maps", 10, method="gradcam", replicate=0)
    dag.add("maps", None, method="rise", replicate=1)
    assert left(dag) == (210, True)
    dag.add("maps", None, method="score_cam", replicate=0)
    assert left(dag) == (265, True)
    dag.add("figure")
    assert left(dag) == (265, False)


def record(event, **facts):
    return logging.makeLogRecord({"event": event, "msg": None, **facts})


def test_lines_after_finished_jobs(dag, clock, caplog):
    caplog.set_level(logging.INFO)
    for replicate in range(3):
        dag.add("train", replicate=replicate)
    handler = TimeLeft(dag, logging.getLogger("run"), cores=1)
    handler.emit(record("job_info", jobid=0))
    handler.emit(record("progress", done=0, total=3))
    assert caplog.messages == []
    clock.seconds += 120
    dag.measure(dag.jobs[0], 120)
    handler.emit(record("job_finished", job_id=0))
    handler.emit(record("progress", done=1, total=3))
    # Of a running job only the rest is left.
    handler.emit(record("job_info", jobid=1))
    clock.seconds += 30
    handler.emit(record("progress", done=1, total=3))
    dag.measure(dag.jobs[1], 40)
    handler.emit(record("job_finished", job_id=1))
    handler.emit(record("progress", done=2, total=3))
    dag.add("figure")
    handler.jobs[3] = dag.jobs[3]
    handler.emit(record("progress", done=2, total=4))
    for number in (2, 3):
        handler.emit(record("job_finished", job_id=number))
    handler.emit(record("progress", done=4, total=4))
    assert caplog.messages == [
        "ibsgl: 1 of 3 jobs, 2 min so far, about 4 min left",
        "ibsgl: 1 of 3 jobs, 2 min so far, about 4 min left",
        "ibsgl: 2 of 3 jobs, 2 min so far, about 80 s left",
        "ibsgl: 2 of 4 jobs, 2 min so far, at least 80 s left",
    ]


def test_an_error_does_not_reach_the_workflow(dag, monkeypatch):
    handled = []
    monkeypatch.setattr(TimeLeft, "handleError", lambda self, record: handled.append(record))
    TimeLeft(dag, logging.getLogger("none"), 1).emit(record("job_finished", job_id=5))
    assert len(handled) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.6, "5 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (86400, "24.0 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("content", ["", "x\n1\n", "s\n-\n", "s\n"])
def test_a_benchmark_file_that_is_not_complete(tmp_path, content):
    (tmp_path / "a.tsv").write_text(content)
    assert job_seconds(str(tmp_path / "a.tsv")) is None
    assert job_seconds(str(tmp_path / "gone.tsv")) is None
