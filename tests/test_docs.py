"""The documentation says what the code does: every key of the config with its default, and the example of docs/ is usable."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from ibsgl import attribution, config

ROOT = Path(__file__).parents[1]
README = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
FRUITS = ROOT / "docs" / "fruits.yaml"
PAGES = ["config/README.md", "docs/deviations.md", "docs/fruits.md", "docs/slurm.md"]


def schema(section=config.Config, instance=None, prefix=""):
    """Every leaf key, dotted, with its default (``...`` where there is none)."""
    keys = {}
    for name, field in section.model_fields.items():
        key = prefix + name
        default = getattr(instance, name) if instance is not None else field.get_default(call_default_factory=True)
        # Of an optional section, or of a list of them.
        inner = [kind for kind in get_args(field.annotation) if inspect.isclass(kind) and issubclass(kind, BaseModel)]
        if name == "models" and section is config.Config:
            keys |= schema(config.Model, prefix="models.<name>.")
        elif name == "methods" and section is config.Config:
            keys["methods.<method>"] = ...
        elif isinstance(default, BaseModel):
            keys |= schema(type(default), default, f"{key}.")
        else:
            keys[key] = ... if field.is_required() and instance is None else default
            for kind in inner:
                keys |= schema(kind, prefix=f"{key}.")
    return keys


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows(heading):
    """The rows of all of the README's tables that begin with ``heading``."""
    found, inside = [], False
    for line in README.splitlines():
        inside = line.startswith("|") and (inside or cells(line)[: len(heading)] == heading)
        if inside:
            found.append(cells(line))
    return [row for row in found if row[0].startswith("`")]


def value(cell):
    """What a cell holds in backticks, read as YAML."""
    return yaml.safe_load(cell.strip("`"))


def test_readme_has_every_key_of_the_schema_and_no_other():
    documented = [row[0].strip("`") for row in rows(["key", "value", "default"])]
    assert sorted(documented) == sorted(schema())


def test_readme_gives_the_defaults_of_the_schema():
    expected = schema()
    for key, _, default, _ in rows(["key", "value", "default"]):
        real = expected[key.strip("`")]
        assert default == "required" if real is ... else value(default) == real, key


def test_readme_names_every_choice_of_the_schema():
    """A key that takes one of a few words has all of them in its row."""
    told = {row[0].strip("`"): row[1] for row in rows(["key", "value", "default"])}

    def choices(section, prefix):
        for name, field in section.model_fields.items():
            annotation = field.annotation
            if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
                yield from choices(annotation, f"{prefix}{name}.")
            elif "Literal[" in str(annotation):
                yield prefix + name, annotation.__args__

    found = dict(choices(config.Config, ""))
    assert len(found) > 10
    for key, words in found.items():
        assert re.findall(r"`([^`]+)`", told[key]) == list(words), key


def test_readme_has_every_setting_of_every_listed_method_with_default_and_example():
    shapes = yaml.safe_load((ROOT / "config" / "shapes.yaml").read_text(encoding="utf-8"))["methods"]
    expected = {}
    for method in shapes:
        made = attribution.get(method)
        expected |= {
            (method, field.name): list(v) if isinstance(v := getattr(made, field.name), tuple) else v
            for field in fields(made)
        }
    documented = rows(["method", "setting", "default"])
    assert {(row[0].strip("`"), row[1].strip("`")): value(row[2]) for row in documented} == expected
    given = {
        (method, name): setting for method, settings in shapes.items() for name, setting in (settings or {}).items()
    }
    assert {(row[0].strip("`"), row[1].strip("`")): value(row[3]) for row in documented if row[3]} == given


def test_deviations_name_switches_that_exist():
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    sections = {key.rsplit(".", 1)[0] for key in schema()}
    known = {*schema(), *sections, *config.Config.model_fields}
    switches = [
        key
        for line in text.splitlines()
        if line.startswith("| ") and len(cells(line)) == 4 and cells(line)[0] != "the paper"
        for key in re.findall(r"`([a-z_.]+)`", cells(line)[2])
    ]
    assert len(switches) > 20
    of_methods = {field.name for name in attribution.names() for field in fields(attribution.get(name))}
    assert [key for key in switches if key not in known | of_methods | set(attribution.names())] == []


def test_own_photographs_example_parses():
    values = yaml.safe_load(FRUITS.read_text(encoding="utf-8"))
    loaded = config.parse(values)
    assert loaded.data.multilabel
    seven = set(yaml.safe_load((ROOT / "config" / "shapes.yaml").read_text(encoding="utf-8"))["methods"])
    assert set(loaded.methods) == seven
    for method, settings in loaded.methods.items():
        attribution.get(method, **settings)


def test_own_photographs_example_names_a_factory_that_is_there():
    """By its source: the packages that it is made of are not this project's."""
    (model,) = config.parse(yaml.safe_load(FRUITS.read_text(encoding="utf-8"))).models.values()
    module, function = model.arch.split(":")
    tree = ast.parse((ROOT / "docs" / f"{module}.py").read_text(encoding="utf-8"))
    (factory,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert [argument.arg for argument in factory.args.args] == ["num_classes"]
    assert factory.returns.id == "SplitNetwork"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", [*PAGES, "docs/fruits.yaml", "docs/fruits_network.py"])
def test_no_path_of_one_machine(page):
    assert not re.search(r"(?<![\w.…])/(work|home|tmp|root|Users)/", (ROOT / page).read_text(encoding="utf-8"))
