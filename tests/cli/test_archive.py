"""``ibsgl archive`` and ``ibsgl verify`` as a person calls them."""

import sys
from pathlib import Path

import pytest
from finished_run import finished_run
from typer.testing import CliRunner

from ibsgl import cli
from ibsgl.provenance import digest_file


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    finished_run(tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")


def ibsgl(*arguments):
    result = CliRunner().invoke(cli.app, [*arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_sizes_are_listed_before_the_archive_is_written():
    code, output = ibsgl("archive", "--config", "minimal.yaml", "--dry-run")
    assert code == 0
    lines = {line.split()[0]: line for line in output.splitlines()}
    assert lines["records"].split()[1:3] == ["2", "files"]
    assert lines["weights"].endswith("left out; --with-weights: networks, L^ib maps and feature statistics")
    assert "left out; never packed" in lines["images"]
    assert not list(Path().rglob("*.zip"))
    code, written = ibsgl("archive", "--config", "minimal.yaml")
    assert code == 0
    assert written.startswith(output)
    assert written.splitlines()[-1].endswith(f"SHA-256 {digest_file('results/minimal.zip')}")


def test_options_choose_the_file_and_what_goes_in():
    code, output = ibsgl("archive", "--config", "minimal.yaml", "--out", "a/b.zip", "--with-weights", "--with-maps")
    assert code == 0
    assert "--with" not in output
    assert ibsgl("verify", "a/b.zip")[0] == 0


def test_verify_prints_the_commands_and_no_control_characters():
    claims = Path("results/minimal/claims/claims.csv")
    claims.write_text("claim,model\nlocal\x1b[2Jisation,resnet\n")
    ibsgl("archive", "--config", "minimal.yaml", "--out", "run.zip")
    code, output = ibsgl("verify", "run.zip")
    assert code == 0
    assert output.startswith(f"run.zip: every file is as it was packed, SHA-256 {digest_file('run.zip')}\n")
    assert "claims local?[2Jisation: snakemake claims --cores all" in output


def test_a_damaged_archive_ends_with_status_1():
    ibsgl("archive", "--config", "minimal.yaml", "--out", "run.zip")
    Path("run.zip").write_bytes(Path("run.zip").read_bytes().replace(b"localisation", b"localizatiom"))
    code, output = ibsgl("verify", "run.zip")
    assert code == 1
    assert output.startswith("'results/minimal/claims/claims.csv' is damaged (")


def test_errors_are_one_line(monkeypatch):
    Path("results/minimal/claims/claims.md").unlink()
    for arguments, message in (
        (
            ["archive", "--config", "minimal.yaml"],
            "there is no results/minimal/claims/claims.md; the run has not finished:",
        ),
        (["verify", "gone.zip"], "there is no file gone.zip"),
    ):
        monkeypatch.setattr(sys, "argv", ["ibsgl", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code.startswith(f"ibsgl: error: {message}")
