"""A killed Snakemake leaves no job behind that would later replace a result."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from workspaces import SNAKEMAKE, configured, environment, workspace


def commands_in(folder):
    """The command lines of all processes that work in ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [command for command in found if command]


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="processes are found by /proc, which only Linux has")
def test_jobs_end_when_only_snakemake_is_killed(tmp_path):
    folder = workspace(tmp_path / "clone").resolve()
    config = configured(folder, "long", classifier__epochs=10000)
    command = [SNAKEMAKE, "--configfile", config, "--cores", "2"]
    with (folder / "output").open("wb") as output:
        run = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)
    training = folder / "results" / "minimal" / "resnet" / "0" / "pretrained" / "network.checkpoint"
    try:
        assert wait_until(training.exists, 180), (folder / "output").read_text()
        assert any("ibsgl classifier" in each for each in commands_in(folder))
    finally:
        run.kill()
        run.wait()
    jobs = "ibsgl data", "ibsgl index", "ibsgl classifier", "ibsgl.warm"
    ended = wait_until(lambda: not any(job in each for job in jobs for each in commands_in(folder)), 20)
    left = commands_in(folder)
    subprocess.run(["pkill", "-f", "ibsgl classifier --model resnet .*10000"], check=False)
    assert ended, left
    assert not list(folder.rglob(".network.*.checkpoint"))
