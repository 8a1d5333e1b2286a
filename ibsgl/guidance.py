"""Information-bottleneck guided localization (Section 3.2: Eq. 10, Eq. 11 and Algorithm 1).

Algorithm 1 alternates two minimisations. The inner one moves the feature map A to A' so that the gradient saliency L^c comes
closer to L^ib and away from L^p (Eq. 10). The outer one trains the network to classify while its A becomes like A' (Eq. 11).
The paper gives neither the size nor the number of the inner steps; ``config/README.md`` shows how ours were chosen.
"""

from __future__ import annotations

import torch
from torch import nn

from ibsgl.saliency import class_saliency
from ibsgl.suppression import suppression_loss

CROSS_ENTROPIES = ("distribution", "binary")
SUPPRESS_WHEN = ("always", "misclassified", "correct", "never")
DIVERGENCES = ("softmax", "sum")


# Share of a uniform distribution mixed into q_c. ReLU leaves cells of L^c at exactly zero, where the logarithm has neither a
# value nor a usable slope; with it L_CE is continuous and at most ln(h·w / SMOOTHING).
SMOOTHING = 0.01


def _spatial_distribution(maps: torch.Tensor) -> torch.Tensor:
    """(B,h,w) ≥ 0 → maps that sum to 1; an all-zero map stays all zero."""
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
        form: ``distribution``: −Σ q_ib ln q_c over the maps as spatial distributions. ``binary``: the mean over pixels of
            the binary cross-entropy after min–max of both.

    Returns:
        (B,) nats, ≥ 0. An L^c that is zero everywhere gets the largest value there is, so that emptying the map is never a
        way to please it; an L^ib that is zero everywhere asks for nothing and gives 0.
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
        labels: (B,K) bool, all classes present on a multi-label image; where every class is present, c alone is excluded.

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
    l_ib: torch.Tensor,
    *,
    r: float,
    labels: torch.Tensor | None = None,
    form: str = "distribution",
    create_graph: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two terms of Eq. 10 for every image.

    Returns:
        L_CE(L^c, L^ib) (B,), L_SS(L^c, L^p) (B,), and whether c is the likeliest class (B,) bool.
    """
    with torch.enable_grad():
        if not features.requires_grad:
            features = features.detach().requires_grad_(True)
        logits = head(features)
        p = other_class(logits.detach(), target, labels)
        # Both maps are gradients of these logits: one pass of the head gives all three.
        l_c, l_p = (class_saliency(logits, features, of, create_graph) for of in (target, p))
    return saliency_cross_entropy(l_c, l_ib, form), suppression_loss(l_c, l_p, r), logits.argmax(1) == target


def localization_loss(
    head: nn.Module,
    features: torch.Tensor,
    target: torch.Tensor,
    l_ib: torch.Tensor,
    *,
    beta: float,
    r: float,
    labels: torch.Tensor | None = None,
    when: str = "always",
    form: str = "distribution",
) -> torch.Tensor:
    """Eq. 10's summand L_CE(L^c, L^ib) + β·L_SS(L^c, L^p) (B,), differentiable in ``features`` and the head.

    ``when`` says for which images the suppression term counts: ``always`` (Eq. 10), ``misclassified``, ``correct`` (the
    literal "if c = p" of Algorithm 1, with p the predicted class) or ``never``.
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


def guidance_target(
    head: nn.Module,
    features: torch.Tensor,
    target: torch.Tensor,
    l_ib: torch.Tensor,
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
    """A' (Algorithm 1, line 10): A after ``steps`` descents of Eq. 10, clipped to A' ≥ 0 like the ReLU output it stands for.

    Args:
        head: in evaluation mode.
        features: A (B,C,h,w); where it is negative itself, that value is A''s floor.
        target: c (B,) int64.
        l_ib: (B,h,w).
        beta, r: of Eq. 10 and Eq. 1.
        step_size: length of a step; with ``relative`` as a fraction of the image's ‖A‖ along the normalised gradient,
            otherwise the factor of the raw gradient.
        steps: number of descents.
        labels, when, form: see :func:`localization_loss`.

    Returns:
        (B,C,h,w), detached. Each image's A' depends on that image alone.
    """
    moved = features.detach()
    # A network whose last activation lets negative values through keeps them.
    floor = moved.clamp_max(0)
    length = moved.flatten(1).norm(dim=1)
    for _ in range(steps):
        with torch.enable_grad():
            moved.requires_grad_(True)
            loss = localization_loss(head, moved, target, l_ib, beta=beta, r=r, labels=labels, when=when, form=form)
            # Where L^c and L^p are flat (a dead head) Eq. 10 does not depend on A and there is nothing to follow.
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
    """D_KL(A ‖ A') of Eq. 11, each channel a distribution over space.

    Args:
        features: A (B,C,h,w), differentiable.
        features_target: A' (B,C,h,w).
        normalise: ``softmax`` over space, or ``sum`` (each non-negative channel divided by its sum).
        reduction: over channels, ``sum`` or ``mean``.

    Returns:
        (B,) nats, ≥ 0.
    """
    if normalise == "softmax":
        log_p, log_q = (maps.flatten(2).log_softmax(-1) for maps in (features, features_target))
    elif normalise == "sum":
        # The floor keeps a channel that is zero everywhere finite: it becomes the uniform distribution.
        floored = (maps.flatten(2) + 1e-6 for maps in (features, features_target))
        log_p, log_q = (maps.log() - maps.sum(-1, keepdim=True).log() for maps in floored)
    else:
        raise ValueError(f"divergence normalise {normalise!r} is unknown; take one of {', '.join(DIVERGENCES)}")
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"divergence reduction {reduction!r} is unknown; take sum or mean")
    return divergence.sum(1) if reduction == "sum" else divergence.mean(1)
