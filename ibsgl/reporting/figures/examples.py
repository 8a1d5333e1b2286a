"""The images of Figures 2 and 3: which are shown, and their maps before and after guidance."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.guidance.localization import other_class
from ibsgl.networks.split import SplitNetwork, evaluating, upsample
from ibsgl.randomness import derive_seed
from ibsgl.saliency import gradient_saliency
from ibsgl.suppression import suppression_loss

if TYPE_CHECKING:
    from ibsgl.data.loading import ImageDataset


def choose_pairs(pairs: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """The (image, class) pairs to show. Classes come in turn. Within a class, the order is that of a hash of the image id.

    Args:
        pairs: one row per image and class, with ``image_id`` and ``class_name``.
        count: how many to take, at least 1.
        seed: decides the order of the classes and of each class's images. The order of the rows has no effect.

    Returns:
        ``count`` rows of ``pairs`` that show different images. If there are fewer images, one row per image.
    """
    if count < 1:
        raise ValueError(f"at least 1 example must be shown, not {count}")
    images, names = pairs["image_id"].to_numpy(), pairs["class_name"].to_numpy()
    ranked = sorted(range(len(pairs)), key=lambda row: derive_seed(seed, "figure", images[row]))
    classes = sorted(set(names), key=lambda name: derive_seed(seed, "figure class", name))
    queues = [deque(row for row in ranked if names[row] == name) for name in classes]
    chosen: list[int] = []
    shown: set[str] = set()
    while any(queues) and len(chosen) < count:
        for queue in queues:
            while queue and images[queue[0]] in shown:
                queue.popleft()
            if queue:
                chosen.append(queue.popleft())
                shown.add(images[chosen[-1]])
    return pairs.iloc[chosen[:count]]


@dataclass(frozen=True, eq=False)
class Explanation:
    """One variant on N images: Eq. 3 for the target class c and for the likeliest other class p.

    Attributes:
        l_c, l_p: (N,S,S) L^c and L^p at image size, in units of the logit, ≥ 0.
        other: (N,) int64, p. On a multi-label network, p is one of the classes that the image does not show.
        target_probability, other_probability: (N,) probabilities of c and p, in [0,1].
        suppression: (N,) L_SS (Eq. 1) at the size of the feature map, in [0, ½].
    """

    l_c: torch.Tensor
    l_p: torch.Tensor
    other: torch.Tensor
    target_probability: torch.Tensor
    other_probability: torch.Tensor
    suppression: torch.Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """N example images, explained by one model before and after guidance.

    Attributes:
        pairs: N rows of the data set's index.
        images: (N,3,S,S) in [0,1].
        class_names: the data set's K names.
        r: fraction of the pixels in Mask_r (Eq. 1).
        before, after: the explanations of the pre-trained and of the guided variant.
    """

    pairs: pd.DataFrame
    images: torch.Tensor
    class_names: tuple[str, ...]
    r: float
    before: Explanation
    after: Explanation


def _explain(
    network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, r: float
) -> Explanation:
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(images)
            logits = network.head(features)
        other = other_class(logits, targets, labels if network.multilabel else None)
        l_c, l_p = (gradient_saliency(network.head, features, classes) for classes in (targets, other))
    probabilities = network.probabilities(logits)
    return Explanation(
        l_c=upsample(l_c, images.shape[-2:]).cpu(),
        l_p=upsample(l_p, images.shape[-2:]).cpu(),
        other=other.cpu(),
        target_probability=probabilities.gather(1, targets[:, None])[:, 0].cpu(),
        other_probability=probabilities.gather(1, other[:, None])[:, 0].cpu(),
        suppression=suppression_loss(l_c, l_p, r).cpu(),
    )


def suppression_examples(
    before: SplitNetwork,
    after: SplitNetwork,
    data: ImageDataset,
    pairs: pd.DataFrame,
    device: torch.device,
    *,
    r: float = 0.35,
) -> Examples:
    """Explain ``pairs`` with the pre-trained and the guided variant of a model, all images at once.

    Args:
        before, after: the pre-trained and the guided variant, on ``device``.
        data: at the networks' input size.
        pairs: N rows of the index, for example those of :func:`choose_pairs`.
        device: where the images are explained.
        r: fraction of the pixels in Mask_r (Eq. 1).
    """
    ids = list(pairs["image_id"])
    images = data.images(ids)
    targets = torch.tensor(pairs["target"].to_numpy(), device=device)
    labels = torch.zeros(len(ids), len(data.index.class_names), dtype=torch.bool)
    present = data.index.table.groupby("image_id")["target"]
    for row, image_id in zip(labels, ids, strict=True):
        row[present.get_group(image_id).tolist()] = True
    arguments = (images.to(device), targets, labels.to(device), r)
    return Examples(
        pairs=pairs,
        images=images,
        class_names=tuple(data.index.class_names),
        r=r,
        before=_explain(before, *arguments),
        after=_explain(after, *arguments),
    )
