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
        ('  "ibsgl.guidance",\n  "ibsgl.bottleneck | ibsgl.saliency",\n', '  "ibsgl.saliency",\n  "ibsgl.guidance",\n'),
        ('"ibsgl.inference",\n  "ibsgl.guidance",', '"ibsgl.inference | ibsgl.guidance | ibsgl.metrics",'),
        ('forbidden_modules = [\n  "ibsgl.bottleneck",', 'forbidden_modules = [\n  "ibsgl.networks",'),
    ],
)
def test_a_broken_layer_is_noticed(tmp_path, old, new):
    assert lint(tmp_path, old, new) == EXIT_STATUS_ERROR
