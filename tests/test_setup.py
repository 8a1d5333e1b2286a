"""The two set-ups install the same thing: pyproject.toml with uv, environment.yml with conda, constraints.txt for both."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    (pin := Requirement(line)).name: pin
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def test_every_dependency_is_pinned_inside_its_range():
    extras = PROJECT["optional-dependencies"].values()
    for text in ["uv", *PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        (pin,) = PINS[requirement.name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_conda_installs_the_project_under_the_same_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert pip == "pip"
    assert from_pip == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


def test_readme_commands_use_them_too():
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("pip install")]
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("pip install -c constraints.txt uv && ")
        assert "uv pip install -q -c constraints.txt -e '.[dev]'" in command
    assert commands[0].endswith("uv run snakemake --cores all")
    assert commands[1].endswith("uv run pytest")


def test_this_environment_is_the_pinned_one():
    for name in ("torch", "torchvision", "numpy", "scipy", "pandas", "snakemake", "mlflow"):
        assert PINS[name].specifier.contains(version(name)), name
