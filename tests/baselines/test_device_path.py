"""What can be known of a GPU without one: where the CPU waits for it, how many kernels are launched, and the memory.

A CPU shows where a GPU would be waited for (:class:`operations.Operations`). On the meta device tensors have shapes and no
values, so code that reads a value fails there.
"""

from contextlib import nullcontext

import pytest
import torch
from operations import Operations
from small_methods import METHODS

from ibsgl import attribution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.networks import build_network, fast_passes
from ibsgl.randomness import generator

# How often the CPU may wait, for each batch and for each distinct image of it. None of this is inside a loop over passes.
WAITS = {
    "bottleneck": (0, 0),
    "center": (0, 0),
    # The list of blurs, which is on the CPU.
    "extremal_perturbation": (1, 0),
    "fullgrad": (0, 0),
    "gradcam": (0, 0),
    "gradcam_pp": (0, 0),
    "gradient": (0, 0),
    "integrated_gradients": (0, 0),
    "oracle": (0, 0),
    "random": (0, 0),
    # Where the next image begins.
    "rise": (2, 0),
    # The distinct images and their features, the distinct classes, and the channels that are not constant.
    "score_cam": (4, 0),
    "score_cam_probability": (4, 0),
    # For each image the selected channels of four layers, and Otsu's thresholds of the upper three, which scikit-image
    # computes on the CPU. Between them are hundreds of passes.
    "sise": (2, 7),
}
# Their next step depends on the values of the images, so they cannot run on the meta device.
DEPENDS_ON_VALUES = {"rise", "score_cam", "score_cam_probability", "sise"}
# Settings with few passes, and with four times as many: masks, steps, draws, iterations, or channels (``width``).
GROWTH = {
    "bottleneck": ({"steps": 2, "samples": 2}, {"steps": 8, "samples": 2}),
    "extremal_perturbation": ({"iterations": 2}, {"iterations": 8}),
    "integrated_gradients": ({"steps": 4, "chunk": 2}, {"steps": 16, "chunk": 2}),
    "rise": ({"masks": 4, "cells": 3, "chunk": 2}, {"masks": 16, "cells": 3, "chunk": 2}),
    "score_cam": ({"chunk": 16, "width": 8}, {"chunk": 16, "width": 32}),
    "score_cam_probability": ({"chunk": 16, "width": 8}, {"chunk": 16, "width": 32}),
    "sise": ({"chunk": 16, "width": 8}, {"chunk": 16, "width": 32}),
}
# One chunk, and one chunk of four times as many images.
CHUNKS = {
    "bottleneck": ({"steps": 2, "samples": 2}, {"steps": 2, "samples": 8}),
    "integrated_gradients": ({"steps": 4, "chunk": 4}, {"steps": 16, "chunk": 16}),
    "rise": ({"masks": 4, "cells": 3, "chunk": 4}, {"masks": 16, "cells": 3, "chunk": 16}),
    "score_cam": ({"chunk": 10_000, "width": 8}, {"chunk": 10_000, "width": 32}),
    "score_cam_probability": ({"chunk": 10_000, "width": 8}, {"chunk": 10_000, "width": 32}),
    "sise": ({"chunk": 10_000, "width": 8}, {"chunk": 10_000, "width": 32}),
}


@pytest.fixture
def on_meta(monkeypatch):
    """Lets a method switch autocast off for a tensor on the meta device, where torch has no autocast."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)
    )


def run(
    name, images=1, device="cpu", arch="resnet_small", size=32, shared=False, width=8, precision="float32", **settings
):
    """The operations of the maps of ``images`` distinct images. ``shared``: one generator for all of them."""
    method = attribution.get(name, **settings)
    options = {"width": width} if arch.endswith("_small") else {}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        network = build_network(arch, 4, **options).eval()
        x = torch.rand(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        targets = torch.zeros(images, dtype=torch.int64)
    with torch.no_grad():
        features = network.stem(x[:1])
    context = {
        "region": torch.ones(images, size, size, dtype=torch.bool, device=device),
        "statistics": FeatureStatistics().update(features),
    }
    generators = generator(0) if shared else [generator(0, name, image) for image in range(images)]
    fast = nullcontext() if precision == "float32" else fast_passes(network, x.shape, precision)
    with fast, Operations() as counted:
        maps = method(network, x, targets, generators, **{key: context[key] for key in method.requires})
    assert maps.shape == (images, size, size)
    assert maps.dtype == torch.float32
    return counted


def forward(images, device="cpu", arch="resnet_small", size=32):
    """The operations of a plain pass of ``images`` images."""
    options = {"width": 8} if arch.endswith("_small") else {}
    with torch.device(device):
        network = build_network(arch, 4, **options).eval()
        x = torch.empty(images, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Operations() as counted:
        network(x)
    return counted


def test_the_counts_by_hand():
    x = torch.ones(4)
    with Operations() as counted:
        (x.sum().item(), x[x > 0], x.nonzero(), x.tolist(), x.cpu(), bool(x[0] > 0), x[2], x.view(2, 2))
    assert counted.waits == {"_local_scalar_dense": 2, "boolean index": 1, "nonzero": 1, "tolist": 1, "cpu": 1}
    with Operations() as counted:
        y = x + 1
        z = y.view(2, 2) * 2
        del y
        z = z + 1
        z = torch.zeros(2, device="meta")
        torch.ones(2).to("meta")
    # The most is two tensors of four numbers.
    assert (counted.peak, counted.transfers, counted.waits) == (32, 1, {})
    # Two sums, a product, zeros, ones, and a copy. Views are none.
    assert counted.launches == 6


@pytest.mark.parametrize("name", METHODS)
def test_the_cpu_waits_no_more_often_than_stated(name):
    batch, image = WAITS[name]
    counted = run(name, 3, **METHODS[name])
    assert counted.waits.total() <= batch + 3 * image, counted.waits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GROWTH)
def test_the_cpu_waits_no_more_often_for_four_times_the_passes(name, precision):
    few, many = (run(name, 2, precision=precision, **settings) for settings in GROWTH[name])
    assert many.launches > 1.5 * few.launches
    assert many.waits == few.waits


def test_every_method_that_makes_many_passes_is_checked_for_growth():
    many = {name for name in METHODS if not attribution.is_single_pass(name)}
    assert many == GROWTH.keys()
    assert WAITS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", CHUNKS)
def test_a_larger_chunk_needs_no_more_kernels(name):
    few, many = (run(name, **settings) for settings in CHUNKS[name])
    assert many.launches == few.launches


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DEPENDS_ON_VALUES])
def test_more_images_in_a_batch_need_no_more_kernels(name, on_meta):
    """Nothing loops over images, apart from the draws of each image's own generator. Nor is a value read."""
    chunk = {"chunk": 100} if hasattr(attribution.get(name), "chunk") else {}
    two, eight = (run(name, images, "meta", shared=True, **METHODS[name] | chunk) for images in (2, 8))
    assert eight.launches == two.launches
    assert eight.transfers == two.transfers


@pytest.mark.parametrize(
    ("name", "one", "two", "passes"),
    [
        ("rise", {"masks": 4, "cells": 3, "chunk": 4}, {"masks": 8, "cells": 3, "chunk": 4}, 1),
        # The small ResNet's last feature map has 64 channels.
        ("score_cam", {"chunk": 64}, {"chunk": 32}, 1),
        # A backward pass is at most twice as many kernels as a forward pass.
        ("integrated_gradients", {"steps": 4, "chunk": 4}, {"steps": 8, "chunk": 4}, 3),
    ],
)
def test_a_chunk_adds_few_kernels_to_those_of_its_passes(name, one, two, passes):
    added = run(name, **two).launches - run(name, **one).launches
    assert added <= passes * forward(4).launches + 40


def test_a_step_of_extremal_perturbation_adds_a_fixed_number_of_kernels(on_meta):
    """Its smooth maximum takes 15 for each of the 9 rows of the neighbourhood."""
    two, eight = (run("extremal_perturbation", 2, "meta", iterations=number).launches for number in (2, 8))
    assert (eight - two) / 6 <= 3 * forward(2).launches + 15 * 9 + 60


@pytest.mark.parametrize(
    ("name", "settings"),
    [("rise", {"masks": 48, "cells": 3}), ("score_cam", {}), ("sise", {})],
    ids=lambda value: str(value),
)
def test_a_masked_pass_needs_the_memory_of_a_plain_one_and_its_mask(name, settings):
    """A mask and the masked image are four numbers for each pixel."""
    size, peaks = 64, []
    for chunk in (8, 24):
        needed = run(name, size=size, chunk=chunk, **settings).peak
        plain = forward(chunk, size=size).peak
        assert needed <= plain + 4.6 * 4 * chunk * size**2
        peaks.append(needed)
    # It grows with the chunk and with nothing else.
    assert 2.5 < peaks[1] / peaks[0] < 3.1


@pytest.mark.parametrize(
    ("name", "few", "many"),
    [
        ("rise", {"masks": 32, "cells": 3, "chunk": 8}, {"masks": 128, "cells": 3, "chunk": 8}),
        ("integrated_gradients", {"steps": 16, "chunk": 8}, {"steps": 64, "chunk": 8}),
    ],
)
def test_more_passes_need_no_more_memory(name, few, many):
    assert run(name, **many).peak <= 1.05 * run(name, **few).peak


@pytest.mark.parametrize("arch", ["resnet50", "vgg16"])
@pytest.mark.parametrize(
    ("name", "images", "settings"),
    [
        ("gradcam", 64, {}),
        ("gradcam_pp", 64, {}),
        ("gradient", 64, {}),
        ("fullgrad", 64, {}),
        ("bottleneck", 64, {"steps": 2}),
        ("integrated_gradients", 64, {"steps": 2}),
        ("extremal_perturbation", 16, {"iterations": 3}),
    ],
)
def test_a_batch_of_the_reproduction_fits_a_gpu_of_16_gb(name, images, settings, arch, on_meta):
    """64 images of 224 pixels, or one default chunk. More steps need no more memory, and the weights are at most 0.54 GB."""
    assert run(name, images, "meta", arch, 224, shared=True, **settings).peak < 15e9


@pytest.mark.parametrize("arch", ["resnet50", "vgg16"])
def test_a_default_chunk_of_masked_passes_fits_a_gpu_of_16_gb(arch):
    chunk = attribution.get("rise").chunk
    assert chunk == attribution.get("score_cam").chunk == attribution.get("sise").chunk
    assert forward(chunk, "meta", arch, 224).peak + 4.6 * 4 * chunk * 224**2 < 15e9
