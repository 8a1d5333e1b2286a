"""What `precision: auto` and `compile: auto` mean is decided once per run and written down."""

import json

import pytest
import yaml
from shapes_config import values

from ibsgl import config
from ibsgl.config import passes
from ibsgl.config.steps import step_of


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def machine(monkeypatch, precision, compiler):
    monkeypatch.setattr(passes, "native_precision", lambda device: precision)
    monkeypatch.setattr(passes, "has_compiler", lambda: compiler)


def of(**changes):
    return config.parse(values(device="cpu", **changes))


def test_values_of_the_config_hold_on_every_machine(monkeypatch, tmp_path):
    machine(monkeypatch, "float32", False)
    chosen = of(precision="bfloat16")
    assert chosen.passes == ("bfloat16", "off")
    config.record_passes(chosen)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "compiler", "expected"), [("bfloat16", True, "auto"), ("float32", False, "off")])
def test_auto_is_what_the_machine_has(precision, compiler, expected, monkeypatch):
    machine(monkeypatch, precision, compiler)
    assert of(precision="auto", compile="auto").passes == (precision, expected)
    assert of(precision="auto").passes == (precision, "off")
    assert of(compile="auto").passes == ("float32", expected)


def test_a_run_that_moves_to_another_machine_keeps_its_passes(monkeypatch, tmp_path):
    chosen = of(precision="auto", compile="auto")
    machine(monkeypatch, "bfloat16", True)
    config.record_passes(chosen)
    recorded = json.loads((tmp_path / "results/shapes/passes.json").read_text())
    assert recorded.keys() == {"precision", "compile", "processor"}
    machine(monkeypatch, "float32", False)
    config.record_passes(chosen)
    assert chosen.passes == ("bfloat16", "auto")
    where = {"model": "vgg", "replicate": 0, "variant": "pretrained", "method": "rise"}
    assert step_of(chosen, "maps", **where).to_dict()["precision"] == "bfloat16"
    # A value of the config comes first.
    assert of(precision="float32", compile="auto").passes == ("float32", "auto")


def test_auto_of_an_alternative_is_recorded_too(monkeypatch, tmp_path):
    chosen = of(alternatives={"fast": {"precision": "auto", "compile": "auto"}})
    machine(monkeypatch, "bfloat16", True)
    config.record_passes(chosen)
    machine(monkeypatch, "float32", False)
    assert chosen.alternative("fast").passes == ("bfloat16", "auto")
    assert chosen.passes == ("float32", "off")


def test_a_gpu_has_a_precision_of_its_own(monkeypatch):
    monkeypatch.setattr(passes, "native_precision", lambda device: {"cuda": "bfloat16", "cpu": "float32"}[device])
    assert of(precision="auto").passes.precision == "float32"
    assert config.parse(values(device="cuda", precision="auto")).passes.precision == "bfloat16"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"precision": "float64", "compile": "off", "processor": ""}'])
def test_a_file_that_no_run_wrote_is_one_line(content, tmp_path):
    file = tmp_path / "results/shapes/passes.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(config.ConfigError, match=r"^results/shapes/passes\.json: .*; delete the file to decide again$"):
        _ = of(precision="auto").passes


def test_wrong_values_name_the_key():
    for key, wrong in (("precision", "half"), ("compile", "on"), ("precision", 16)):
        with pytest.raises(config.ConfigError, match=f"^{key}"):
            of(**{key: wrong})


def test_yaml_reads_off_as_false():
    assert of(**yaml.safe_load("compile: off")).compile == "off"


def test_auto_leaves_methods_in_float32_that_bf16_changes(monkeypatch):
    machine(monkeypatch, "bfloat16", True)
    heavy = ("rise", "score_cam", "sise", "integrated_gradients", "extremal_perturbation")
    for precision, others in (("auto", "float32"), ("bfloat16", "bfloat16")):
        chosen = of(precision=precision)
        found = {method: chosen.precision_of(method) for method in chosen.methods}
        assert found == dict.fromkeys(heavy[:3], "bfloat16") | dict.fromkeys(heavy[3:], others) | dict.fromkeys(
            ("gradcam", "gradcam_pp", "fullgrad"), "float32"
        )
        where = {"model": "vgg", "replicate": 0, "variant": "pretrained"}
        for method in heavy:
            assert step_of(chosen, "maps", **where, method=method).precision == found[method]
