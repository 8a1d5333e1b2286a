"""Algorithm 1 of guided training (Section 3.2): the target A' of the feature map, and the divergence of Eq. 11.

Algorithm 1 alternates two minimisations. The inner one moves the feature map A to A', so that the gradient saliency L^c comes
closer to L^ib and farther from L^p (Eq. 10). The outer one trains the network to classify, and moves its A closer to A'
(Eq. 11). The paper does not give the size and the number of the inner steps. ``docs/guidance-scan.md`` shows how ours were
chosen.
"""

from __future__ import annotations

import torch
from torch import nn

from ibsgl.guidance.localization import localization_loss

DIVERGENCES = ("softmax", "sum")


def guidance_target(
    head: nn.Module,
    features: torch.Tensor,
    target: torch.Tensor,
    l_ib: torch.Tensor | None,
    *,
    beta: float,
    r: float,
    step_size: float,
    steps: int,
    labels: torch.Tensor | None = None,
    when: str = "always",
    form: str = "distribution",
    relative: bool = True,
) -> torch.Tensor:
    """A' (Algorithm 1, line 10): A after ``steps`` steps of gradient descent on Eq. 10.

    A is the output of a ReLU, so A' stays ≥ 0 too.

    Args:
        head: in evaluation mode.
        features: A (B,C,h,w). Where A is negative, A' may go down to that value.
        target: c (B,) int64.
        l_ib: (B,h,w), or ``None``; see :func:`localization_losses`.
        beta, r: those of Eq. 10 and Eq. 1.
        step_size: length of a step. With ``relative`` it is a fraction of the image's ‖A‖, along the normalised gradient.
            Otherwise it is the factor of the raw gradient.
        steps: number of steps.
        labels: see :func:`other_class`.
        when, form: see :func:`localization_loss`.
        relative: see ``step_size``.

    Returns:
        (B,C,h,w), detached. An image's A' does not depend on the other images.
    """
    moved = features.detach()
    # If the network's last activation gives negative values, they stay as they are.
    floor = moved.clamp_max(0)
    length = moved.flatten(1).norm(dim=1)
    for _ in range(steps):
        with torch.enable_grad():
            moved.requires_grad_(True)
            loss = localization_loss(head, moved, target, l_ib, beta=beta, r=r, labels=labels, when=when, form=form)
            # If L^c and L^p are constant (a dead head), Eq. 10 does not depend on A and there is no gradient.
            gradient = torch.autograd.grad(loss.sum(), moved)[0] if loss.requires_grad else torch.zeros_like(moved)
        if relative:
            norm = gradient.flatten(1).norm(dim=1)
            scale = torch.where(norm > 0, step_size * length / norm.clamp_min(1e-30), 0.0)
        else:
            scale = torch.full_like(length, step_size)
        moved = torch.maximum(moved.detach() - scale[:, None, None, None] * gradient, floor)
    return moved.detach()


def feature_divergence(
    features: torch.Tensor, features_target: torch.Tensor, normalise: str = "softmax", reduction: str = "sum"
) -> torch.Tensor:
    """D_KL(A ‖ A') of Eq. 11. Each channel is taken as a distribution over space.

    Args:
        features: A (B,C,h,w), differentiable.
        features_target: A' (B,C,h,w).
        normalise: how a channel becomes a distribution. ``softmax``: by a softmax over space. ``sum``: it is divided by its
            sum, and must be ≥ 0.
        reduction: ``sum`` or ``mean`` over the channels.

    Returns:
        (B,) nats, ≥ 0.

    Raises:
        ValueError: ``normalise`` or ``reduction`` is unknown.
    """
    if normalise == "softmax":
        log_p, log_q = (maps.flatten(2).log_softmax(-1) for maps in (features, features_target))
    elif normalise == "sum":
        # With the constant, a channel that is zero everywhere becomes the uniform distribution instead of NaN.
        positive = (maps.flatten(2) + 1e-6 for maps in (features, features_target))
        log_p, log_q = (maps.log() - maps.sum(-1, keepdim=True).log() for maps in positive)
    else:
        raise ValueError(f"divergence normalise {normalise!r} is unknown; take one of {', '.join(DIVERGENCES)}")
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"divergence reduction {reduction!r} is unknown; take sum or mean")
    return divergence.sum(1) if reduction == "sum" else divergence.mean(1)
