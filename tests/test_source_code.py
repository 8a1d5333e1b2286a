"""The digest of code: what changes it, what does not, and that it follows imports."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ibsgl import config
from ibsgl.config.steps import STEPS, step_of
from ibsgl.source_code import imported_modules, source_digest

ROOT = Path(__file__).parents[1]
# Files, messages and records.
PLUMBING = {"devices", "errors", "files", "provenance"}

SOURCE = '''"""Doc."""
import missing_package


def f(x):
    """Doc."""
    # a comment
    return x + 1


class A:
    """Doc."""
'''
REFORMATTED = """import missing_package
def f( x ):
    return (x
            + 1)
class A:
    'Another.'
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``planted`` with the modules ``planted.one`` and ``planted.sub.two``; importing any of them fails."""
    root = tmp_path / "planted"
    (root / "sub").mkdir(parents=True)
    for file in ("__init__.py", "one.py", "sub/__init__.py", "sub/two.py"):
        (root / file).write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_layout_comments_and_docstrings_do_not_change_the_digest(package):
    before = source_digest("planted.one")
    (package / "one.py").write_text(REFORMATTED)
    assert source_digest("planted.one") == before
    assert "planted" not in sys.modules


@pytest.mark.parametrize(("old", "new"), [("x + 1", "x + 2"), ("x + 1", "x - 1"), ("def f", "def g"), ("(x)", "(x=1)")])
def test_an_edit_changes_the_digest(package, old, new):
    before = source_digest("planted.one")
    (package / "one.py").write_text(SOURCE.replace(old, new))
    assert source_digest("planted.one") != before


def test_a_package_stands_for_all_below_it_and_only_that(package):
    whole, sub, one = source_digest("planted"), source_digest("planted.sub"), source_digest("planted.one")
    (package / "sub" / "two.py").write_text(SOURCE.replace("1", "2"))
    assert source_digest("planted") != whole
    assert source_digest("planted.sub") != sub
    assert source_digest("planted.one") == one
    with_new_file = source_digest("planted")
    (package / "three.py").write_text("")
    assert source_digest("planted") != with_new_file


def test_digest_depends_on_neither_order_nor_place(package, tmp_path_factory, monkeypatch):
    before = source_digest("planted.one", "planted.sub")
    assert source_digest("planted.sub", "planted.one", "planted.one") == before
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    package.rename(elsewhere / "planted")
    monkeypatch.syspath_prepend(elsewhere)
    assert source_digest("planted.one", "planted.sub") == before


@pytest.mark.parametrize("name", ["planted.four", "planted.one.deeper", "not_there_at_all"])
def test_unknown_module_is_named(package, name):
    with pytest.raises(ModuleNotFoundError, match=name):
        source_digest(name)


def test_digests_of_this_project_import_no_torch():
    code = (
        "import sys; from ibsgl.source_code import source_digest\n"
        "source_digest('ibsgl.metrics', 'ibsgl.data.sources.voc', 'ibsgl.networks', 'baselines.gradcam')\n"
        "print(sorted({'torch', 'mlflow', 'snakemake', 'ibsgl.data', 'baselines'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """``chain.a`` imports ``chain.b`` which imports ``chain.sub.c``; ``chain.d`` is imported for types only."""
    root = tmp_path / "chain"
    (root / "sub").mkdir(parents=True)
    files = {
        "__init__.py": "from chain.d import z\n",
        "a.py": "import missing\nfrom chain.b import y\nif TYPE_CHECKING:\n    import chain.d\n",
        "b.py": "def y():\n    from .sub import c\n    return c.x\n",
        "sub/__init__.py": "",
        "sub/c.py": "x = 1\n",
        "d.py": "z = 1\n",
        "e.py": "from chain import z\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_imports_are_followed_within_the_package(chain):
    assert list(imported_modules("chain.a")) == ["chain.a", "chain.b", "chain.sub.c"]
    before = source_digest("chain.a")
    (chain / "d.py").write_text("z = 2\n")
    assert source_digest("chain.a") == before
    (chain / "sub" / "c.py").write_text("x = 2\n")
    assert source_digest("chain.a") != before


def test_a_packages_init_counts_where_it_is_imported_by_name(chain):
    assert list(imported_modules("chain.e")) == ["chain", "chain.d", "chain.e"]


def test_a_config_keys_text_is_no_code(package):
    text = "class S:\n    x: int = Field(1, ge=0, description='old')\n"
    (package / "one.py").write_text(text)
    before = source_digest("planted.one")
    (package / "one.py").write_text(text.replace("old", "new"))
    assert source_digest("planted.one") == before
    (package / "one.py").write_text(text.replace("ge=0", "ge=1"))
    assert source_digest("planted.one") != before


def command_imports():
    """By command, the modules of this project that its function in ibsgl/cli imports."""
    found = {}
    for file in (ROOT / "ibsgl" / "cli").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in STEPS:
                for statement in ast.walk(node):
                    if isinstance(statement, ast.ImportFrom) and statement.module.startswith("ibsgl"):
                        names = {f"{statement.module}.{alias.name}" for alias in statement.names}
                        modules = {name for name in names if find_spec_or_none(name)} or {statement.module}
                        found.setdefault(node.name, set()).update(modules)
    return found


def find_spec_or_none(name):
    try:
        return find_spec(name)
    except ModuleNotFoundError:
        return None


# A command may use these, and they change no value of its result.
FREE = {"ibsgl.config.steps", "ibsgl.attribution", "ibsgl.data.index", "ibsgl.data.download", "ibsgl.seals"}


@pytest.mark.parametrize("name", STEPS)
def test_a_steps_digest_covers_what_its_command_calls(name):
    variant = "guided" if name == "guide" else "pretrained"
    where = {"model": "resnet", "replicate": 0, "variant": variant, "method": "rise", "number": 2, "metric": "deletion"}
    loaded = config.read([ROOT / "config" / "shapes.yaml"])
    step = step_of(config.parse(loaded.model_dump() | {"further_metrics": {"deletion": {}}}), name, **where)
    covered = set(imported_modules(*step.modules())) if step.modules() else set()
    called = command_imports().get(name, set())
    assert {m for m in called if m not in covered and m.rpartition(".")[2] not in PLUMBING} <= FREE


def test_the_classifier_does_not_depend_on_guidance():
    training = imported_modules(*STEPS["classifier"].entry)
    assert not {"ibsgl.guidance.algorithm", "ibsgl.bottleneck", "ibsgl.maps"} & training.keys()
    # A job has the module of its own loss besides.
    guided = imported_modules(*STEPS["guide"].entry, "ibsgl.guidance.paper")
    assert guided.keys() >= {
        *("ibsgl.guidance.algorithm", "ibsgl.guidance.localization", "ibsgl.bottleneck", "ibsgl.saliency"),
        *("ibsgl.suppression", "ibsgl.networks.gradients", "ibsgl.training.epochs", "ibsgl.randomness"),
    }
