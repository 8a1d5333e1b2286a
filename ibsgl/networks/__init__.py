"""Networks, split at their last convolutional feature map, and functions that the saliency methods share."""

from ibsgl.networks.chunks import chunked, in_pieces
from ibsgl.networks.gradients import feature_gradient, features_and_gradient, logit_gradient, shared_gradient
from ibsgl.networks.registry import NetworkSettings, build_network, family_of
from ibsgl.networks.split import (
    Normalize,
    SplitNetwork,
    autocast,
    check_batch,
    evaluating,
    missing_stages,
    same_image_groups,
    upsample,
)

__all__ = [
    "NetworkSettings",
    "Normalize",
    "SplitNetwork",
    "autocast",
    "build_network",
    "check_batch",
    "chunked",
    "evaluating",
    "family_of",
    "feature_gradient",
    "features_and_gradient",
    "in_pieces",
    "logit_gradient",
    "missing_stages",
    "same_image_groups",
    "shared_gradient",
    "upsample",
]
