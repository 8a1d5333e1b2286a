"""A restart finds the SLURM jobs of the killed run, and no others; the real scheduler is in tests/slurm/run.sh."""

import os
import re
from pathlib import Path

import pytest
import yaml

from ibsgl import slurm

ROOT = Path(__file__).parents[1]
NAME = "ibsgl_01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Stand-ins of squeue, which prints a file, and of scancel, which takes lines out of it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    listed = tmp_path / "queue.txt"
    for name, script in {
        "squeue": f"cat {listed}",
        "scancel": f'for id in "$@"; do sed -i "/^$id|/d" {listed}; done; echo "$@" >> {tmp_path}/cancelled.txt',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return listed


def test_only_jobs_of_this_workflow_in_this_folder_are_cancelled(queue, tmp_path):
    others = [f"12|{NAME}|{tmp_path}/elsewhere", f"13|ibsgl_by_hand|{tmp_path}", f"14|{NAME[6:]}|{tmp_path}"]
    queue.write_text("\n".join([f"11|{NAME}|{tmp_path}", *others, f"15|{NAME}|{tmp_path}/"]) + "\n")
    assert slurm.cancel_leftovers() == ["11", "15"]
    assert queue.read_text().splitlines() == others
    assert (tmp_path / "cancelled.txt").read_text() == "11 15\n"


def test_with_an_empty_queue_nothing_is_cancelled(queue, tmp_path):
    queue.touch()
    assert slurm.cancel_leftovers() == []
    assert not (tmp_path / "cancelled.txt").exists()


def test_a_job_that_does_not_end_is_named(queue, tmp_path):
    queue.write_text(f"11|{NAME}|{tmp_path}\n")
    (tmp_path / "programs" / "scancel").write_text("#!/bin/sh\n")
    with pytest.raises(TimeoutError, match="do not end: 11;"):
        slurm.cancel_leftovers(patience=0)


def test_the_profile_gives_the_name_that_is_looked_for():
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text())
    assert slurm._NAME.fullmatch(f"{profile['slurm-jobname-prefix']}_{NAME.partition('_')[2]}")
    # A limit on gpu would hold for the cluster as a whole.
    assert "resources" not in profile


def test_every_job_that_is_sent_to_the_cluster_asks_for_memory_and_time():
    for rules in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for block in re.split(r"(?m)^ *rule ", rules.read_text())[1:]:
            if "shell:" in block and "localrule: True" not in block:
                assert re.search(r"mem_mb=doubling\(\d+\),\n *runtime=doubling\(\d+\),", block), block.split(":")[0]
