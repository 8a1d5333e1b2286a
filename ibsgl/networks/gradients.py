"""Gradients of a class's logit with respect to the feature map A, through the head alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from ibsgl.networks.split import SplitNetwork, check_batch, evaluating

_Arguments = tuple[SplitNetwork, torch.Tensor, torch.Tensor]
_Result = tuple[torch.Tensor, torch.Tensor]
# The last call of :func:`features_and_gradient`, in a list of at most one. ``None`` outside :func:`shared_gradient`.
_LAST_CALL: ContextVar[list[tuple[_Arguments, _Result]] | None] = ContextVar("_LAST_CALL", default=None)


@contextmanager
def shared_gradient() -> Iterator[None]:
    """Inside this block, several methods share one pass over a batch.

    :func:`features_and_gradient` keeps its last result, and returns it again if it is called with the same network and the
    very same tensors. The network must not change inside the block.
    """
    token = _LAST_CALL.set([])
    try:
        yield
    finally:
        _LAST_CALL.reset(token)


def features_and_gradient(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and ∂y^c/∂A, both (B,C,h,w) and detached, in evaluation mode.

    This needs one pass of the stem; the gradient goes through the head alone. Do not change the two tensors in place: inside
    :func:`shared_gradient` they may be returned again.
    """
    check_batch(images, targets)
    arguments, last = (network, images, targets), _LAST_CALL.get()
    if last and all(a is b for a, b in zip(last[0][0], arguments, strict=True)):
        return last[0][1]
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(images)
        with torch.enable_grad():
            gradient = feature_gradient(network.head, features.requires_grad_(True), targets)
    result = features.detach(), gradient
    if last is not None:
        last[:] = [(arguments, result)]
    return result


def feature_gradient(
    head: nn.Module, features: torch.Tensor, targets: torch.Tensor, create_graph: bool = False
) -> torch.Tensor:
    """∂y^c/∂A (B,C,h,w) at ``features`` A for each image's class c (B,). ``features`` must require a gradient."""
    return logit_gradient(head(features), features, targets, create_graph)


def logit_gradient(
    logits: torch.Tensor,
    features: torch.Tensor,
    targets: torch.Tensor,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> torch.Tensor:
    """As :func:`feature_gradient`, from logits (B,K) that the head has already computed from ``features``."""
    # The sum has one logit per image, so its gradient is each image's own.
    score = logits.gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, features, create_graph=create_graph, retain_graph=retain_graph)[0]
