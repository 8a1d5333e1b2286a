"""Each check on a machine, a config or a store that is right, and on broken ones: a line with what to do, and no traceback."""

import io
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from ibsgl import cli, config, doctor, provenance
from ibsgl.doctor import Check
from ibsgl.networks.registry import NetworkSettings

ROOT = Path(__file__).parents[1]
MINIMAL = ROOT / "tests" / "configs" / "minimal.yaml"
NAMES = ["python", "packages", "code", "config", "device", "cores", "disk", "data", "weights", "mlflow", "records"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory, without the variables of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "IBSGL_GPU", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def minimal(**changes):
    """tests/configs/minimal.yaml with other sections."""
    return config.load(yaml.safe_load(MINIMAL.read_text()) | changes, data=False)


def run(*arguments):
    result = CliRunner().invoke(cli.app, ["doctor", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_line_for_each_check_and_status_0_without_problems():
    code, output = run("--config", MINIMAL)
    assert code == 0, output
    *lines, summary = output.splitlines()
    assert [line[9:].split()[0] for line in lines] == NAMES
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert re.fullmatch(r"0 problems, \d notes?", summary)
    assert "\x1b" not in output
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "there is no file my.yaml"),
        ("a: [", "my.yaml: not readable as YAML"),
        ("- 1", "my.yaml: a config is a list of keys and values"),
        (b"\xff\xfe\x00", "my.yaml: byte 0 is not UTF-8"),
        (
            "name: x\nsead: 1\nmodels: {}\nmethods: {}\n",
            "sead: there is no such key (and 1 more problems). Correct my.yaml",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_a_problem_and_the_other_checks_still_run(text, found):
    if text is not None:
        Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, output = run("--config", "my.yaml")
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("problem")]
    assert found in line
    assert "\nok       mlflow" in output


def test_everything_broken_at_once_is_a_line_each(monkeypatch):
    def broken(*_):
        raise RuntimeError("first line\nsecond line")

    for name in ("python", "packages", "code", "device", "cores", "disk", "data", "weights", "mlflow", "records"):
        monkeypatch.setattr(doctor, f"check_{name}", broken)
    code, output = run("--config", MINIMAL)
    assert code == 1
    assert output.count("problem") == 11
    assert output.count("this check failed (RuntimeError: first line second line)") == 10


def test_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, output = run("--config", MINIMAL)
    assert code == 1
    assert "problem  device    this check failed (ModuleNotFoundError" in output


def test_packages_that_are_missing_or_too_old(monkeypatch):
    needed = ["torch>=999", "no-such-package>=1", 'another; extra == "dev"', "numpy"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    check = doctor.check_packages()
    assert check.state == "problem"
    assert check.found == f"torch is {metadata.version('torch')}, needed is >=999; no-such-package>=1 is not installed"
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=99"})
    assert (doctor.check_python().state, doctor.check_python().advice) == ("problem", "install Python >=99")


@pytest.mark.parametrize(
    ("commit", "state", "found"),
    [
        (("a" * 40, False), "ok", "commit aaaaaaaaaaaa, nothing changed"),
        (("a" * 40, True), "note", "commit aaaaaaaaaaaa with changed or new files"),
        (("unknown", True), "note", "no git commit"),
    ],
)
def test_the_commit(monkeypatch, commit, state, found):
    monkeypatch.setattr(provenance, "own_commit", lambda: commit)
    assert (doctor.check_code().state, doctor.check_code().found) == (state, found)


def pretend(monkeypatch, cards, bf16=True):
    """torch finds this many GPUs."""
    facts = SimpleNamespace(name="H100", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr("shutil.which", lambda name: None)


@pytest.mark.parametrize(
    ("cards", "wanted", "override", "state", "found"),
    [
        (0, "auto", None, "ok", "torch finds no GPU"),
        (0, "auto", "0", "ok", "torch finds no GPU"),
        (0, "cuda", None, "problem", "device: cuda in the config needs a GPU"),
        (0, "auto", "1", "problem", "IBSGL_GPU=1 needs a GPU"),
        (1, "auto", None, "ok", "GPU: 1 × H100 (80 GB, bf16)"),
        (2, "auto", None, "note", "GPU: 2 × H100 (80 GB, bf16)"),
        (1, "auto", "0", "note", "CPU, because of IBSGL_GPU=0; GPUs here: 1 × H100 (80 GB, bf16)"),
        (1, "cpu", "1", "note", "CPU, because of device: cpu in the config"),
        (1, "auto", "yes", "problem", "IBSGL_GPU is 'yes'"),
    ],
)
def test_the_device(monkeypatch, cards, wanted, override, state, found):
    pretend(monkeypatch, cards)
    if override is not None:
        monkeypatch.setenv("IBSGL_GPU", override)
    check = doctor.check_device(wanted)
    assert check.state == state
    assert found in check.found


def test_an_old_gpu_and_a_torch_without_cuda(monkeypatch):
    pretend(monkeypatch, 1, bf16=False)
    assert (doctor.check_device().state, doctor.check_device().found) == ("note", "GPU: 1 × H100 (80 GB, no bf16)")
    pretend(monkeypatch, 0)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    assert doctor.check_device().found.endswith("torch finds no GPU (nvidia-smi is installed)")


def test_more_threads_than_cores(monkeypatch):
    assert doctor.check_cores(1).state == "ok"
    assert doctor.check_cores(10**6).state == "note"


def test_the_disk(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2e9))
    check = doctor.check_disk(minimal())
    assert check.state == "ok"
    assert re.search(r"^2\.0 GB free in .*; the run needs at most 0\.0 GB more$", check.found)
    assert doctor.check_disk(None).found.endswith("how much the run needs is not known")
    # What the results take already is not needed again.
    monkeypatch.setattr(doctor, "_needed_bytes", lambda config: 3e9)
    assert doctor.check_disk(minimal()).state == "problem"
    monkeypatch.setattr(doctor, "_folder_size", lambda folder: 2e9)
    assert doctor.check_disk(minimal()).state == "ok"


def test_the_disk_of_data_that_cannot_be_counted():
    uncounted = minimal(data={"source": "voc", "root": "voc"})
    assert doctor.check_disk(uncounted).found.endswith("how much the run needs is not known")


def download(mirrors=("https://example.org/",)):
    described = [{"name": f"{name}.tar", "md5": "0" * 32, "bytes": 3_000_000} for name in "ab"]
    options = {"mirrors": list(mirrors), "folder": "kept", "archives": described, "images": {"trainval": 2, "test": 1}}
    return minimal(data={"source": "voc", "root": "voc", "download": options})


def test_data_that_is_there_generated_or_missing(folder):
    check = doctor.check_data(minimal())
    assert (check.state, check.found) == ("ok", "results/minimal/data/VOCdevkit/VOC2007 will be generated")
    own = minimal(data={"source": "voc", "root": "voc"})
    assert (doctor.check_data(own).state, doctor.check_data(own).found) == (
        "problem",
        "data.root: voc is empty or not there",
    )
    (folder / "voc").mkdir()
    assert doctor.check_data(own).state == "problem"
    (folder / "voc" / "x").touch()
    assert (doctor.check_data(own).state, doctor.check_data(own).found) == ("ok", "voc is there")


def test_data_to_be_downloaded(folder):
    check = doctor.check_data(download())
    assert (check.state, check.found) == ("note", "voc is not there; 6 MB will be downloaded")
    (folder / "kept").mkdir()
    (folder / "kept" / "a.tar.part").write_bytes(bytes(1_000_000))
    assert doctor.check_data(download()).found == "voc is not there; 5 MB will be downloaded"
    (folder / "kept" / "a.tar").write_bytes(bytes(3_000_000))
    assert doctor.check_data(download()).found == "voc is not there; 3 MB will be downloaded"
    (folder / "mirror").mkdir()
    (folder / "mirror" / "b.tar").write_bytes(bytes(3_000_000))
    assert doctor.check_data(download(["mirror"])).state == "ok"
    (folder / "mirror" / "b.tar").write_bytes(b"x")
    check = doctor.check_data(download(["mirror"]))
    assert (check.state, check.found) == ("problem", "mirror/b.tar has 1 bytes instead of 3000000")


def test_weights(folder, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    small = NetworkSettings(arch="resnet_small")
    assert doctor.check_weights("models.a", small) == Check("weights", "ok", "models.a: resnet_small, no file needed")
    own = NetworkSettings(arch="resnet_small", weights="own.pt")
    check = doctor.check_weights("models.a", own)
    assert (check.state, check.found) == ("problem", "models.a.weights: there is no file 'own.pt'")
    (folder / "own.pt").touch()
    assert doctor.check_weights("models.a", own).state == "ok"
    named = NetworkSettings(arch="resnet50", weights="IMAGENET1K_V1")
    check = doctor.check_weights("models.a", named)
    assert check.state == "note"
    assert check.found == "models.a: torchvision's resnet50, IMAGENET1K_V1 (103 MB) will be downloaded"
    assert check.advice == "without a network, put resnet50-0676ba61.pth into hub/checkpoints"
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    (folder / "hub" / "checkpoints" / "resnet50-0676ba61.pth").touch()
    assert doctor.check_weights("models.a", named).state == "ok"


def test_weights_of_alternatives_are_checked_too():
    loaded = config.read([MINIMAL], data=False)
    other = {"models": {"resnet": {"weights": "gone.pt"}}}
    changed = minimal(alternatives={"own": other, "same": {"suppression": {"r": 0.2}}})
    assert list(doctor._networks(loaded)) == ["models.resnet"]
    assert list(doctor._networks(changed)) == ["models.resnet", "alternatives.own.models.resnet"]


@contextmanager
def server(status=200, seconds=0.0):
    """The address of an HTTP server that answers with ``status`` after ``seconds``."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            ended.wait(seconds)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://user:secret@127.0.0.1:{running.server_port}"
        finally:
            ended.set()
            running.shutdown()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("status", [200, 404])
def test_a_tracking_server(monkeypatch, no_proxy, status):
    monkeypatch.setattr(doctor, "PATIENCE", 60.0)
    with server(status) as uri:
        check = doctor.check_mlflow(uri)
    assert check.state == "ok"
    assert "secret" not in check.found


def test_a_tracking_server_that_refuses_or_is_gone(monkeypatch, no_proxy):
    monkeypatch.setattr(doctor, "PATIENCE", 60.0)
    with server(status=403) as uri:
        assert doctor.check_mlflow(uri).found.endswith("the server answers 403 Forbidden")
    check = doctor.check_mlflow(uri)
    assert check.state == "note"
    assert "ConnectionError" in check.found
    assert "secret" not in check.found


def test_a_tracking_server_that_does_not_answer_is_not_waited_for(monkeypatch, no_proxy):
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    with server(seconds=60) as uri:
        began = time.monotonic()
        check = doctor.check_mlflow(uri)
        assert time.monotonic() - began < 10
    assert check.state == "note"
    monkeypatch.setattr(doctor, "_server_fault", lambda uri: time.sleep(60))
    assert doctor.check_mlflow("http://example.org").found == "http://example.org: no answer in 0 s"


def test_a_store_in_a_file_or_folder(folder, monkeypatch):
    assert doctor.check_mlflow("sqlite:///new/mlflow.db").state == "ok"
    assert not (folder / "new").exists()
    (folder / "a.db").write_bytes(b"no database" * 100)
    assert doctor.check_mlflow("sqlite:///a.db").found == "sqlite:///a.db: file is not a database"
    assert doctor.check_mlflow("mlruns").state == "ok"
    assert doctor.check_mlflow("sqlite:///a.db/mlflow.db").found.endswith("a.db cannot be written to")
    assert doctor.check_mlflow("databricks://x").found == "databricks://x: databricks:// cannot be checked here"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert doctor.check_mlflow("sqlite:///a.db").found == "sqlite:///a.db: the file cannot be written to"


def test_a_database_server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert doctor.check_mlflow(f"postgresql+psycopg2://user:secret@127.0.0.1:{port}/x").state == "ok"
    check = doctor.check_mlflow(f"postgresql://user:secret@127.0.0.1:{port}/x")
    assert check.state == "note"
    assert "secret" not in check.found


def test_records_that_are_not_logged(folder):
    directory = Path("results", "minimal", "records")
    assert doctor.check_records(directory, "").state == "ok"
    record = {"kind": "table", "settings": {}, "metrics": {}, "tags": {}, "started": 0.0, "seconds": 1.0}
    provenance.write_record(directory, "table1", **record)
    code, output = run("--config", MINIMAL)
    assert code == 0
    assert (
        f"1 record is not logged to MLflow yet. The next run logs them; or run: ibsgl track --config {MINIMAL}"
        in output
    )
    (directory / "x.json").write_text("{")
    check = doctor.check_records(directory, "")
    assert check.state == "note"
    assert "is not a record of this benchmark" in check.found


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals(monkeypatch, variables, coloured):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, markup=False, highlight=False)
    assert not doctor.show([Check("disk", "problem", "full", "free space")], console)
    assert ("\x1b[1;31m" in output.getvalue()) == coloured
    assert "problem" in output.getvalue()
