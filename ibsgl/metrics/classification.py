"""Does the network still classify? Accuracy on single-label sets, mean average precision on multi-label ones."""

from __future__ import annotations

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


def mean_average_precision(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of :func:`average_precision` over the classes that occur; logits and labels (N,K)."""
    values = torch.stack([average_precision(logits[:, k], labels[:, k]) for k in range(logits.shape[1])])
    return values.nanmean().item()


def classification_score(logits: torch.Tensor, labels: torch.Tensor, multilabel: bool) -> tuple[str, float]:
    """``("map", …)`` on a multi-label network, ``("accuracy", …)`` otherwise; in [0,1]."""
    if multilabel:
        return "map", mean_average_precision(logits, labels)
    return "accuracy", accuracy(logits, labels).mean().item()
