"""Every step can be run by hand: its help, its errors in one line, and files that are whole or not there."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import typer.main
from typer.testing import CliRunner

from ibsgl import cli, config
from ibsgl.config.steps import STEPS, step_of

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


def test_help_lists_every_step_of_the_workflow():
    code, output = ibsgl("--help")
    assert code == 0
    assert len(SHELL) == 15
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
    assert required - used <= {"--weights", "--maps", "--scores", "--curves", "--statistics", "--mirror"}


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
    part = {"seed": 0, "data": {"trainval": 6, "test": 6, "size": 32}}
    (tmp_path / "settings.json").write_text(json.dumps(part))
    code, _ = ibsgl("data", "--settings", f"@{tmp_path / 'settings.json'}", "--out", tmp_path / "VOC2007")
    assert code == 0
    assert len(list((tmp_path / "VOC2007" / "JPEGImages").iterdir())) == 12


NETWORK = {"arch": "resnet_small", "image_size": 32, "multilabel": False}


def test_a_missing_file_is_one_line_naming_it(script, tmp_path):
    out = ["--settings", json.dumps({"network": NETWORK}), "--out", tmp_path / "out.pt"]
    message = script("statistics", "--index", "gone.parquet", "--root", "gone", "--weights", "gone.pt", *out)
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
        ("classifier", {"model": "vgg"}),
        ("guide", {"model": "resnet", "variant": "guided"}),
        ("maps", {"model": "resnet", "variant": "pretrained", "group": "rise"}),
        ("table", {"number": "3"}),
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
        (["maps"], "--where: maps needs model=… and variant=… and group=…"),
        (
            ["maps", "--where=model=resnet", "--where=variant=guided", "--where=group"],
            "--where: maps needs group=…",
        ),
        (
            ["maps", "--where=model=resnet", "--where=variant=guided", "--where=group=mops"],
            "--where: there is no group 'mops' on guided; take one of",
        ),
        (["classifier", "--where=model=alexnet"], "--where: there is no model 'alexnet'; take one of resnet, vgg"),
    ],
)
def test_settings_says_what_is_missing(arguments, message):
    assert error_of("settings", "--config", TINY, *arguments).startswith(f"Error: Invalid value for {message}")


def test_a_step_that_fails_leaves_no_file(script, tmp_path):
    """Maps of other images than the index's are refused before anything is written."""
    ibsgl(
        "data",
        "--settings",
        '{"seed": 0, "data": {"trainval": 12, "test": 6, "size": 32}}',
        "--out",
        tmp_path / "voc",
    )
    step = {"seed": 0, "data": {"held_out": 0.3}}
    assert (
        ibsgl("index", "--root", tmp_path / "voc", "--settings", json.dumps(step), "--out", tmp_path / "i.parquet")[0]
        == 0
    )
    import torch

    from ibsgl.attribution.storage import write_maps
    from ibsgl.data.index import Index
    from ibsgl.networks import build_network

    classes = len(Index.load(tmp_path / "i.parquet").class_names)
    torch.save(build_network("resnet_small", classes, width=8).state_dict(), tmp_path / "w.pt")
    maps = tmp_path / "rise" / "0.parquet"
    maps.parent.mkdir()
    pairs = pd.DataFrame({"image_id": ["x"], "target": [0]})
    rise = SimpleNamespace(label="RISE")
    write_maps(maps, iter([(pairs, {"rise": torch.zeros(1, 32, 32)})]), {"rise": rise}, 32, {"seed": 0})
    settings = json.dumps({"network": NETWORK | {"options": {"width": 8}}, "metrics": {}, "shards": 1})
    message = script(
        *shlex.split("scores --model m --variant pretrained --settings"),
        settings,
        *("--index", tmp_path / "i.parquet", "--root", tmp_path / "voc", "--weights", tmp_path / "w.pt"),
        *("--maps", maps, "--out", tmp_path / "scores" / "s.parquet"),
    )
    assert message == f"ibsgl: error: {maps}: the maps do not belong to this index; delete the file and run again"
    assert not list(tmp_path.glob("scores/*"))


@pytest.fixture
def voc(tmp_path):
    """A small data set and its index."""
    root = tmp_path / "voc"
    part = {"seed": 0, "data": {"trainval": 24, "test": 12, "size": 32}}
    assert ibsgl("data", "--settings", json.dumps(part), "--out", root)[0] == 0
    step = {"seed": 0, "data": {"held_out": 0.3}}
    index = tmp_path / "i.parquet"
    assert ibsgl("index", "--root", root, "--settings", json.dumps(step), "--out", index)[0] == 0
    return ["--index", index, "--root", root]


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_network_as_it_is_and_its_classification(tmp_path, voc, multilabel):
    import pandas as pd
    import torch

    from ibsgl.data.index import Index
    from ibsgl.networks import build_network

    names = Index.load(voc[1]).class_names
    own = build_network("resnet_small", len(names), width=8).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in own.items()}}, tmp_path / "own.pt")
    spec = NETWORK | {"options": {"width": 8}, "multilabel": multilabel}
    network = spec | {"weights": str(tmp_path / "own.pt")}
    settings = json.dumps({"seed": 0, "network": network, "training": {"epochs": 0, "batch_size": 8}})
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
    assert output.startswith(f"m: test {'map' if multilabel else 'accuracy'} 0.")

    held_out = (Index.load(voc[1]).table["split"] == "held_out").sum()
    torch.save({"held_out": torch.rand(held_out, 2, 2)}, tmp_path / "bottleneck.pt")
    settings = json.dumps({"seed": 0, "network": network, "r": 0.35, "cross_entropy": "distribution", "resamples": 100})
    code, _ = ibsgl(
        *("effect", "--model", "m", *voc, "--weights", pretrained, "--bottleneck", tmp_path / "bottleneck.pt"),
        *("--settings", settings, "--out", tmp_path / "l.parquet", "--predictions", tmp_path / "p.parquet"),
        *("--table", tmp_path / "t.csv", "--classes", tmp_path / "c.csv"),
    )
    assert code == 0
    table = pd.read_csv(tmp_path / "c.csv")
    assert table.columns.tolist() == ["variant", "class", "images", *(["ap", "ap11"] if multilabel else ["accuracy"])]
    assert table["class"].tolist() == list(names)
    assert set(table["variant"]) == {"pretrained"}
    assert table["images"].sum() == 12
    if multilabel:
        assert table["ap11"].mean() == pytest.approx(100 * record["metrics"]["test_map11"])
        assert table["ap"].mean() == pytest.approx(100 * record["metrics"]["test_map"])
    else:
        correct = (table["accuracy"] * table["images"]).sum() / table["images"].sum()
        assert correct == pytest.approx(100 * record["metrics"]["test_accuracy"])


def test_torchrays_networks_need_vocs_classes(script, tmp_path, voc):
    network = {"arch": "resnet50", "source": "torchray", "weights": "gone.pt", "image_size": 32, "multilabel": True}
    settings = json.dumps({"seed": 0, "network": network, "training": {"epochs": 0}})
    message = script("classifier", "--model", "m", *voc, "--settings", settings, "--out", tmp_path / "w.pt")
    assert message.startswith("ibsgl: error: source: TorchRay's networks have VOC's 20 classes in alphabetical order")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "foo"}, "variant: Input should be 'guided' or 'control'"),
        ({"variant": "guided"}, "guidance: guided needs this key"),
        ({"variant": "control", "guidance": {}}, "guidance: control has no such key"),
        ({"variant": "guided", "guidance": {}}, "suppression: guided needs this key"),
        (
            {"variant": "guided", "guidance": {"bottleneck_network": "current"}, "suppression": {}},
            "bottleneck: guided needs this key",
        ),
    ],
)
def test_guidance_and_its_control_have_their_own_settings(changes, message, tmp_path):
    settings = json.dumps({"seed": 0, "network": NETWORK, "training": {}} | changes)
    arguments = ["guide", "--model", "m", "--index", "i", "--root", "r", "--weights", "w", "--settings", settings]
    assert message in error_of(*arguments, "--out", tmp_path / "out.pt")


def test_figure_2_needs_r(tmp_path):
    settings = json.dumps({"seed": 0, "number": 2, "networks": {"m": NETWORK}, "figures": {}})
    arguments = ["figure", "--index", "i", "--root", "r", "--weights", "m/guided.pt", "--settings", settings]
    assert "r: Figure 2 needs it for every network" in error_of(*arguments, "--out", tmp_path / "out.png")
    assert "figure4 draws Figure 4" in error_of("settings", "figure", "--config", TINY, "--where=number=4")
