"""What a run says at its start, and what it never says."""

from workspaces import configured, snakemake, workspace

# A word that no other file of an environment has.
CREDENTIAL = "d41f0c-credential"
ADDRESS = f"http://{CREDENTIAL}-name:{CREDENTIAL}-word@127.0.0.1:9/x?token={CREDENTIAL}-token"


def test_a_full_disk_is_one_line(fork, tmp_path):
    folder = workspace(tmp_path / "clone")
    code, output = fork(snakemake, folder, ["--configfile", configured(folder, "minimal")], (), 1000)
    assert code == 1
    said = "the disk of this folder is full; free some space and call the same command again"
    assert output.splitlines()[-1] == said
    assert not (folder / ".snakemake" / "running.lock").exists()


def test_a_small_disk_is_said_at_the_start_and_no_file_has_a_password(fork, tmp_path):
    folder = workspace(tmp_path / "clone")
    config = configured(folder, "minimal")
    target = "results/minimal/resnet/0/pretrained/network.pt"
    variables = {"MLFLOW_TRACKING_URI": ADDRESS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    code, output = fork(snakemake, folder, [target, "--configfile", config, "--cores", "2"], variables, 1_200_000)
    assert code == 0, output
    assert f"0.0 GB free in {folder}; the run needs at most 0.0 GB more. Free space, or work on another disk" in output
    # The server is away, and it is named.
    assert "http://127.0.0.1:9/x" in output
    left = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert {"mlflow.log", "network.pt"} <= {file.name for file in left}
    (folder / "console").write_text(output)
    for file in [*left, folder / "console"]:
        assert CREDENTIAL.encode() not in file.read_bytes(), file
