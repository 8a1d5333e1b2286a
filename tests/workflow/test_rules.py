"""The graph from scratch, a bad config, and the rules of the data: a download, and a user's folder that stays as it is."""

import hashlib
import json
import os
import re
import subprocess
import tarfile

import pytest
from workspaces import (
    EVERYTHING,
    SNAKEMAKE,
    TINY,
    configured,
    environment,
    snakemake,
    workspace,
)

from ibsgl.data.sources.shapes import generate


def test_from_scratch_every_job_runs_once(dry_run, tmp_path):
    folder = workspace(tmp_path / "clone")
    assert dry_run(folder, configured(folder, "minimal"))[0] == EVERYTHING


def test_table3_from_scratch_asks_for_the_first_network_and_no_figure(dry_run, tmp_path):
    folder = workspace(tmp_path / "clone")
    jobs, _ = dry_run(folder, configured(folder, "tiny", TINY), "table3")
    assert {"table3", "tables_resnet", "evaluate tiny/resnet/0/0"} <= jobs
    assert not [job for job in jobs if "vgg" in job or "figure" in job or "claims" in job]


def test_the_time_left_is_printed_once_it_can_be_estimated(fork, tmp_path):
    folder = workspace(tmp_path / "clone")
    command = ["results/minimal/index.parquet", "--configfile", configured(folder, "minimal"), "--forceall"]
    line = re.compile(r"ibsgl: 1 of 2 jobs, \d+ (s|min) so far, about \d+ (s|min) left")
    outputs = []
    for options in ([], [], ["--quiet", "progress"], ["--dry-run"]):
        code, output = fork(snakemake, folder, [*command, *options])
        assert code == 0, output
        outputs.append(output)
    # The index has never run before. The second time its duration is known.
    assert [len(line.findall(output)) for output in outputs] == [0, 1, 0, 0]
    assert [output.count("ibsgl: ") for output in outputs] == [0, 1, 0, 0]


def test_the_demo_makes_table1_and_figure3_in_few_jobs(dry_run, tmp_path):
    jobs, output = dry_run(workspace(tmp_path / "clone"), "config/demo.yaml")
    assert len(jobs) == 14
    assert not [job for job in jobs if job.startswith("maps ")]
    assert "results/demo/tables/table1.csv" in output
    assert "results/demo/figures/figure3.png" in output


@pytest.mark.parametrize("target", ["study", "sensitivity"])
def test_a_target_with_a_config_of_its_own_has_a_folder_of_its_own(fork, tmp_path, target):
    folder = workspace(tmp_path / "clone")
    code, output = fork(snakemake, folder, [target, "--dry-run", "--quiet", "rules"])
    assert code == 0, output
    code, output = fork(snakemake, folder, [target, "--dry-run"])
    assert f"results/{target}/resnet/2/guided/network.pt" in output
    assert "results/shapes/" not in output


def test_a_bad_config_stops_before_any_job_with_one_line_naming_the_key(tmp_path):
    folder = workspace(tmp_path / "clone")
    configfile = configured(folder, "bad", suppression__r=2)
    run = subprocess.run(
        [SNAKEMAKE, "--configfile", configfile],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    output = [
        line
        for line in (run.stdout + run.stderr).splitlines()
        if not line.startswith("Using workflow specific profile")
    ]
    assert output == ["config: suppression.r: Input should be less than or equal to 1 (it is 2.0)"]
    assert [path.name for path in (folder / "results").iterdir()] == ["published"]


@pytest.fixture(scope="module")
def to_download(fork, tmp_path_factory):
    """A folder without data, its config, and the data set's only mirror."""
    folder, mirror = workspace(tmp_path_factory.mktemp("download") / "clone"), tmp_path_factory.mktemp("a mirror")
    generate(mirror / "VOCdevkit" / "VOC2007", seed=0, trainval=24, test=6, size=32, progress=False)
    with tarfile.open(mirror / "set.tar", "w") as archive:
        archive.add(mirror / "VOCdevkit", "VOCdevkit")
    content = (mirror / "set.tar").read_bytes()
    described = {"name": "set.tar", "md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}
    data = {
        "source": "voc",
        "root": "kept/VOC2007",
        "held_out": 0.3,
        "download": {"mirrors": [str(mirror)], "archives": [described], "images": {"trainval": 24, "test": 6}},
    }
    configured(folder, "minimal", data=data)
    return folder, data


def test_a_download_is_in_the_graph_and_its_folder_is_not(dry_run, fork, to_download):
    folder, data = to_download
    assert dry_run(folder, "minimal.yaml")[0] == EVERYTHING
    index = "results/minimal/index.parquet"
    code, output = fork(snakemake, folder, [index, "--configfile", "minimal.yaml"])
    assert code == 0, output
    assert (folder / "kept" / "VOC2007" / "JPEGImages").is_dir()
    # The folder was not there when the first graph was made; that is no change, nor is another place to have it from.
    moved = data | {"download": data["download"] | {"mirrors": ["nowhere"], "folder": "elsewhere"}}
    assert dry_run(folder, configured(folder, "moved", data=moved))[0] == EVERYTHING - {"data", "index minimal"}
    # A file that has changed is, as long as the folder is there.
    image = next((folder / "kept" / "VOC2007" / "JPEGImages").iterdir())
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert dry_run(folder, "minimal.yaml", index)[0] == {"index minimal"}
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "kept" / "VOC2007").rename(folder / "kept" / "away")
    assert dry_run(folder, "minimal.yaml", index)[0] == set()


def test_forcing_a_download_leaves_the_users_folder_alone(fork, to_download, tmp_path):
    _, data = to_download
    folder = workspace(tmp_path / "clone")
    root = folder / "kept" / "VOC2007"
    root.mkdir(parents=True)
    (root / "mine").write_text("mine")
    configfile = configured(folder, "minimal", data=data)
    stamp = "results/minimal/data.json"
    code, output = fork(snakemake, folder, [stamp, "--configfile", configfile, "--forcerun", "data"])
    assert code == 0, output
    assert json.loads((folder / stamp).read_text())["archives"] == "taken as it is"
    assert (root / "mine").read_text() == "mine"
