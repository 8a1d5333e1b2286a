"""Configs that nobody would write on purpose: one line of ours, soon."""

import copy
from pathlib import Path

import pytest
import yaml
from damage import damaged, only_our_errors
from hypothesis import given
from hypothesis import strategies as st

from ibsgl import config
from ibsgl.config import ConfigError, read_file

SHAPES = Path(__file__).parents[2] / "config" / "shapes.yaml"
VALUES = yaml.safe_load(SHAPES.read_text())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from(
        [0, -1, 1e300, 1e-300, "1e300", "", "nan", "auto", "{run}", "../x", "/etc/passwd", "a:b", "x" * 300]
    ),
    st.text(max_size=20),
    st.dates(),
    st.binary(max_size=5),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=10), st.integers(), st.none()), inner, max_size=4),
    ),
    max_leaves=12,
)


def paths(node, at=()):
    """The path of every value of nested dictionaries and lists."""
    yield at
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from paths(value, (*at, key))


PATHS = [path for path in paths(VALUES) if path]


@st.composite
def changed(draw):
    """The default config with up to three values replaced, removed or added."""
    tree = copy.deepcopy(VALUES)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(PATHS))
        node = tree
        for part in above:
            node = node[part] if isinstance(node, dict) and part in node else None
        if not isinstance(node, dict):
            continue
        match draw(st.sampled_from(["replace", "remove", "add", "move"])):
            case "replace":
                node[last] = draw(ANYTHING)
            case "remove":
                node.pop(last, None)
            case "add":
                node[
                    draw(st.one_of(st.text(max_size=10), st.sampled_from(sorted({p[-1] for p in PATHS}, key=str))))
                ] = draw(ANYTHING)
            case "move":
                node[last] = copy.deepcopy(draw(st.sampled_from([tree, VALUES["models"], VALUES["data"]])))
    return tree


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("config") / "my.yaml"


@given(values=changed())
def test_values(values):
    said = ""
    try:
        loaded = config.load(values)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 3000
    if not said:
        # What is accepted survives a round through Snakemake's config.
        assert config.load(loaded.model_dump(mode="json", exclude_unset=True)) == loaded


@given(content=st.one_of(damaged(SHAPES.read_bytes()), st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_files(file, content):
    file.write_bytes(content)
    values = only_our_errors(lambda: read_file(file), file)
    if values is not None:
        test_values.hypothesis.inner_test(values)


@given(values=ANYTHING)
def test_files_of_other_programs(file, values):
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    only_our_errors(lambda: read_file(file), file)
