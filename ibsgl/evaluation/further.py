"""Further metrics of stored maps: one metric for every (method, image, class) of one variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.attribution.cost import passes_per_map, stage_channels
from ibsgl.attribution.registry import Attribution, Row
from ibsgl.attribution.storage import Maps
from ibsgl.inference import pair_batches
from ibsgl.maps import maps_of_batch
from ibsgl.metrics.further import FurtherMetric, Objects, PairEvidence
from ibsgl.metrics.further.base import Explain
from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.randomness import derive_seed, generator

if TYPE_CHECKING:
    from ibsgl.bottleneck import FeatureStatistics
    from ibsgl.data.loading import ImageDataset

# Rounding may carry a value so far out of the metric's range.
_ROUNDING = 1e-6


def measure_further(
    metric: FurtherMetric,
    name: str,
    data: ImageDataset,
    maps: Maps,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    network: SplitNetwork | None = None,
    methods: Mapping[str, Attribution] | None = None,
    statistics: FeatureStatistics | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One further metric of all maps of one variant.

    Args:
        metric: with its settings.
        name: its registered name, which seeds its draws.
        data: at the network's input size.
        maps: of the variant's methods.
        seed: root seed.
        batch_size: pairs at a time.
        device: where the metric is computed.
        network: the variant, on ``device``. Needed unless the metric requires the maps only.
        methods: by name, those of ``maps``. Needed if the metric requires the method.
        statistics: of the network's features, for methods that require them.

    Returns:
        one row per (method, pair): ``method``, ``image_id``, ``class_name``, ``target`` and ``value`` (NaN: no value); and, by
        method, why it has no values at all.

    Raises:
        ValueError: what the metric requires is missing, or its values have a wrong shape, are infinite, or leave its range.
    """
    if metric.requires != "maps" and network is None:
        raise ValueError(f"{name} requires the network; give --weights")
    calls = methods if metric.requires == "method" else None
    if metric.requires == "method" and sorted(calls or ()) != sorted(maps.labels):
        raise ValueError(
            f"{name}: there are maps of {', '.join(sorted(maps.labels))}, and methods {sorted(calls or ())}"
        )
    passes = _passes(maps, calls, network, data, device)
    reasons = {method: reason for method in maps.labels if (reason := _reason(metric, passes[method]))}
    frames = []
    with evaluating(network) if network is not None else nullcontext():
        batches = _batches(_with_classes(maps.pairs), data, batch_size, device, name, network is not None)
        # Without pairs neither has a batch.
        for (rows, images, targets), read in zip(batches, maps.batches(batch_size, device), strict=True):
            region, objects = data.regions(rows).to(device), _objects(rows)
            for method, saliency in read.items():
                identity = rows[["image_id", "class_name", "target"]].reset_index(drop=True).assign(method=method)
                if method in reasons:
                    frames.append(identity.assign(value=torch.nan))
                    continue
                evidence = PairEvidence(
                    saliency,
                    region,
                    targets,
                    objects,
                    tuple(generator(seed, name, image_id, device=device) for image_id in rows["image_id"]),
                    seed=derive_seed(seed, name),
                    batch_size=batch_size,
                    passes=passes[method],
                    images=images,
                    network=network,
                    explain=None
                    if calls is None
                    else _explain(calls[method], method, data, rows, targets, seed, statistics),
                )
                values = _checked(metric(evidence), metric, name, len(rows))
                frames.append(identity.assign(value=values.double().cpu().numpy()))
    types = {"image_id": str, "class_name": str, "target": int, "method": str, "value": float}
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(types)).astype(types)
    return table, reasons


def _batches(
    pairs: pd.DataFrame, data: ImageDataset, batch_size: int, device: torch.device, name: str, with_images: bool
) -> Iterator[tuple[pd.DataFrame, torch.Tensor | None, torch.Tensor]]:
    """(rows, images (B,3,H,W) if they are needed, targets (B,))."""
    if with_images:
        yield from pair_batches(data, pairs, batch_size, device, name)
        return
    for start in range(0, len(pairs), batch_size):
        rows = pairs.iloc[start : start + batch_size]
        yield rows, None, torch.tensor(rows["target"].to_numpy(), device=device)


def _with_classes(pairs: pd.DataFrame) -> pd.DataFrame:
    """``pairs`` with the column ``classes``: how many classes the image shows. A batch may end between two of them."""
    return pairs.assign(classes=pairs.groupby("image_id")["target"].transform("size"))


def _objects(rows: pd.DataFrame) -> tuple[Objects, ...]:
    return tuple(
        Objects(
            tuple((int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in row.boxes),
            int(row.width),
            int(row.height),
            difficult=row.target in row.difficult,
            classes=int(row.classes),
        )
        for row in rows.itertuples()
    )


def _passes(
    maps: Maps,
    methods: Mapping[str, Attribution] | None,
    network: SplitNetwork | None,
    data: ImageDataset,
    device: torch.device,
) -> dict[str, float | None]:
    """By method, the most passes that one map makes through a part of the network; ``None`` if that is unknown."""
    if not methods or network is None:
        return dict.fromkeys(maps.labels)
    with evaluating(network), torch.inference_mode():
        channels = network.stem(torch.zeros(1, 3, data.size, data.size, device=device)).shape[1]
    stages = stage_channels(network, data.size)
    return {method: passes_per_map(_of_row(methods[method]), channels, stages) for method in maps.labels}


def _of_row(method: Attribution) -> Attribution:
    """The method of a row of the config, which states the cost."""
    return method.method if isinstance(method, Row) else method


def _reason(metric: FurtherMetric, passes: float | None) -> str:
    return metric.unsuited(passes) if hasattr(metric, "unsuited") else ""


def _explain(
    attribution: Attribution,
    method: str,
    data: ImageDataset,
    rows: pd.DataFrame,
    own_targets: torch.Tensor,
    seed: int,
    statistics: FeatureStatistics | None,
) -> Explain:
    """The method as a metric calls it, for the pairs ``rows``."""

    def explain(
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor | None = None,
        pairs: torch.Tensor | None = None,
    ) -> torch.Tensor:
        where = list(range(len(rows))) if pairs is None else pairs.tolist()
        classes = own_targets[where] if targets is None else targets
        made = maps_of_batch(
            network, data, rows.iloc[where], images, classes, {method: attribution}, seed=seed, statistics=statistics
        )
        return made[method].detach()

    return explain


def _checked(values: torch.Tensor, metric: FurtherMetric, name: str, number: int) -> torch.Tensor:
    if values.shape != (number,):
        raise ValueError(f"{name} returned values of the shape {tuple(values.shape)} for {number} pairs")
    low, high = metric.range
    known = values[~values.isnan()]
    if known.isinf().any() or (known < low - _ROUNDING).any() or (known > high + _ROUNDING).any():
        raise ValueError(f"{name} returned a value that is infinite or outside its range [{low:g}, {high:g}]")
    return values
