"""Some of the bad inputs, given to Snakemake: what it says, that no job but the index runs, and that nothing is lost."""

import pytest
from workspaces import configured, snakemake, workspace

from tests.bad_inputs.called import contents
from tests.bad_inputs.cases import CASES

MARKED = [case for case in CASES if case.snakemake]


@pytest.mark.parametrize("case", MARKED, ids=[case.what for case in MARKED])
def test_it_is_said_and_nothing_is_lost(fork, tmp_path, monkeypatch, case):
    folder = workspace(tmp_path / "clone")
    monkeypatch.chdir(folder)
    case.make()
    if case.kind == "data":
        data = {"source": "voc", "root": "my", "held_out": 0.4, "multilabel": True}
        configured(folder, "my", data=data)
    before = contents(folder)
    code, output = fork(snakemake, folder, ["--configfile", "my.yaml", "--cores", "1"])
    assert code != 0
    assert case.said in output
    assert "Traceback" not in output
    ran = {line.split()[1].rstrip(":") for line in output.splitlines() if line.startswith(("rule ", "localrule "))}
    assert ran == ({"index"} if case.kind == "data" else set())
    assert before.items() <= contents(folder).items()
