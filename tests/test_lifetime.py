"""A job ends with its run, also if the run was killed."""

import os
import subprocess
import sys
import time

import pytest

from ibsgl.lifetime import VARIABLE

WAIT = (
    "from ibsgl.lifetime import end_with_run; end_with_run(); print('waits', flush=True); import time; time.sleep(60)"
)
# It opens its files again and again, as if each time was the first.
WRITE = """
from contextlib import ExitStack
from ibsgl.files import written
from ibsgl.lifetime import end_with_run
end_with_run()
with ExitStack() as stack:
    files = [stack.enter_context(written(f"result{number}")) for number in range(50)]
    print("writes", flush=True)
    while True:
        for file in files:
            file.write_text("half")
"""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="only Linux can wait for another process like this"
)


def job(number, code=WAIT, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {VARIABLE: str(number)},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_job_ends_when_its_run_is_killed():
    run = subprocess.Popen(["sleep", "60"])
    child = job(run.pid)
    assert child.stdout.readline() == "waits\n"
    run.kill()
    # The run is a zombie now: nobody has asked for its exit status.
    assert child.wait(timeout=20) == 1
    run.wait()


def test_a_job_that_ends_leaves_no_file_that_it_was_writing(tmp_path):
    run = subprocess.Popen(["sleep", "60"])
    child = job(run.pid, WRITE, cwd=tmp_path)
    try:
        assert child.stdout.readline() == "writes\n"
        assert len(list(tmp_path.glob(".result*"))) == 50
        run.kill()
        assert child.wait(timeout=20) == 1
    finally:
        child.kill()
        run.kill()
        run.wait()
    assert not list(tmp_path.iterdir())


def test_a_job_ends_if_its_unfinished_file_cannot_be_deleted(tmp_path):
    code = """
import os, shutil, time
from pathlib import Path
from ibsgl.files import written
from ibsgl.lifetime import end_with_run
end_with_run()
with written("folder/result") as file:
    # Nothing can be deleted in what is no folder.
    shutil.rmtree("folder")
    Path("folder").touch()
    print("waits", flush=True)
    time.sleep(60)
"""
    run = subprocess.Popen(["sleep", "60"])
    child = job(run.pid, code, cwd=tmp_path)
    assert child.stdout.readline() == "waits\n"
    run.kill()
    assert child.wait(timeout=20) == 1
    run.wait()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_job_ends_if_its_log_cannot_be_written():
    run = subprocess.Popen(["sleep", "60"])
    with open("/dev/full", "w") as log:
        child = job(run.pid, stderr=log)
    assert child.stdout.readline() == "waits\n"
    run.kill()
    assert child.wait(timeout=20) == 1
    run.wait()


def test_a_job_of_a_run_that_has_ended_does_not_begin():
    run = subprocess.Popen(["true"])
    run.wait()
    assert job(run.pid).wait(timeout=20) == 1


def test_without_a_run_a_command_goes_on():
    child = job("")
    assert child.stdout.readline() == "waits\n"
    time.sleep(0.2)
    assert child.poll() is None
    child.kill()
    child.wait()
