"""Records into a real SQLite store: completely, once each, and also after a server was away or a process was killed."""

import io
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from ibsgl import files, provenance, tracking
from ibsgl.tracking import Tracker, follower, ledger, pending_records
from ibsgl.tracking.follower import message
from ibsgl.tracking.invocation import Invocation

RESULT_IDS = [f"resnet/0/guided/m{i}" for i in range(6)]


@pytest.fixture(scope="module")
def two_followers(tmp_path_factory):
    """A fresh store's folder after two followers logged the same six records into it at once, as FAILED workflows.

    The other tests share the store, since creating its tables takes seconds, and differ by experiment.
    """
    folder = tmp_path_factory.mktemp("store")
    records = Path("results", "tiny", "records")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for result_id in RESULT_IDS:
            write(records, result_id)
        followers = [Tracker("two", records, {"name": "two"}) for _ in range(2)]
        for follower in followers:
            follower.start()
        said = io.StringIO()
        with redirect_stderr(said):
            for follower in followers:
                follower.finish("FAILED")
    return folder, said.getvalue()


@pytest.fixture
def store(two_followers):
    """URI of a store whose tables exist."""
    return f"sqlite:///{two_followers[0]}/mlflow.db"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def records(store, folder, monkeypatch):
    """A records folder that is logged to the shared store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return folder / "results" / "tiny" / "records"


@pytest.fixture
def away(monkeypatch):
    """A tracking server's address where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return address


def write(records, result_id="resnet/0/guided", started=1_700_000_000.0, kind="training", **changes):
    facts = {"settings": {"seed": 1}, "metrics": {"test_accuracy": 0.9}, "tags": {}, "seconds": 60.0}
    provenance.write_record(records, result_id, kind, started=started, **(facts | changes))


def runs(experiment, uri=None):
    """Every run of ``experiment``: (parents, children)."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or tracking.tracking_uri())
    found = client.get_experiment_by_name(experiment)
    every = client.search_runs([found.experiment_id]) if found else []
    parents = [run for run in every if run.data.tags.get("kind") == "invocation"]
    return parents, [run for run in every if run not in parents]


def log(name, records, **facts):
    invocation = Invocation(name, records, **facts)
    assert invocation.log(), invocation.error
    invocation.close("FINISHED")
    return invocation.logged


def test_a_record_becomes_a_run_with_all_that_it_says(records, folder):
    from mlflow import MlflowClient

    (folder / "tables").mkdir()
    (folder / "tables" / "table1.csv").write_text("a,b\n1,2\n")
    digest = "0123456789abcdef" * 4
    tags = {"commit": "c0ffee", "dirty": False, "device": "CPU", "versions": {"torch": "2.0"}, "data_digest": digest}
    write(
        records,
        settings={"seed": 3, "training": {"lr": 0.001, "schedule": [1, 2], "none": {}}, "long": "x" * 10_000},
        history=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}],
        metrics={"test_accuracy": 0.9, "L^ib": float("nan")},
        artifacts=["tables/table1.csv", "tables/removed.csv"],
        tags=tags,
    )
    assert log("whole", records, settings={"name": "whole", "models": {"a": 1}}, targets="table1") == 1
    (parent,), (run,) = runs("whole")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"name": "whole", "models.a": "1"}
    assert parent.data.tags["ibsgl.targets"] == "table1"

    assert run.info.run_name == run.data.tags["ibsgl.result_id"] == "resnet/0/guided"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_060_000)
    assert run.info.status == "FINISHED"
    assert run.data.params.pop("long") == "x" * 6000
    assert run.data.params == {
        "seed": "3",
        "training.lr": "0.001",
        "training.schedule": "[1, 2]",
        "training.none": "{}",
    }
    expected = {
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.source.name": "ibsgl",
        "mlflow.source.git.commit": "c0ffee",
        "git.dirty": "false",
        "kind": "training",
        "model": "resnet",
        "replicate": "0",
        "variant": "guided",
        "device": "CPU",
        "version.torch": "2.0",
        "data_digest": digest,
    }
    assert run.data.tags.items() >= expected.items()
    assert run.data.metrics["test_accuracy"] == 0.9
    assert run.data.metrics["L_ib"] != run.data.metrics["L_ib"]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "whole"
    assert data.dataset.digest == digest[:36]
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    (data,) = parent.inputs.dataset_inputs
    assert data.dataset.digest == digest[:36]

    client = MlflowClient(tracking.tracking_uri())
    epochs = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in epochs) == [(1, 2.0), (2, 1.5)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "tables")] == ["tables/table1.csv"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["config.yaml", "summary.html"]


def test_tables_are_shown_as_tables_and_the_parent_has_the_answer(records, folder):
    from mlflow import MlflowClient

    text = "Table 1\n\n| Metric | EBPG |\n|---|---|\n| Ours | 1.00 |\n"
    for name, content in (("table1.csv", "row,ebpg\nOurs,1\nRISE,not run\n"), ("table1.md", text), ("broken.csv", "")):
        (folder / name).write_text(content)
    settings = {"name": "answer", "data": {"source": "shapes"}, "models": {"resnet": {}}}
    write(
        records,
        "table1",
        kind="table",
        settings={"model": "resnet", "config": {"data": {"source": "shapes"}}},
        metrics={"guided.gradient.ebpg": 1.0, "pretrained.rise.ebpg": 2.0},
        artifacts=["table1.csv", "table1.md", "broken.csv"],
        tags={"data_digest": "d" * 64},
    )
    assert log("answer", records, settings=settings) == 1
    (parent,), (run,) = runs("answer")
    assert run.data.tags.items() >= {"kind": "table", "model": "resnet"}.items()
    assert not {"replicate", "variant", "method", "alternative"} & run.data.tags.keys()
    client = MlflowClient(tracking.tracking_uri())
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert "table1.json" in names
    assert "broken.json" not in names
    shown = json.loads(Path(client.download_artifacts(run.info.run_id, "table1.json", str(folder))).read_text())
    assert shown == {"columns": ["row", "ebpg"], "data": [["Ours", "1"], ["RISE", "not run"]]}

    assert parent.data.metrics == {"resnet.guided.ebpg": 1.0}
    assert "| Ours | 1.00 |" in parent.data.tags["mlflow.note.content"]
    for each in (parent, run):
        (data,) = each.inputs.dataset_inputs
        assert data.dataset.name == "shapes"


def test_a_summary_that_fails_loses_no_run(records, monkeypatch):
    def broken(*arguments):
        raise ValueError("no template\nat all")

    write(records)
    monkeypatch.setattr("ibsgl.summary.page", broken)
    invocation = Invocation("unsummed", records)
    assert invocation.log()
    invocation.close("FINISHED")
    outcome = invocation.outcome()
    assert (outcome["logged"], outcome["error"], outcome["warning"]) == (1, None, "no template at all")
    (parent,), (child,) = runs("unsummed")
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_an_alternatives_record_is_a_run_of_its_own(records):
    write(records)
    write(records.parent / "alternatives" / "mu_4" / "records", started=1_700_000_001.0)
    assert log("alternatives", records) == 2
    assert log("alternatives", records) == 0
    _, children = runs("alternatives")
    assert {run.info.run_name: run.data.tags.get("alternative") for run in children} == {
        "resnet/0/guided": None,
        "alternatives/mu_4/resnet/0/guided": "mu_4",
    }
    assert {run.data.tags["variant"] for run in children} == {"guided"}
    assert not any("ibsgl.superseded" in run.data.tags for run in children)


def test_a_record_is_logged_once_and_a_new_execution_supersedes_it(records):
    write(records)
    write(records, "vgg/0/guided")
    assert log("again", records) == 2
    assert log("again", records) == 0
    parents, children = runs("again")
    assert (len(parents), len(children)) == (1, 2)

    write(records, started=1_700_000_100.0)
    assert log("again", records) == 1
    parents, children = runs("again")
    assert (len(parents), len(children)) == (2, 3)
    superseded = [r.info.start_time for r in children if r.data.tags.get("ibsgl.superseded") == "true"]
    assert superseded == [1_700_000_000_000]
    assert {r.data.tags["ibsgl.result_id"] for r in children if "ibsgl.superseded" not in r.data.tags} == {
        "resnet/0/guided",
        "vgg/0/guided",
    }


def test_a_crash_before_the_ledger_is_written_repeats_one_run_which_supersedes_the_first(records, monkeypatch):
    write(records, "a")
    write(records, "b", started=1_700_000_001.0)
    written, calls = files.write_json, []

    def crash(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        written(path, content)

    monkeypatch.setattr(files, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        log("crash", records)
    monkeypatch.setattr(files, "write_json", written)
    assert log("crash", records) == 1
    _, children = runs("crash")
    assert sorted((r.info.run_name, r.data.tags.get("ibsgl.superseded", "")) for r in children) == [
        ("a", ""),
        ("b", ""),
        ("b", "true"),
    ]


def test_no_parent_without_a_record(records):
    invocation = Invocation("empty", records)
    assert invocation.log()
    assert (invocation.run, invocation.logged) == (None, 0)
    assert runs("empty") == ([], [])


def test_records_that_come_while_others_are_logged_are_counted_too(records, monkeypatch):
    write(records, "a")
    reads = []

    def second_comes_late(directory):
        if reads:
            write(records, "b")
        reads.append(directory)
        return pending_records(directory)

    monkeypatch.setattr("ibsgl.tracking.invocation.pending_records", second_comes_late)
    assert log("late", records) == 2


def test_server_away_keeps_the_records_for_the_next_run(records, away, store, monkeypatch, capsys):
    write(records)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    invocation = Invocation("away", records)
    assert not invocation.log()
    invocation.close("FINISHED")
    assert (invocation.run, invocation.logged) == (None, 0)
    said = message(records, invocation.outcome())
    assert said.startswith(f"MLflow: the tracking server at {away} did not answer; 1 record is kept in {records}")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert log("away", records) == 1
    # Another address is another ledger: that server still lacks the record.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    assert len(pending_records(records)) == 1


def test_a_store_that_keeps_its_client_waiting_holds_the_end_for_a_moment_only(records, monkeypatch, capsys):
    write(records)
    # It accepts the connection and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
        monkeypatch.setattr(follower, "PATIENCE", 1.0)
        tracker = Tracker("silent", records, {})
        tracker.start()
        started = time.monotonic()
        tracker.finish("FINISHED")
    assert time.monotonic() - started < 60
    assert "did not answer; 1 record is kept" in capsys.readouterr().err
    assert len(pending_records(records)) == 1


def test_a_slow_follower_that_makes_progress_is_waited_for(folder, monkeypatch, capsys):
    outcome = {"logged": 2, "pending": 0, "error": None, "experiment": "1", "warning": "disk full"}
    code = f"import sys, time; sys.stdin.read(); time.sleep(3); print({json.dumps(json.dumps(outcome))})"
    left = iter([["a", "b"], ["a"], [], *([["c"], []] * 50)])
    monkeypatch.setattr(follower, "pending_records", lambda directory: next(left))
    monkeypatch.setattr(follower, "PATIENCE", 1.0)
    tracker = Tracker("slow", folder / "records", {})
    tracker._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    tracker.finish("FINISHED")
    logged, warning = capsys.readouterr().err.splitlines()
    assert logged.startswith("MLflow: 2 runs logged to ")
    assert warning == "MLflow: the parent run has no complete summary (disk full)"


def test_two_followers_on_a_fresh_store_lose_and_repeat_nothing(two_followers, store, monkeypatch):
    folder, said = two_followers
    parents, children = runs("two", store)
    assert sorted(run.info.run_name for run in children) == RESULT_IDS
    assert not any("ibsgl.superseded" in run.data.tags for run in children)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {run.info.run_id for run in parents}
    assert {run.info.status for run in parents} == {"FAILED"}
    assert (
        "logged to sqlite:///mlflow.db; see them with: mlflow ui, then http://127.0.0.1:5000/#/experiments/1/runs"
        in said
    )
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert pending_records("results/tiny/records") == []


def test_after_a_sigkill_the_follower_logs_the_rest_and_ends_the_parent_as_killed(records):
    code = (
        "import os, sys, signal; from ibsgl.tracking import Tracker\n"
        "tracker = Tracker('killed', sys.argv[1], {}); tracker.start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    write(records)
    done = subprocess.run([sys.executable, "-c", code, str(records)], check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while not [run for run in runs("killed")[0] if run.info.status != "RUNNING"] and time.monotonic() < deadline:
        time.sleep(0.5)
    (parent,), (child,) = runs("killed")
    assert (parent.info.status, child.info.status) == ("KILLED", "FINISHED")


def test_a_workflow_without_new_records_says_nothing_and_imports_no_mlflow(folder, capfd):
    tracker = Tracker("quiet", folder / "results" / "quiet" / "records", {})
    tracker.close()
    tracker.start()
    tracker.finish("FINISHED")
    tracker.finish("FINISHED")
    assert capfd.readouterr().err == ""
    assert not (folder / "mlflow.db").exists()
    code = "import sys, ibsgl.tracking; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_closing_starts_a_follower_only_for_what_an_earlier_call_left(folder, monkeypatch):
    started = []
    start = Tracker.start
    monkeypatch.setattr(Tracker, "start", lambda self: (started.append(self), start(self)))
    ran = Tracker("left", folder / "records", {})
    ran.close()
    ran.start()
    ran.finish("FINISHED")
    write(folder / "records")
    ran.close()
    assert started == [ran]
    monkeypatch.setattr(Tracker, "start", lambda self: started.append(self))
    idle = Tracker("left", folder / "records", {})
    idle.close()
    assert started == [ran, idle]


def test_removing_the_database_starts_over(folder):
    records = folder / "records"
    write(records)
    (record,) = pending_records(records)
    files.write_json(ledger.ledger_file(records, ledger.DEFAULT_URI), {record["digest"]: "run"})
    (folder / "mlflow.db").touch()
    assert pending_records(records) == []
    (folder / "mlflow.db").unlink()
    assert pending_records(records) == [record]


def test_a_process_that_is_killed_with_a_new_database_leaves_no_ledger_of_the_old_one(folder, monkeypatch):
    records = folder / "records"
    write(records)
    (record,) = pending_records(records)
    files.write_json(ledger.ledger_file(records, ledger.DEFAULT_URI), {record["digest"]: "run"})

    def killed(_):
        (folder / "mlflow.db").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Invocation, "store", killed)
        with pytest.raises(KeyboardInterrupt):
            Invocation("left", records).log()
    assert pending_records(records) == [record]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"a', b"[]"])
def test_a_damaged_ledger_is_empty(folder, content):
    records = folder / "records"
    write(records)
    (folder / "mlflow.db").touch()
    file = ledger.ledger_file(records, ledger.DEFAULT_URI)
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        assert len(pending_records(records)) == 1


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        (None, "sqlite:///mlflow.db; see them with: mlflow ui, then http://127.0.0.1:5000/#/experiments/7/runs"),
        ("http://u:secret@host:5000/", "http://host:5000/; see them with: http://host:5000/#/experiments/7/runs"),
        (
            "sqlite:////d/m.db",
            "sqlite:////d/m.db; see them with: mlflow ui --backend-store-uri sqlite:////d/m.db, "
            "then http://127.0.0.1:5000/#/experiments/7/runs",
        ),
    ],
)
def test_message(uri, where, folder, monkeypatch):
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    records = Path("results/tiny/records")
    done = {"logged": 61, "pending": 0, "error": None, "experiment": "7"}
    assert message(records, done) == f"MLflow: 61 runs logged to {where}"
    assert message(records, done | {"logged": 0}) is None
    failed = message(records, done | {"logged": 3, "pending": 2, "error": "disk full"})
    assert failed.endswith(
        "failed (disk full); 2 records are kept in results/tiny/records and will be logged at the next run"
    )
    assert "secret" not in failed
    assert message(records, done | {"error": "no answer"}).endswith(
        "did not answer at the end of the run; all records are logged"
    )
