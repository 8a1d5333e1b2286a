"""Grad-CAM against arrays worked out by hand, against CAM, and against the grad-cam package."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM as Reference
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from baselines.gradcam import GradCAM
from ibsgl.networks.split import SplitNetwork, upsample


def _linear_head(gradients) -> nn.Sequential:
    """A head whose logit of class c has exactly the gradient ``gradients[c]`` (C,h,w) everywhere."""
    weight = torch.tensor(gradients, dtype=torch.float32).flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return nn.Sequential(nn.Flatten(), linear)


def test_hand_computed():
    # The stem hands on the image: A = its three colours. Mean gradients of class 0: 0.5, −0.5, 0.
    # 0.5 [[1,0],[0,1]] − 0.5 [[0,2],[1,1]] = [[0.5,−1],[−0.5,0]], rectified [[0.5,0],[0,0]].
    # Class 1: means −1, 1, 2:  −[[1,0],[0,1]] + [[0,2],[1,1]] + 2 [[0,0],[0,1]] = [[−1,2],[1,2]],
    # rectified [[0,2],[1,2]].
    features = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 2], [1, 1]], [[0, 0], [0, 1]]]])
    head = _linear_head(
        [
            [[[1, -1], [0, 2]], [[-0.5, 0.5], [0, -2]], [[3, -3], [0, 0]]],
            [[[-4, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 8], [0, 0]]],
        ]
    )
    network = SplitNetwork(nn.Identity(), head)
    maps = GradCAM()(network, features.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    torch.testing.assert_close(maps, torch.tensor([[[0.5, 0], [0, 0]], [[0, 2.0], [1, 2]]]), rtol=0, atol=1e-6)


def test_map_is_rectified_before_it_is_brought_to_image_size():
    # A 1×2 map [4, −4] at the feature map's size, image 1×4: rectified first, then interpolated at half-pixel centres,
    # [4, 3, 1, 0]. Interpolated first it would be [4, 2, 0, 0].
    stem = nn.Sequential(nn.AvgPool2d((1, 2)), nn.Conv2d(3, 1, 1, bias=False))
    stem[1].weight.data = torch.tensor([1.0, -1, 0]).view(1, 3, 1, 1)
    network = SplitNetwork(stem, _linear_head([[[[1, 1]]]]))
    image = torch.tensor([[[[4.0, 4, 0, 0]], [[0, 0, 4, 4]], [[0, 0, 0, 0]]]])
    torch.testing.assert_close(GradCAM()(network, image, torch.tensor([0])), torch.tensor([[[4.0, 3, 1, 0]]]))


def test_equals_cam_behind_a_global_average_pool(networks, images, targets):
    # Zhou et al. 2016: with a pool and a linear layer the gradient at every place is w / (h·w).
    network = networks["resnet"]
    features = network.stem(images)
    weights = network.head[-1].weight[targets] / features[0, 0].numel()
    cam = (weights[:, :, None, None] * features).sum(1).relu()
    assert (cam.amax((1, 2)) > 0).any()
    expected = upsample(cam, images.shape[-2:]).detach()
    torch.testing.assert_close(GradCAM()(network, images, targets), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "vgg", "multilabel"])
def test_matches_the_grad_cam_package(networks, images, name):
    network = networks[name]
    compared = 0
    for target in range(4):
        targets = torch.full((len(images),), target)
        ours = GradCAM()(network, images, targets).numpy()
        with Reference(network, [network.stem]) as cam:
            reference = cam(images, [ClassifierOutputTarget(target)] * len(images))
        # The package scales the map to [0,1], brings it to image size with OpenCV's bilinear (half-pixel centres, as
        # ours) and scales again. Scaling commutes with interpolation, so scaling ours once is the same, up to the 1e-7
        # it adds to each maximum (maps here are 1e-2 to 1 high) and float32 rounding in the two resizers.
        for mine, theirs in zip(ours, reference, strict=True):
            spread = mine.max() - mine.min()
            if spread > 1e-6:
                np.testing.assert_allclose((mine - mine.min()) / spread, theirs, rtol=0, atol=1e-4)
                compared += 1
    assert compared >= 6
