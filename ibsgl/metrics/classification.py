"""Does the network still classify? Accuracy on single-label sets, mean average precision on multi-label ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (N,K) and one-hot labels (N,K) → (N,) 1.0 where the likeliest class is the image's."""
    return labels.gather(1, logits.argmax(1, keepdim=True)).squeeze(1).float()


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Area under the precision–recall steps of one class: Σ (R_n − R_{n−1}) P_n over descending distinct scores.

    Args:
        scores: (N,).
        labels: (N,) 0 or 1.

    Returns:
        scalar in [0,1]; NaN where no image has the class.
    """
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], labels[order].double().cumsum(0)
    # Images with the same score enter together: precision is read where the score changes.
    last = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)])
    rank = torch.arange(1, len(scores) + 1, device=scores.device)
    precision, recall = (hits / rank)[last], (hits / hits[-1])[last]
    return (torch.diff(recall, prepend=recall.new_zeros(1)) * precision).sum()


def average_precision_11(
    scores: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    """VOC 2007's average precision of one class: over the recalls r = 0, 0.1, … 1 the mean of the best precision at ≥ r.

    As in the devkit's ``VOCevalcls`` (Everingham et al. 2010, Section 4.2.1): precision is read after every image, images of
    the same score come in their order, and images that show the class by ``difficult`` objects only are left out.

    Args:
        scores: (N,).
        labels: (N,) 0 or 1.
        ignored: (N,) bool; these images count neither for nor against.

    Returns:
        scalar in [0,1]; NaN where no image that counts has the class.
    """
    if ignored is not None:
        scores, labels = scores[~ignored], labels[~ignored]
    if not labels.any():
        return torch.tensor(torch.nan, dtype=torch.float64)
    hits = labels[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    # In whole numbers, hits / hits[-1] ≥ n / 10 cannot be missed by a rounding.
    reached = [precision[10 * hits >= n * hits[-1]].max() for n in range(11)]
    return torch.stack(reached).mean()


def mean_average_precision(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of :func:`average_precision` over the classes that occur; logits and labels (N,K)."""
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
    """:func:`classification_score`'s figure first, and on a multi-label network the average precisions behind it.

    Args:
        logits, labels: (N,K).
        class_names: K.
        ignored: (N,K) bool, for :func:`average_precision_11` alone.

    Returns:
        ``accuracy``; or ``map`` and ``map11``, the means of ``ap/<class>`` (:func:`average_precision`) and
        ``ap11/<class>`` (:func:`average_precision_11`) over the classes that occur. In [0,1].
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
    """``("map", …)`` on a multi-label network, ``("accuracy", …)`` otherwise; in [0,1]."""
    if multilabel:
        return "map", mean_average_precision(logits, labels)
    return "accuracy", accuracy(logits, labels).mean().item()
