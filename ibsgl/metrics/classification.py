"""How well a network classifies: accuracy on single-label sets, mean average precision on multi-label sets."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (N,K) and one-hot labels (N,K) → (N,) 1.0 if the likeliest class is the image's class, else 0.0."""
    return labels.gather(1, logits.argmax(1, keepdim=True)).squeeze(1).float()


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Area under the precision–recall steps of one class: Σ (R_n − R_{n−1}) P_n over the distinct scores, highest first.

    Args:
        scores: (N,).
        labels: (N,) 0 or 1.

    Returns:
        scalar in [0,1], or NaN if no image has the class.
    """
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], labels[order].double().cumsum(0)
    # Images with the same score count together: precision is taken where the score changes.
    last = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)])
    rank = torch.arange(1, len(scores) + 1, device=scores.device)
    precision, recall = (hits / rank)[last], (hits / hits[-1])[last]
    return (torch.diff(recall, prepend=recall.new_zeros(1)) * precision).sum()


def average_precision_11(
    scores: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    """VOC 2007's average precision of one class: the mean over r = 0, 0.1, … 1 of the highest precision at a recall ≥ r.

    As in the devkit's ``VOCevalcls`` (Everingham et al. 2010, Section 4.2.1), precision is taken after every image, and images
    with the same score keep their order. Images that show only ``difficult`` objects of the class are left out.

    Args:
        scores: (N,).
        labels: (N,) 0 or 1.
        ignored: (N,) bool, the images that are left out.

    Returns:
        scalar in [0,1], or NaN if no image that counts has the class.
    """
    if ignored is not None:
        scores, labels = scores[~ignored], labels[~ignored]
    if not labels.any():
        return torch.tensor(torch.nan, dtype=torch.float64)
    hits = labels[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    # hits / hits[-1] ≥ n / 10, without division, so that there is no rounding error.
    reached = [precision[10 * hits >= n * hits[-1]].max() for n in range(11)]
    return torch.stack(reached).mean()


def mean_average_precision(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of :func:`average_precision` over the classes that at least one image has. Logits and labels are (N,K)."""
    values = torch.stack([average_precision(logits[:, k], labels[:, k]) for k in range(logits.shape[1])])
    return values.nanmean().item()


def classification_metrics(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_names: Sequence[str],
    *,
    multilabel: bool,
    ignored: torch.Tensor | None = None,
) -> dict[str, float]:
    """How well a network classifies, as one value or more by name.

    Args:
        logits, labels: (N,K).
        class_names: K names.
        multilabel: whether images may show several classes.
        ignored: (N,K) bool, the images that :func:`average_precision_11` leaves out for a class.

    Returns:
        ``accuracy``; with ``multilabel``, ``map`` and ``map11``, the means over the classes of ``ap/<class>``
        (:func:`average_precision`) and ``ap11/<class>`` (:func:`average_precision_11`), and these. A class that no image has is
        left out. In [0,1].
    """
    key, value = classification_score(logits, labels, multilabel)
    if not multilabel:
        return {key: value}
    area, eleven = {}, {}
    for k, name in enumerate(class_names):
        area[f"ap/{name}"] = average_precision(logits[:, k], labels[:, k])
        left_out = None if ignored is None else ignored[:, k]
        eleven[f"ap11/{name}"] = average_precision_11(logits[:, k], labels[:, k], left_out)
    mean = torch.stack(list(eleven.values())).nanmean()
    return {key: value} | {
        name: value.item() for name, value in {"map11": mean, **area, **eleven}.items() if not value.isnan()
    }


def classification_score(logits: torch.Tensor, labels: torch.Tensor, multilabel: bool) -> tuple[str, float]:
    """Name and value, in [0,1], of the score: ``map`` with ``multilabel``, otherwise ``accuracy``.

    Logits and labels are (N,K).
    """
    if multilabel:
        return "map", mean_average_precision(logits, labels)
    return "accuracy", accuracy(logits, labels).mean().item()
