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

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="only Linux can wait for another process like this"
)


def job(number):
    return subprocess.Popen(
        [sys.executable, "-c", WAIT], env=os.environ | {VARIABLE: str(number)}, stdout=subprocess.PIPE, text=True
    )


def test_a_job_ends_when_its_run_is_killed():
    run = subprocess.Popen(["sleep", "60"])
    child = job(run.pid)
    assert child.stdout.readline() == "waits\n"
    run.kill()
    # The run is a zombie now: nobody has asked for its exit status.
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
