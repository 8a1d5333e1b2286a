"""Networks, split at their last convolutional feature map, and functions that the saliency methods share."""

from ibsgl.networks.chunks import chunked, in_pieces
from ibsgl.networks.gradients import feature_gradient, features_and_gradient, logit_gradient, shared_gradient
from ibsgl.networks.passes import FastPasses, Precision, fast_passes, forward_pass, input_gradient
from ibsgl.networks.registry import NetworkSettings, build_network, family_of
from ibsgl.networks.split import (
    Normalize,
    SplitNetwork,
    check_batch,
    evaluating,
    missing_stages,
    same_image_groups,
    upsample,
)

__all__ = [
    "FastPasses",
    "NetworkSettings",
    "Normalize",
    "Precision",
    "SplitNetwork",
    "build_network",
    "check_batch",
    "chunked",
    "evaluating",
    "family_of",
    "fast_passes",
    "feature_gradient",
    "features_and_gradient",
    "forward_pass",
    "in_pieces",
    "input_gradient",
    "logit_gradient",
    "missing_stages",
    "same_image_groups",
    "shared_gradient",
    "upsample",
]
