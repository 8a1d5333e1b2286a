"""Files of weights and of other tensors, damaged or from another program. Nothing in them is executed."""

import io

import pytest
import torch
from damage import damaged, only_our_errors
from hypothesis import given
from hypothesis import strategies as st

from ibsgl.networks import build_network


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    STATE = build_network("resnet_small", 3, width=8).state_dict()
NAMES = list(STATE)
TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(3, 1000),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2).to_sparse_csr(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.bool),
        torch.full((3,), float("nan")),
        torch.ones(1).expand(10**9),
        torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8),
        torch.ones(4, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(3)),
    ]
)
OTHERS = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=3), TENSORS)


@st.composite
def foreign(draw):
    """A state dict with other names, shapes and types, in one of the usual wrappings or not."""
    state = dict(STATE)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(NAMES))
        match draw(st.sampled_from(["drop", "replace", "prefix", "key", "dtype", "shape"])):
            case "drop":
                state.pop(name, None)
            case "replace":
                state[name] = draw(OTHERS)
            case "prefix":
                prefix = draw(st.sampled_from(["module.", "stem.", "model.", ""]))
                state = {f"{prefix}{key}": value for key, value in state.items()}
            case "key":
                state[draw(st.one_of(st.integers(), st.text(max_size=5), st.none(), st.tuples(st.integers())))] = draw(
                    OTHERS
                )
            case "dtype":
                state[name] = STATE[name].to(
                    draw(st.sampled_from([torch.float64, torch.int8, torch.complex64, torch.bool]))
                )
            case "shape":
                state[name] = STATE[name].flatten()
    wrapper = draw(st.sampled_from([None, "state_dict", "model", "network"]))
    return draw(st.one_of(st.just(state if wrapper is None else {wrapper: state}), OTHERS))


CONTENT = saved(STATE)


@given(content=st.one_of(damaged(CONTENT), foreign().map(saved), st.binary(max_size=50)))
def test_weights(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "network.pt"
    path.write_bytes(content)
    network = only_our_errors(lambda: build_network("resnet_small", 3, path, width=8), path)
    if network is not None:
        assert network.state_dict().keys() == STATE.keys()


def test_the_undamaged_file_is_read(tmp_path):
    (tmp_path / "a.pt").write_bytes(CONTENT)
    read = build_network("resnet_small", 3, tmp_path / "a.pt", width=8).state_dict()
    assert all(torch.equal(read[name], STATE[name]) for name in NAMES)


class Run:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_is_executed(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(saved({"a": Run()}))
    with pytest.raises(ValueError, match=r"a\.pt: torch\.load cannot read it as a file of tensors alone"):
        build_network("resnet_small", 3, tmp_path / "a.pt", width=8)
    assert "executed" not in capsys.readouterr().out
