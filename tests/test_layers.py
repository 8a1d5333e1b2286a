"""The layers of the code: imports run down, in no circle, and the competitors see only what any method may see."""

from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS, lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lint(tmp_path, old="", new=""):
    """Exit status of the contracts in pyproject.toml with one change."""
    text = PYPROJECT.read_text()
    assert old in text
    (tmp_path / "pyproject.toml").write_text(text.replace(old, new))
    return lint_imports(config_filename=str(tmp_path / "pyproject.toml"), no_cache=True)


def test_imports_keep_the_layers(tmp_path):
    assert lint(tmp_path) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Each change makes imports that exist point upwards, sideways or at what is forbidden.
        ('  "guidance",\n  "bottleneck | saliency",\n', '  "bottleneck | saliency",\n  "guidance",\n'),
        ('"attribution | metrics",\n  "suppression",', '"suppression",\n  "attribution | metrics",'),
        # A module without a layer.
        ('"inference",\n', ""),
        ('forbidden_modules = [\n  "ibsgl.bottleneck",', 'forbidden_modules = [\n  "ibsgl.networks",'),
    ],
)
def test_a_broken_layer_is_noticed(tmp_path, old, new):
    assert lint(tmp_path, old, new) == EXIT_STATUS_ERROR
