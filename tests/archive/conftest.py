"""A finished run in miniature, and its archive."""

from pathlib import Path

import pytest
from finished_run import finished_run

from ibsgl import config
from ibsgl.archive import collect, write_archive


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The working directory of a finished run."""
    folder = tmp_path / "clone"
    finished_run(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def pack():
    """Pack the run in the working directory; returns the archive."""

    def pack(out="run.zip", **options):
        files = [Path("minimal.yaml")]
        members, _ = collect(config.read(files, data=False), files, **options)
        write_archive(Path(out), "minimal", members)
        return Path(out)

    return pack
