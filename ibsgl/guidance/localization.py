"""The inner problem of guided training (Eq. 10): L^c closer to L^ib and farther from L^p."""

from __future__ import annotations

import torch
from torch import nn

from ibsgl.saliency import class_saliency
from ibsgl.suppression import suppression_loss

CROSS_ENTROPIES = ("distribution", "binary")
SUPPRESS_WHEN = ("always", "misclassified", "correct", "never")
# The share of a uniform distribution in q_c. After the ReLU, cells of L^c can be exactly zero, where the logarithm is not
# finite. With the uniform share, L_CE is continuous and at most ln(h·w / SMOOTHING).
SMOOTHING = 0.01


def _spatial_distribution(maps: torch.Tensor) -> torch.Tensor:
    """(B,h,w) ≥ 0 → maps whose sum is 1. A map that is zero everywhere stays zero."""
    total = maps.sum((1, 2), keepdim=True)
    return maps / total.masked_fill(total <= 0, 1)


def _min_max(maps: torch.Tensor) -> torch.Tensor:
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp_min(1e-12)).view_as(maps)


def saliency_cross_entropy(l_c: torch.Tensor, l_ib: torch.Tensor, form: str = "distribution") -> torch.Tensor:
    """L_CE(L^c, L^ib) of Eq. 10.

    Args:
        l_c: (B,h,w) gradient saliency, ≥ 0; differentiable.
        l_ib: (B,h,w) bottleneck saliency, ≥ 0; the reference.
        form: ``distribution``: −Σ q_ib ln q_c, with both maps as distributions over space. ``binary``: the mean over pixels of
            the binary cross-entropy, after both maps are scaled to [0, 1] by their minimum and maximum.

    Returns:
        (B,) nats, ≥ 0. With ``distribution``, an L^c that is zero everywhere has the largest possible value, so an empty map is
        never the best, and an L^ib that is zero everywhere gives 0.

    Raises:
        ValueError: ``form`` is unknown.
    """
    if form == "distribution":
        q_c = (1 - SMOOTHING) * _spatial_distribution(l_c) + SMOOTHING / l_c[0].numel()
        return -(_spatial_distribution(l_ib) * q_c.log()).sum((1, 2))
    if form == "binary":
        prediction = _min_max(l_c).clamp(1e-6, 1 - 1e-6)
        return nn.functional.binary_cross_entropy(prediction, _min_max(l_ib), reduction="none").mean((1, 2))
    raise ValueError(f"cross-entropy form {form!r} is unknown; take one of {', '.join(CROSS_ENTROPIES)}")


def other_class(logits: torch.Tensor, target: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """p (Section 3.1): the likeliest class that is not in the ground truth.

    Args:
        logits: (B,K), K ≥ 2.
        target: (B,) int64, the class c.
        labels: (B,K) bool, the classes that a multi-label image shows; ``None``: c alone. If an image shows all classes, only c
            is excluded.

    Returns:
        (B,) int64.
    """
    excluded = nn.functional.one_hot(target, logits.shape[1]).bool()
    if labels is not None:
        present = labels.bool() | excluded
        excluded = torch.where(present.all(1, keepdim=True), excluded, present)
    return logits.masked_fill(excluded, -torch.inf).argmax(1)


def localization_losses(
    head: nn.Module,
    features: torch.Tensor,
    target: torch.Tensor,
    l_ib: torch.Tensor | None,
    *,
    r: float,
    labels: torch.Tensor | None = None,
    form: str = "distribution",
    create_graph: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two terms of Eq. 10 for every image.

    Args:
        head: in evaluation mode.
        features: A (B,C,h,w).
        target: c (B,) int64.
        l_ib: (B,h,w); ``None``: there is no map to move to, and L_CE is 0.
        r: fraction of the pixels in Mask_r (Eq. 1).
        labels: see :func:`other_class`.
        form: see :func:`saliency_cross_entropy`.
        create_graph: whether the terms can be differentiated in ``features`` and the head.

    Returns:
        L_CE(L^c, L^ib) (B,), L_SS(L^c, L^p) (B,), and whether c is the likeliest class (B,) bool.
    """
    with torch.enable_grad():
        if not features.requires_grad:
            features = features.detach().requires_grad_(True)
        logits = head(features)
        p = other_class(logits.detach(), target, labels)
        # Both maps are gradients of these logits, so one pass of the head is enough.
        l_c, l_p = (class_saliency(logits, features, classes, create_graph) for classes in (target, p))
    suppression = suppression_loss(l_c, l_p, r)
    cross_entropy = torch.zeros_like(suppression) if l_ib is None else saliency_cross_entropy(l_c, l_ib, form)
    return cross_entropy, suppression, logits.argmax(1) == target


def localization_loss(
    head: nn.Module,
    features: torch.Tensor,
    target: torch.Tensor,
    l_ib: torch.Tensor | None,
    *,
    beta: float,
    r: float,
    labels: torch.Tensor | None = None,
    when: str = "always",
    form: str = "distribution",
) -> torch.Tensor:
    """The term of Eq. 10 for each image: L_CE(L^c, L^ib) + β·L_SS(L^c, L^p).

    Args:
        head, features, target, l_ib, r, labels, form: see :func:`localization_losses`.
        beta: β.
        when: the images for which the suppression term L_SS counts. ``always`` is Eq. 10. ``correct`` is "if c = p" of
            Algorithm 1, with the predicted class as p. Also ``misclassified`` and ``never``.

    Returns:
        (B,), differentiable in ``features`` and the head.

    Raises:
        ValueError: ``when`` or ``form`` is unknown.
    """
    cross_entropy, suppression, correct = localization_losses(
        head, features, target, l_ib, r=r, labels=labels, form=form, create_graph=True
    )
    if when not in SUPPRESS_WHEN:
        raise ValueError(f"suppression.when {when!r} is unknown; take one of {', '.join(SUPPRESS_WHEN)}")
    active = {
        "always": torch.ones_like(correct),
        "misclassified": ~correct,
        "correct": correct,
        "never": torch.zeros_like(correct),
    }[when]
    return cross_entropy + beta * suppression * active
