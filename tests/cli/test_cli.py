"""Every step can be run by hand: its help, its errors in one line, and files that are whole or not there."""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import typer.main
from typer.testing import CliRunner

from ibsgl import cli, config
from ibsgl.cli.results import write_evaluation_records
from ibsgl.config.steps import STEPS, step_of
from ibsgl.provenance import read_records

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "configs" / "tiny.yaml"
COMMANDS = typer.main.get_command(cli.app).commands
# Shell lines of the rules, by step.
SHELL = {
    match[1]: "".join(re.findall(r'"([^"]*)"', match[0]))
    for rules in sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    for match in re.finditer(r'"ibsgl (\w+) [^"]*"(?:\s+"[^"]*")*', rules.read_text())
}


def ibsgl(*arguments):
    """Exit status and output of ``ibsgl …``; an exception that the console script does not know is a failure."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def error_of(*arguments):
    """The one line after the usage with which a wrong call ends."""
    code, output = ibsgl(*arguments)
    assert code == 2
    *usage, empty, error = output.splitlines()
    assert usage[0].startswith("Usage:")
    assert empty == ""
    return error


@pytest.fixture
def script(monkeypatch):
    """What the console script says at its end; given to sys.exit, it is printed and the status is 1."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ibsgl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    return run


def test_version_is_the_installed_one_before_any_command():
    expected = (0, f"ibsgl {version('ibsgl')}\n")
    assert ibsgl("--version") == expected
    assert ibsgl("--version", "no-such-command") == expected


def test_help_lists_every_step_of_the_workflow():
    code, output = ibsgl("--help")
    assert code == 0
    assert len(SHELL) == 18
    for step in SHELL:
        assert re.search(rf"^  {step}  +\S", output, re.M), step


@pytest.mark.parametrize("step", COMMANDS)
def test_every_step_explains_itself_and_its_options(step):
    code, output = ibsgl(step, "--help")
    assert code == 0
    assert output.startswith("Usage: ")
    assert (COMMANDS[step].help or "").splitlines()[0].split(":")[0] in " ".join(output.split())
    for parameter in COMMANDS[step].params:
        assert parameter.help, (step, parameter.name)


@pytest.mark.parametrize("step", SHELL)
def test_rules_call_steps_with_options_that_they_have(step):
    known = {option for parameter in COMMANDS[step].params for option in parameter.opts}
    required = {parameter.opts[0] for parameter in COMMANDS[step].params if parameter.required}
    used = set(re.findall(r"--[a-z-]+", SHELL[step]))
    assert used <= known
    # These come from a param that lists the files.
    assert required - used <= {"--weights", "--maps", "--evaluation", "--alternative", "--mirror", "--metric"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "not readable as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "this is a section with keys of its own (it is [])"),
        ('{"seed": "x"}', "seed: Input should be a valid integer"),
        ('{"seed": 0, "data": {"sise": 3}}', "data.sise: there is no such key where data.source is shapes"),
        (
            '{"seed": 0, "data": {"source": "shape"}}',
            "data.source: there is no source 'shape'; take one of ",
        ),
        ('{"seed": 0}', "data: this key is missing"),
        ("@gone.json", "[Errno 2] No such file or directory: 'gone.json'"),
    ],
)
def test_bad_settings_are_one_line(settings, message, tmp_path):
    error = error_of("data", "--settings", settings, "--out", tmp_path / "made")
    assert error.startswith("Error: Invalid value for --settings: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_settings_can_come_from_a_file(tmp_path):
    part = {"seed": 0, "data": {"trainval": 6, "test": 6, "further": 0, "size": 32}}
    (tmp_path / "settings.json").write_text(json.dumps(part))
    code, _ = ibsgl("data", "--settings", f"@{tmp_path / 'settings.json'}", "--out", tmp_path / "VOC2007")
    assert code == 0
    assert len(list((tmp_path / "VOC2007" / "JPEGImages").iterdir())) == 12


NETWORK = {"arch": "resnet_small", "image_size": 32, "multilabel": False}


def test_a_missing_file_is_one_line_naming_it(script, tmp_path):
    settings = json.dumps({"seed": 0, "network": NETWORK, "bottleneck": {}})
    out = ["--settings", settings, "--statistics", tmp_path / "statistics.pt", "--out", tmp_path / "out.pt"]
    message = script("bottleneck", "--index", "gone.parquet", "--root", "gone", "--weights", "gone.pt", *out)
    assert message == "ibsgl: error: there is no file gone.parquet"
    step = {"seed": 0, "data": {"source": "voc"}}
    message = script("index", "--root", "gone", "--settings", json.dumps(step), "--out", tmp_path / "out.parquet")
    assert message.startswith("ibsgl: error: gone: no such folder")
    message = script("settings", "data", "--config", "gone.yaml")
    assert message == "ibsgl: error: there is no file gone.yaml"
    assert not list(tmp_path.iterdir())


def test_a_bad_config_is_one_line(script, tmp_path):
    (tmp_path / "bad.yaml").write_text(TINY.read_text().replace("seed: 0", "sead: 0"))
    assert script("settings", "data", "--config", tmp_path / "bad.yaml") == "ibsgl: error: sead: there is no such key"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


@pytest.mark.parametrize(
    ("step", "where"),
    [
        ("data", {}),
        ("classifier", {"model": "vgg", "replicate": "0"}),
        ("guide", {"model": "resnet", "replicate": "0", "variant": "guided"}),
        ("maps", {"model": "resnet", "replicate": "0", "variant": "pretrained", "method": "rise"}),
        ("evaluate", {"model": "resnet"}),
        ("tables", {"model": "resnet"}),
    ],
)
def test_settings_prints_what_the_rule_passes(step, where):
    code, output = ibsgl(
        "settings", step, "--config", TINY, *(f"--where={key}={value}" for key, value in where.items())
    )
    assert code == 0
    assert output == step_of(config.read([TINY]), step, **where).to_json() + "\n"
    # It is what --settings takes.
    assert STEPS[step].parse(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mops"], "STEP: there is no step 'mops'; take one of data, fetch, index, classifier,"),
        (["maps"], "--where: maps needs model=… and replicate=… and variant=… and method=…"),
        (
            ["maps", "--where=model=resnet", "--where=variant=guided", "--where=replicate=0", "--where=method"],
            "--where: maps needs method=…",
        ),
        (
            ["maps", "--where=model=resnet", "--where=variant=guided", "--where=replicate=0", "--where=method=mops"],
            "--where: there is no job for the maps of 'mops' on guided; there are: rise",
        ),
        (
            ["classifier", "--where=model=alexnet", "--where=replicate=0"],
            "--where: there is no model 'alexnet'; take one of resnet, vgg",
        ),
    ],
)
def test_settings_says_what_is_missing(arguments, message):
    assert error_of("settings", "--config", TINY, *arguments).startswith(f"Error: Invalid value for {message}")


def test_a_step_that_fails_leaves_no_file(script, tmp_path):
    """Maps of other images than the index's are refused before anything is written."""
    ibsgl(
        "data",
        "--settings",
        '{"seed": 0, "data": {"trainval": 12, "test": 6, "further": 0, "size": 32}}',
        "--out",
        tmp_path / "voc",
    )
    step = {"seed": 0, "data": {"held_out": 0.3, "further": 0}}
    assert (
        ibsgl("index", "--root", tmp_path / "voc", "--settings", json.dumps(step), "--out", tmp_path / "i.parquet")[0]
        == 0
    )
    import torch

    from ibsgl.attribution.storage import write_maps
    from ibsgl.data.index import Index
    from ibsgl.networks import build_network

    classes = len(Index.load(tmp_path / "i.parquet").class_names)
    weights = tmp_path / "pretrained" / "network.pt"
    weights.parent.mkdir()
    torch.save(build_network("resnet_small", classes, width=8).state_dict(), weights)
    index = ["--index", tmp_path / "i.parquet", "--root", tmp_path / "voc", "--weights", weights]
    network = NETWORK | {"options": {"width": 8}}
    settings = json.dumps({"seed": 0, "network": network, "bottleneck": {"steps": 1, "samples": 1}})
    files = ["--statistics", tmp_path / "statistics.pt"]
    assert ibsgl("bottleneck", *index, "--settings", settings, *files, "--out", tmp_path / "bottleneck.pt")[0] == 0
    maps = tmp_path / "pretrained" / "maps" / "rise" / "0.parquet"
    maps.parent.mkdir(parents=True)
    pairs = pd.DataFrame({"image_id": ["x"], "target": [0]})
    rise = SimpleNamespace(label="RISE")
    write_maps(maps, iter([(pairs, {"rise": torch.zeros(1, 32, 32)})]), {"rise": rise}, 32, {"seed": 0})
    settings = {"seed": 0, "network": network, "methods": {"pretrained": {"gradient": {}}}, "metrics": {}, "shards": 1}
    settings |= {"deletion": {"points": 2, "repeats": 1}, "r": 0.35, "cross_entropy": "distribution"}
    message = script(
        *("evaluate", "--model", "m", "--replicate", 0, "--settings", json.dumps(settings), *index, "--maps", maps),
        *(*files, "--bottleneck", tmp_path / "bottleneck.pt", "--out", tmp_path / "evaluation" / "0"),
    )
    assert message == f"ibsgl: error: {maps}: the maps do not belong to this index; delete the file and run again"
    assert not list(tmp_path.glob("evaluation/*/*"))


@pytest.mark.parametrize("name", ["claims", "sensitivity"])
def test_an_answer_becomes_a_page_of_the_documentation(tmp_path, name):
    settings = step_of(config.read([ROOT / "tests" / "configs" / "minimal.yaml"]), name).to_json()
    (tmp_path / f"{name}.csv").write_text("a\n1\n")
    (tmp_path / f"{name}.md").write_text("# Title\n\nText with ≥.\n")
    page = tmp_path / "pages" / "minimal.md"
    code, output = ibsgl("measured", "--table", tmp_path / f"{name}.csv", "--settings", settings, "--out", page)
    assert code == 0, output
    lines = page.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("# Title: `minimal`", "Text with ≥.")
    assert lines[3] == f"SHA-256 of the config and of the code of the {name}: `{STEPS[name].parse(settings).digest()}`."
    assert page.with_suffix(".csv").read_text() == "a\n1\n"


def test_another_table_is_no_answer(tmp_path):
    message = error_of(
        "measured", "--table", tmp_path / "figure4.csv", "--settings", "{}", "--out", tmp_path / "page.md"
    )
    assert message.endswith("figure4.csv is not one of claims.csv, sensitivity.csv")


@pytest.fixture
def voc(tmp_path):
    """A small data set and its index."""
    root = tmp_path / "voc"
    part = {"seed": 0, "data": {"trainval": 24, "test": 12, "further": 0, "size": 32}}
    assert ibsgl("data", "--settings", json.dumps(part), "--out", root)[0] == 0
    step = {"seed": 0, "data": {"held_out": 0.3, "further": 0}}
    index = tmp_path / "i.parquet"
    assert ibsgl("index", "--root", root, "--settings", json.dumps(step), "--out", index)[0] == 0
    return ["--index", index, "--root", root]


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_network_as_it_is_and_its_classification(tmp_path, voc, multilabel):
    import torch

    from ibsgl.data.index import Index
    from ibsgl.networks import build_network

    names = Index.load(voc[1]).class_names
    own = build_network("resnet_small", len(names), width=8).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in own.items()}}, tmp_path / "own.pt")
    spec = NETWORK | {"options": {"width": 8}, "multilabel": multilabel}
    network = spec | {"weights": str(tmp_path / "own.pt")}
    settings = json.dumps({"seed": 0, "replicate": 0, "network": network, "training": {"epochs": 0, "batch_size": 8}})
    pretrained, records = tmp_path / "pretrained.pt", tmp_path / "records"
    code, output = ibsgl(
        *("classifier", "--model", "m", *voc, "--settings", settings, "--out", pretrained, "--records", records)
    )
    assert code == 0
    saved = torch.load(pretrained, weights_only=True)
    assert all(torch.equal(saved[key], value) for key, value in own.items())
    (record,) = (json.loads(file.read_text()) for file in records.rglob("*.json"))
    means = {"test_map", "test_map11"}
    per_class = {f"test_{kind}/{name}" for kind in ("ap", "ap11") for name in names}
    assert set(record["metrics"]) == (means | per_class if multilabel else {"test_accuracy"})
    assert record["history"] == []
    assert output.startswith(f"m classifier 0: test {'map' if multilabel else 'accuracy'} 0.")


def test_torchrays_networks_need_vocs_classes(script, tmp_path, voc):
    network = {"arch": "resnet50", "source": "torchray", "weights": "gone.pt", "image_size": 32, "multilabel": True}
    settings = json.dumps({"seed": 0, "replicate": 0, "network": network, "training": {"epochs": 0}})
    message = script("classifier", "--model", "m", *voc, "--settings", settings, "--out", tmp_path / "w.pt")
    assert message.startswith("ibsgl: error: source: TorchRay's networks have VOC's 20 classes in alphabetical order")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": {"teacher": "foo"}}, "guidance.teacher: there is no such teacher; take one of "),
        ({"guidance": {}}, "suppression: this training needs this key"),
        ({"suppression": {}}, "suppression: this training has no such key"),
        (
            {"guidance": {"bottleneck_network": "current"}, "suppression": {}},
            "bottleneck: this training needs this key",
        ),
    ],
)
def test_guidance_and_its_control_have_their_own_settings(changes, message, tmp_path):
    settings = json.dumps({"seed": 0, "replicate": 0, "network": NETWORK, "training": {}} | changes)
    arguments = ["guide", "--model", "m", "--variant", "v", "--index", "i", "--root", "r", "--weights", "w"]
    assert message in error_of(*arguments, "--settings", settings, "--out", tmp_path / "out.pt")


def test_figure_2_needs_r(tmp_path):
    settings = json.dumps({"seed": 0, "number": 2, "networks": {"m": NETWORK}, "figures": {}})
    arguments = ["figure", "--index", "i", "--root", "r", "--weights", "m/guided.pt", "--settings", settings]
    assert "r: Figure 2 needs it for every network" in error_of(*arguments, "--out", tmp_path / "out.png")
    assert "figure4 draws Figure 4" in error_of("settings", "figure", "--config", TINY, "--where=number=4")


@pytest.mark.parametrize(("methods", "expected"), [(None, ["gradient", "rise"]), ({"gradient"}, ["gradient"])])
def test_each_method_on_each_variant_has_a_record_with_its_means(tmp_path, methods, expected):
    rows = [
        ("gradient", "guided", 1.0),
        ("gradient", "guided", 3.0),
        ("rise", "guided", 5.0),
        ("gradient", "pretrained", 9.0),
    ]
    scores = pd.DataFrame(rows, columns=["method", "scored_on", "ebpg"]).assign(variant="guided", replicate=1)
    facts = {"started": 1.0, "seconds": 2.0, "commit": "c0ffee", "seed": 0}
    metadata = {"settings": {f"guided/{method}": {"r": 1} for method in ("gradient", "rise")}, "replicates": {1: facts}}
    write_evaluation_records(tmp_path, SimpleNamespace(model="m", scores=scores, metadata=metadata), methods)
    records = {record["result_id"]: record for record in read_records(tmp_path)}
    assert sorted(records) == [f"m/1/guided/{method}" for method in expected]
    # A map that another variant scored is not counted.
    assert records["m/1/guided/gradient"]["metrics"] == {"ebpg": 2.0}
    assert records["m/1/guided/gradient"]["tags"] == {"commit": "c0ffee"}
