"""Insertion and deletion: by hand with a network that sums pixels, against a slow loop, and against RISE's blur."""

import numpy as np
import pytest
import torch
from pairs import evidence, summing_network, with_identity
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from torch import nn

from ibsgl.metrics.further import get
from ibsgl.metrics.further.insertion_deletion import blur_kernel, blurred, map_order_curve
from ibsgl.networks import SplitNetwork


def image_of(values):
    """An image of equal colours (1,3,2,2)."""
    return torch.tensor(values).view(1, 1, 2, 2).expand(1, 3, 2, 2)


def test_deletion_by_hand():
    """The probability is the mean: 0.5 of the pixels 0.8, 0.6, 0.4, 0.2, that go in the order of the map."""
    images, saliency = image_of([0.8, 0.6, 0.4, 0.2]), torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    found = evidence(saliency, images=images, network=with_identity(summing_network()))
    assert map_order_curve(found, 4, "deletion")[0].tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05, 0.0], abs=1e-6)
    # Trapezoid: (0.5/2 + 0.3 + 0.15 + 0.05 + 0/2) / 4.
    assert get("deletion", steps=4)(found).item() == pytest.approx(0.1875, abs=1e-6)
    assert map_order_curve(found, 2, "deletion")[0].tolist() == pytest.approx([0.5, 0.15, 0.0], abs=1e-6)


def test_the_reverse_order_deletes_the_important_pixels_last():
    images, saliency = image_of([0.8, 0.6, 0.4, 0.2]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    found = evidence(saliency, images=images, network=with_identity(summing_network()))
    assert map_order_curve(found, 4, "deletion")[0].tolist() == pytest.approx([0.5, 0.45, 0.35, 0.2, 0.0], abs=1e-6)


def test_insertion_begins_with_the_blurred_image_and_ends_with_the_image():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = with_identity(summing_network())
    found = evidence(torch.rand(2, 16, 16), images=images, network=network)
    curve = map_order_curve(found, 8, "insertion")
    soft = blurred(images, torch.zeros(3, 1, 1))
    assert torch.allclose(curve[:, 0], soft.mean((1, 2, 3)), atol=1e-6)
    assert torch.allclose(curve[:, -1], images.mean((1, 2, 3)), atol=1e-6)


def test_the_blur_is_a_convolution_with_the_filtered_impulse_and_the_mean_colour_outside():
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    assert torch.allclose(blur_kernel(), torch.from_numpy(kernel).float())
    assert blur_kernel().sum().item() == pytest.approx(1)
    images, mean = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4, 0.5, 0.6])
    for channel in range(3):
        shifted = images[0, channel].numpy() - mean[channel].item()
        expected = convolve2d(shifted, kernel, mode="same") + mean[channel].item()
        found = blurred(images, mean[:, None, None])[0, channel]
        assert np.allclose(found.numpy(), expected, atol=1e-5)


class Pooled(nn.Module):
    def forward(self, features):
        return features.amax((2, 3))


@pytest.mark.parametrize("name", ["insertion", "deletion"])
def test_it_agrees_with_a_loop_that_changes_one_image_step_by_step(name):
    torch.manual_seed(0)
    network = SplitNetwork(
        nn.Conv2d(3, 5, 3), Pooled(), mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3], multilabel=True
    ).eval()
    images, saliency, targets = torch.rand(3, 3, 14, 14), torch.rand(3, 14, 14), torch.tensor([0, 4, 2])
    steps = 196 // 14
    areas = []
    for image, own, target in zip(images, saliency, targets, strict=True):
        black, soft = torch.zeros_like(image), blurred(image[None], network.mean)[0]
        shown, end = (soft.clone(), image) if name == "insertion" else (image.clone(), black)
        order, curve = np.argsort(-own.numpy().ravel(), kind="stable"), []
        for step in range(steps + 1):
            with torch.no_grad():
                curve.append(network(shown[None]).sigmoid()[0, target].item())
            for pixel in order[14 * step : 14 * (step + 1)]:
                y, x = divmod(int(pixel), 14)
                shown[:, y, x] = end[:, y, x]
        areas.append((sum(curve) - curve[0] / 2 - curve[-1] / 2) / steps)
    found = evidence(saliency, targets=targets, images=images, network=network, batch_size=5)
    assert get(name, steps=steps)(found).tolist() == pytest.approx(areas, abs=1e-5)


def test_the_size_of_the_batches_does_not_show():
    torch.manual_seed(0)
    network = SplitNetwork(nn.Conv2d(3, 5, 3), Pooled()).eval()
    images, saliency = torch.rand(2, 3, 10, 10), torch.rand(2, 10, 10)
    values = [
        get("deletion", steps=7)(evidence(saliency, images=images, network=network, batch_size=size))
        for size in (1, 3, 64)
    ]
    assert torch.allclose(values[0], values[1], atol=1e-6)
    assert torch.allclose(values[0], values[2], atol=1e-6)


def test_it_needs_the_network():
    with pytest.raises(ValueError, match="there is no network"):
        get("deletion")(evidence(torch.rand(1, 4, 4)))
