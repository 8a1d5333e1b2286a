"""A job that a warm server starts is as one that starts by itself, and it ends with all that it belongs to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ibsgl import lifetime
from ibsgl.warm import OFF, VARIABLE
from ibsgl.warm import server as server_module

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="only Linux can wait for another process like this"
)

# A server that imports nothing before, and whose commands are Python code: what a command is makes no difference to it.
SERVER = """
import sys
from ibsgl import cli
from ibsgl.warm import server
server.prepare = lambda: None
cli.main = lambda: exec(sys.argv[1], {})
server.main()
"""
# The command ``ibsgl`` itself. Started by itself it takes the code for the name of a command.
CLIENT = "from ibsgl.warm.client import main; main()"
SERVED, NOT_SERVED = "print('served')", "No such command"


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def listens(name):
    return f"@{name}\n" in Path("/proc/net/unix").read_text()


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Server:
    """A server with the run that it belongs to."""

    def __init__(self, name):
        self.name, self.run = name, subprocess.Popen(["sleep", "100"])
        self.environment = {**os.environ, lifetime.VARIABLE: str(self.run.pid), VARIABLE: name}
        self.process = subprocess.Popen([sys.executable, "-P", "-c", SERVER, name], env=self.environment)
        assert wait_until(lambda: listens(name))

    def start(self, code, variables=(), **options):
        environment = self.environment | dict(variables)
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def call(self, code, variables=(), **options):
        client = self.start(code, variables, **options)
        output, errors = client.communicate(timeout=60)
        return client.returncode, output, errors

    def end(self):
        for process in (self.run, self.process):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def shared():
    server = Server(f"ibsgl-test-{os.getpid()}")
    yield server
    server.end()


@pytest.fixture
def server():
    server = Server(f"ibsgl-test-own-{os.getpid()}")
    yield server
    server.end()


@pytest.mark.parametrize(
    ("code", "status", "output", "error"),
    [
        (SERVED, 0, "served\n", ""),
        ("import sys; print('out'); sys.exit(3)", 3, "out\n", ""),
        ("import sys; sys.exit('the reason')", 1, "", "the reason\n"),
        ("import os; print('lost', flush=True); os.kill(os.getpid(), 9)", -signal.SIGKILL, "lost\n", ""),
    ],
)
def test_status_output_and_errors_are_the_commands(shared, code, status, output, error):
    assert shared.call(code) == (status, output, error)


def test_an_exception_is_a_traceback_and_status_1(shared):
    status, output, errors = shared.call("1 / 0")
    assert (status, output, errors.splitlines()[-1]) == (1, "", "ZeroDivisionError: division by zero")


def test_folder_arguments_environment_and_temporary_folder_are_the_commands(shared, tmp_path):
    code = (
        "import os, sys, tempfile; print(os.getcwd(), sys.argv[1:] != [], os.environ['SHLVL'], tempfile.gettempdir())"
    )
    found = shared.call(code, {"SHLVL": "77", "TMPDIR": str(tmp_path)}, cwd=tmp_path)
    assert found == (0, f"{tmp_path} True 77 {tmp_path}\n", "")


def test_a_name_shows_whose_copy_it_is(shared):
    client = shared.start("print(open('/proc/self/comm').read().strip())")
    assert client.communicate(timeout=60)[0] == f"ibsgl-{client.pid}\n"


@pytest.mark.parametrize(
    "variables", [{"OMP_NUM_THREADS": "7"}, {"NEW_VARIABLE": "1"}, {VARIABLE: OFF}, {VARIABLE: "ibsgl-nobody"}]
)
def test_a_command_with_another_environment_or_without_a_server_starts_by_itself(shared, variables):
    status, output, errors = shared.call(SERVED, variables)
    assert (status, output) == (2, "")
    assert NOT_SERVED in errors


@pytest.mark.parametrize("content", [b"x" * 12, b'{"a": 1}', b"[1]", b'{"executable": 1, "environment": 2}'])
def test_a_broken_request_does_not_end_the_server(shared, content):
    sent = len(content).to_bytes(8, "big") + content
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{shared.name}'); s.sendall({sent!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert shared.call(SERVED)[0] == 0


def waiting(server):
    """A command that waits, and the process that runs it."""
    client = server.start("import os, time; print(os.getpid(), flush=True); time.sleep(100)")
    job = int(client.stdout.readline())
    assert job != client.pid
    assert is_alive(job)
    return client, job


def test_a_job_ends_when_its_command_is_killed(shared):
    client, job = waiting(shared)
    client.kill()
    assert wait_until(lambda: not is_alive(job))
    assert "the command of this job was killed" in client.communicate(timeout=20)[1]


def test_a_job_ends_when_the_server_is_killed_and_the_command_says_so(server):
    client, job = waiting(server)
    server.process.kill()
    assert wait_until(lambda: not is_alive(job))
    errors = client.communicate(timeout=20)[1]
    assert client.returncode == 1
    assert "the process that starts the jobs of this run has ended" in errors


def test_server_and_jobs_end_when_the_run_is_killed(server):
    client, job = waiting(server)
    server.run.kill()
    assert server.process.wait(timeout=20) == 0
    assert wait_until(lambda: not is_alive(job))
    assert client.wait(timeout=20) == 1


def test_a_command_imports_nothing_slow_before_it_is_served(shared):
    code = (
        "import sys\nprint([m for m in ('torch', 'pandas', 'typer', 'ibsgl.cli') if m in sys.modules], file=sys.stderr)"
    )
    client = f"import sys, atexit; atexit.register(lambda: exec({code!r})); {CLIENT}"
    done = subprocess.run(
        [sys.executable, "-c", client, SERVED], env=shared.environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("served\n", "[]\n")


@pytest.mark.slow
def test_a_step_started_by_the_server_says_what_it_says_by_itself(monkeypatch, tmp_path):
    run = subprocess.Popen(["sleep", "100"])
    monkeypatch.chdir(tmp_path)
    # A file of a user that has the name of a library's module.
    (tmp_path / "profile.py").write_text("raise SystemExit('wrong module')")
    monkeypatch.setenv(lifetime.VARIABLE, str(run.pid))
    monkeypatch.setenv(VARIABLE, "")
    for variable in server_module.THREADS:
        monkeypatch.setenv(variable, "1")
    server_module.start()
    try:
        assert server_module.wait_until_ready()
        command = [Path(sys.executable).with_name("ibsgl"), "index", "--root", "r", "--out", "o", "--settings", "{}"]
        done = [
            subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
            for variables in ({}, {VARIABLE: OFF})
        ]
        assert (done[0].returncode, done[0].stderr) == (done[1].returncode, done[1].stderr)
        assert "Invalid value for --settings" in done[0].stderr
    finally:
        run.kill()
        run.wait()
    assert server_module._process.wait(timeout=20) == 0


@pytest.mark.slow
def test_what_the_server_imports_can_be_copied():
    """No thread that a copy would lack, no GPU, all that takes long to import, torch's compiler too, and the code's commit."""
    code = (
        "import sys, torch; from ibsgl import provenance; from ibsgl.warm import server; server.prepare(); "
        "print(server.threads() - server._SAFE, torch.cuda.is_initialized(), {'torch._dynamo', 'pandas', "
        "'ibsgl.training.guided'} <= sys.modules.keys(), provenance.own_commit.cache_info().currsize)"
    )
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set() False True 1\n"
