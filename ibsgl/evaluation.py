"""What the tables are made of: saliency maps, their scores, the effect of guidance and the deletion curves.

Every function takes one (image, class) pair per row of a ``pairs`` frame and gives one result per row, in that order. Random
draws are seeded by method and image, so neither batches nor shards show in a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ibsgl import config
from ibsgl.attribution import Attribution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.guidance import localization_losses
from ibsgl.metrics import deletion, faithfulness, localization
from ibsgl.metrics.classification import accuracy
from ibsgl.network import SplitNetwork, autocast, evaluating
from ibsgl.randomness import generator
from ibsgl.training import predict

if TYPE_CHECKING:
    from ibsgl.data.loading import VOCData


def shard(pairs: pd.DataFrame, number: int, shards: int) -> pd.DataFrame:
    """The pairs of every ``shards``-th image, starting at image ``number``; an image's classes stay together."""
    image = pairs.groupby("image_id", sort=False).ngroup()
    return pairs[image % shards == number]


def _batches(
    data: VOCData, pairs: pd.DataFrame, batch_size: int, device: torch.device, desc: str
) -> Iterator[tuple[pd.DataFrame, torch.Tensor, torch.Tensor]]:
    """(rows, images (B,3,H,W), targets (B,)), with a progress bar over the pairs."""
    ids = list(pairs["image_id"])
    with tqdm(total=len(pairs), desc=desc, unit="map", disable=None) as bar:
        for start, (_, images) in zip(range(0, len(ids), batch_size), data.batches(ids, batch_size), strict=True):
            rows = pairs.iloc[start : start + batch_size]
            yield rows, images.to(device), torch.tensor(rows["target"].to_numpy(), device=device)
            bar.update(len(rows))


def compute_maps(
    network: SplitNetwork,
    data: VOCData,
    pairs: pd.DataFrame,
    method: Attribution,
    name: str,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    statistics: FeatureStatistics | None = None,
) -> torch.Tensor:
    """Saliency (N,H,W) float32 on the CPU of ``method``, whose draws are seeded by (seed, name, image id).

    Raises:
        FloatingPointError: the method gave a value that is not finite or is negative.
    """
    if pairs.empty:
        # More shards than images: an empty one is as good as any other.
        return torch.empty(0, data.size, data.size)
    maps = []
    for rows, images, targets in _batches(data, pairs, batch_size, device, name):
        context = {}
        if "statistics" in method.requires:
            context["statistics"] = statistics
        if "region" in method.requires:
            context["region"] = data.regions(rows).to(device)
        generators = [generator(seed, name, image_id, device=device) for image_id in rows["image_id"]]
        saliency = method(network, images, targets, generators, **context).float()
        bad = ~(saliency.isfinite() & (saliency >= 0)).flatten(1).all(1)
        if bad.any():
            row = rows.iloc[int(bad.nonzero()[0])]
            raise FloatingPointError(
                f"{name}: the map of image {row['image_id']}, class {row['class_name']} is not finite and ≥ 0"
            )
        maps.append(saliency.cpu())
    return torch.cat(maps)


def score_maps(
    network: SplitNetwork,
    data: VOCData,
    pairs: pd.DataFrame,
    maps: dict[str, torch.Tensor],
    metrics: config.Metrics,
    *,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """Score the maps of several methods on one network.

    Args:
        maps: (N,H,W) by method, in the order of ``pairs``.

    Returns:
        one row per (method, pair): ``method``, ``image_id``, ``class_name``, ``target``, the localisation metrics, the
        target's probability on the whole image (``p_full``) and on what the map keeps (``p_kept``), Average Drop and
        Average Increase. All in [0,1].
    """
    fill = network.mean.to(device) if metrics.kept.fill == "mean" else torch.zeros(3, 1, 1, device=device)

    def target_probability(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast(device):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        return network.probabilities(logits.float()).gather(1, targets[:, None]).squeeze(1)

    frames = []
    with evaluating(network), torch.inference_mode():
        start = 0
        for rows, images, targets in _batches(data, pairs, batch_size, device, "scores"):
            region = data.regions(rows, metrics.region).to(device)
            p_full = target_probability(images, targets)
            for name, of_method in maps.items():
                saliency = of_method[start : start + len(rows)].to(device)
                kept = faithfulness.keep_top(images, saliency, top=metrics.kept.top, fill=fill, mode=metrics.kept.mode)
                p_kept = target_probability(kept, targets)
                values = {
                    "ebpg": localization.ebpg(saliency, region),
                    "miou": localization.miou(saliency, region, top=metrics.miou.top, mode=metrics.miou.mode),
                    "bbox": localization.bbox(saliency, region, ties=metrics.bbox),
                    "p_full": p_full,
                    "p_kept": p_kept,
                    "average_drop": faithfulness.average_drop(
                        p_full, p_kept, relative=metrics.average_drop == "relative"
                    ),
                    "average_increase": faithfulness.average_increase(p_full, p_kept),
                }
                frame = rows[["image_id", "class_name", "target"]].reset_index(drop=True)
                frames.append(frame.assign(**{k: v.double().cpu().numpy() for k, v in values.items()}, method=name))
            start += len(rows)
    table = pd.concat(frames, ignore_index=True)
    # By method, each in the order of the pairs.
    position = {name: number for number, name in enumerate(maps)}
    return table.sort_values("method", key=lambda names: names.map(position), kind="stable").reset_index(drop=True)


def bottleneck_maps(
    network: SplitNetwork,
    data: VOCData,
    pairs: pd.DataFrame,
    method: Attribution,
    statistics: FeatureStatistics,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> torch.Tensor:
    """L^ib (N,h,w) at the size of the feature map, for the guidance."""
    maps = []
    with evaluating(network):
        for rows, images, targets in _batches(data, pairs, batch_size, device, "bottleneck"):
            generators = [generator(seed, "bottleneck", image_id, device=device) for image_id in rows["image_id"]]
            with torch.no_grad(), autocast(device):
                features = network.stem(images)
            maps.append(method.feature_saliency(network, features.float(), targets, statistics, generators).cpu())
    return torch.cat(maps)


def guidance_effect(
    network: SplitNetwork,
    data: VOCData,
    l_ib: torch.Tensor,
    *,
    r: float,
    cross_entropy: str,
    batch_size: int,
    device: torch.device,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What guidance optimises, on images it was not trained on.

    Args:
        l_ib: (N,h,w) of the held-out pairs.

    Returns:
        ``(losses, predictions)``. ``losses``: one row per held-out pair with ``l_ce`` = L_CE(L^c, L^ib) and ``l_ss`` = L_SS.
        ``predictions``: one row per test image, with ``correct`` and one ``logit_<k>``/``label_<k>`` per class, from which
        accuracy or mAP can be formed again.
    """
    pairs = data.pairs("held_out")
    held_out_labels = dict(zip(data.ids("held_out"), data.labels("held_out").bool(), strict=True))
    cross, suppression = [], []
    with evaluating(network):
        start = 0
        for rows, images, targets in _batches(data, pairs, batch_size, device, "guidance effect"):
            with torch.no_grad(), autocast(device):
                features = network.stem(images)
            labels = torch.stack([held_out_labels[i] for i in rows["image_id"]]).to(device)
            l_ce, l_ss, _ = localization_losses(
                network.head,
                features.float(),
                targets,
                l_ib[start : start + len(rows)].to(device),
                r=r,
                labels=labels if network.multilabel else None,
                form=cross_entropy,
            )
            cross.append(l_ce.cpu())
            suppression.append(l_ss.cpu())
            start += len(rows)
        logits, labels = predict(network, data, "test", batch_size, device), data.labels("test")
    losses = pairs[["image_id", "class_name"]].assign(
        l_ce=torch.cat(cross).double().numpy(), l_ss=torch.cat(suppression).double().numpy()
    )
    predictions = pd.DataFrame({"image_id": data.ids("test"), "correct": accuracy(logits, labels).double().numpy()})
    for k in range(logits.shape[1]):
        predictions[f"logit_{k}"], predictions[f"label_{k}"] = logits[:, k].numpy(), labels[:, k].numpy()
    return losses.reset_index(drop=True), predictions


def deletion_curves(
    network: SplitNetwork,
    data: VOCData,
    pairs: pd.DataFrame,
    maps: torch.Tensor,
    settings: config.Deletion,
    *,
    r: float,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """Figure 4: one row per (pair, repeat, fraction) with the target's ``probability``."""
    fractions = np.linspace(0, 1, settings.points)
    fill = network.mean.to(device) if settings.fill == "mean" else torch.zeros(3, 1, 1, device=device)
    frames = []
    with evaluating(network), torch.inference_mode(), autocast(device):
        start = 0
        for rows, images, targets in _batches(data, pairs, batch_size, device, "deletion"):
            curves = deletion.deletion_curve(
                network,
                images,
                targets,
                maps[start : start + len(rows)].to(device),
                r=r,
                fractions=fractions.tolist(),
                generators=[generator(seed, "deletion", image_id, device=device) for image_id in rows["image_id"]],
                repeats=settings.repeats,
                fill=fill,
                chunk=batch_size,
            )
            keys = pd.MultiIndex.from_product(
                [range(len(rows)), range(settings.repeats), fractions], names=["row", "repeat", "fraction"]
            ).to_frame(index=False)
            identity = rows[["image_id", "class_name"]].iloc[keys["row"]].reset_index(drop=True)
            probability = curves.double().cpu().numpy().ravel()
            frames.append(pd.concat([identity, keys[["repeat", "fraction"]]], axis=1).assign(probability=probability))
            start += len(rows)
    return pd.concat(frames, ignore_index=True)
