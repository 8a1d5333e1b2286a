"""Faster passes: folded, in bf16, compiled, and what happens where that fails."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ibsgl.networks import SplitNetwork, evaluating, fast_passes, forward_pass, input_gradient
from ibsgl.networks.passes import COMPILED, native_precision

SHAPE = torch.Size((4, 3, 32, 32))


@pytest.fixture
def network(networks):
    return networks["resnet"]


@pytest.fixture
def images():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets():
    return torch.tensor([0, 1, 3, 1])


class Untraceable(nn.Module):
    """A part of a network that depends on its input's values."""

    def forward(self, x):
        return x * 2 if x.mean() > 0 else x


def gradient_by_hand(network, images, targets):
    images = images.clone().requires_grad_(True)
    network(images)[torch.arange(len(images)), targets].sum().backward()
    return images.grad


def test_without_a_block_the_passes_are_those_of_the_network(network, images, targets):
    assert torch.equal(forward_pass(network, images), network(images))
    with evaluating(network):
        assert torch.equal(input_gradient(network, images, targets), gradient_by_hand(network, images, targets))
    assert not forward_pass(network, images).requires_grad


def test_a_block_in_float32_without_compiling_changes_no_bit(network, images, targets):
    expected = network(images), gradient_by_hand(network, images, targets)
    with fast_passes(network, SHAPE) as passes, evaluating(network):
        assert torch.equal(forward_pass(network, images), expected[0])
        assert torch.equal(input_gradient(network, images, targets), expected[1])
    assert passes.facts() == {"precision": "float32", "folded": False, "compiled": False}


def test_folding_changes_the_passes_by_rounding(network, images, targets):
    network, images = network.double(), images.double()
    with fast_passes(network, SHAPE, fold=True) as passes, evaluating(network):
        logits, gradient = forward_pass(network, images), input_gradient(network, images, targets)
    assert passes.facts() == {"precision": "float32", "folded": True, "compiled": False}
    torch.testing.assert_close(logits, network(images), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_by_hand(network, images, targets), rtol=1e-10, atol=1e-12)


def test_bf16_rounds_products_and_adds_up_in_float32():
    """One convolution, by hand: operands rounded to 8 bits, sums in float64, the result rounded to 8 bits."""
    torch.manual_seed(0)
    network = SplitNetwork(nn.Conv2d(3, 16, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)))
    images = torch.rand(SHAPE)

    def rounded(tensor):
        return tensor.detach().to(torch.bfloat16).double()

    conv, linear = network.stem, network.head[2]
    features = rounded(nn.functional.conv2d(rounded(images), rounded(conv.weight), rounded(conv.bias)))
    # The head is in float32.
    expected = nn.functional.linear(features.mean((2, 3)), linear.weight.double(), linear.bias.double())
    with fast_passes(network, SHAPE, "bfloat16"):
        logits = forward_pass(network, images)
    assert logits.dtype == torch.float32
    # A sum in another order can round to the next number of 8 bits.
    torch.testing.assert_close(logits.double(), expected, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_itself_stays_as_it_is(precision, network, images, targets):
    network.train()
    before = copy.deepcopy(network.state_dict())
    with fast_passes(network, SHAPE, precision, fold=True):
        input_gradient(network, images, targets)
    assert network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    for key, value in network.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])


def test_a_block_is_of_one_network(network, images):
    other = copy.deepcopy(network)
    expected = network(images)
    with fast_passes(network, SHAPE, "bfloat16") as outer:
        assert torch.equal(forward_pass(other, images), expected)
        assert not torch.equal(forward_pass(network, images), expected)
        # A block for the same network inside this one changes nothing.
        with fast_passes(network, SHAPE, "bfloat16") as inner:
            assert inner is outer
        with (
            pytest.raises(ValueError, match="run in bfloat16 already, and not in float32"),
            fast_passes(network, SHAPE),
        ):
            pass
        with fast_passes(other, SHAPE):
            assert torch.equal(forward_pass(other, images), expected)
        assert not torch.equal(forward_pass(network, images), expected)
    assert torch.equal(forward_pass(network, images), expected)


def test_a_network_that_cannot_be_traced_runs_in_bf16_too(network, images):
    network.stem = nn.Sequential(network.stem, Untraceable())
    expected = network(images)
    with fast_passes(network, SHAPE, "bfloat16") as passes:
        logits = forward_pass(network, images)
    assert not passes.folded
    assert (logits - expected).abs().max() < 0.02 * (expected.max() - expected.min())


def test_a_trace_with_other_features_is_not_used(network, images):
    """Tracing a network keeps the branch that a number of its own chooses at that time."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    network.stem = nn.Sequential(network.stem, Counting())
    with fast_passes(network, SHAPE, "bfloat16") as passes:
        pass
    assert not passes.folded


def test_a_compiler_that_fails_is_one_line(network, images, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with fast_passes(network, SHAPE, "bfloat16", compile=True) as passes:
        forward_pass(network, images)
    assert passes.facts() == {"precision": "bfloat16", "folded": True, "compiled": False}
    assert capsys.readouterr().err == "compile: the passes run uncompiled: RuntimeError: no compiler here\n"


@pytest.mark.parametrize("added", [1, torch.nan])
def test_a_compiled_network_with_other_features_is_not_used(added, network, images, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda module, **options: lambda x: module(x) + added)
    expected = network(images)
    with fast_passes(network, SHAPE, compile=True) as passes:
        torch.testing.assert_close(forward_pass(network, images), expected, rtol=1e-4, atol=1e-5)
    assert not passes.compiled
    assert "ArithmeticError: the compiled network has other features" in capsys.readouterr().err


def test_only_batches_of_the_announced_shape_are_compiled(network, images, monkeypatch):
    seen = []

    def compile_as(module, **options):
        return lambda x: (seen.append(len(x)), module(x))[1]

    monkeypatch.setattr(torch, "compile", compile_as)
    with fast_passes(network, SHAPE, compile=True) as passes, evaluating(network):
        assert passes.compiled
        seen.clear()
        forward_pass(network, images)
        forward_pass(network, images[:2])
        input_gradient(network, images, torch.zeros(4, dtype=torch.int64))
    assert seen == [4]


def test_another_processor_has_another_folder_of_compiled_code(network, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    folders = []
    for avx512 in (False, True, True):
        monkeypatch.setenv(COMPILED, str(tmp_path))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=avx512: {"avx2": True, "avx512_f": has})
        for _ in range(2):
            with fast_passes(network, SHAPE, compile=True):
                folders.append(os.environ[COMPILED])
    assert folders == [folders[0]] * 2 + [folders[2]] * 4
    assert folders[0] != folders[2]
    assert {Path(folder).parent for folder in folders} == {tmp_path}


def test_passes_are_prepared_where_another_device_is_the_default(network, images):
    """A generator of the CPU draws nothing on a GPU. The meta device stands for one here."""
    with fast_passes(network, SHAPE, "bfloat16", fold=True):
        expected = forward_pass(network, images)
    with torch.device("meta"), fast_passes(network, SHAPE, "bfloat16", fold=True):
        assert torch.equal(forward_pass(network, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_by_torch(precision, network, images, tmp_path, monkeypatch):
    monkeypatch.setenv(COMPILED, str(tmp_path))
    with fast_passes(network, SHAPE, precision) as plain:
        expected = forward_pass(network, images)
    with (
        fast_passes(network, SHAPE, precision, compile=True) as passes,
        torch._dynamo.config.patch(error_on_recompile=True),
    ):
        logits = forward_pass(network, images)
        # Masked images can have another memory order.
        other = forward_pass(network, images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(other, logits)
    assert passes.compiled
    assert not plain.compiled
    share = 1e-5 if precision == "float32" else 0.02
    assert (logits - expected).abs().max() < share * (expected.max() - expected.min())


def test_a_gradient_of_the_input_keeps_only_what_it_needs(network, images, targets):
    """A folded network keeps the outputs of its ReLUs (which are inputs of convolutions), and nothing before them."""

    def kept():
        stored = {}
        parameters = {parameter.data_ptr() for parameter in network.parameters()}

        def keep(tensor):
            if tensor.ndim == 4 and tensor.data_ptr() not in parameters and tensor.shape[0] == len(images):
                stored[tensor.data_ptr()] = tensor
            return tensor

        with evaluating(network), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            input_gradient(network, images, targets)
        return sum(tensor.numel() for tensor in stored.values())

    plain = kept()
    with fast_passes(network, SHAPE, fold=True):
        folded = kept()
    outputs = []
    hooks = [
        module.register_forward_hook(lambda module, given, output: outputs.append(output.numel()))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    # The normalised image is the input of the first convolution.
    assert folded <= sum(outputs) + images.numel()
    assert folded < 0.7 * plain


def test_native_precision_is_what_the_processor_has(monkeypatch):
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "avx2": True}, "float32"),
    ):
        native_precision.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert native_precision("cpu") == expected
    native_precision.cache_clear()


def test_bf16_of_a_float64_network_is_an_error(network):
    with (
        pytest.raises(ValueError, match="this one is torch"),
        fast_passes(network.double(), SHAPE, "bfloat16"),
    ):
        pass
