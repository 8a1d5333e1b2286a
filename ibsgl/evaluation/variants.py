"""Everything that is measured on the test pairs, for all variants of one network at once.

An image is read once, and one pass of each network over it serves the predictions and the scores of all methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ibsgl.attribution.registry import Attribution
from ibsgl.attribution.storage import Maps
from ibsgl.data.loading import ahead
from ibsgl.evaluation.classification import predictions
from ibsgl.evaluation.deletion import deletion_curves
from ibsgl.evaluation.scoring import CROSS_SCORED, image_logits, score_maps, target_probabilities
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.inference import pair_batches
from ibsgl.maps import maps_of_batch
from ibsgl.metrics import METRICS, MetricSettings
from ibsgl.networks.split import SplitNetwork, evaluating

if TYPE_CHECKING:
    from ibsgl.bottleneck import FeatureStatistics
    from ibsgl.data.loading import ImageDataset


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on the test pairs, each a table with the column ``variant``.

    Attributes:
        scores: see :func:`ibsgl.evaluation.scoring.score_maps`.
        predictions: see :func:`ibsgl.evaluation.classification.predictions`.
        curves: see :func:`ibsgl.evaluation.deletion.deletion_curves`. Each variant has the curves of its own Eq. 3 maps.
    """

    scores: pd.DataFrame
    predictions: pd.DataFrame
    curves: pd.DataFrame


def measure_variants(
    networks: Mapping[str, SplitNetwork],
    data: ImageDataset,
    pairs: pd.DataFrame,
    methods: Mapping[str, Mapping[str, Attribution]],
    stored: Mapping[str, Maps],
    metrics: MetricSettings,
    deletion: DeletionSettings,
    *,
    r: float,
    seed: int,
    reference: str,
    batch_size: int,
    device: torch.device,
    statistics: FeatureStatistics | None = None,
) -> Measured:
    """Make the maps of ``methods``, and measure them, the stored maps and the networks.

    Args:
        networks: by variant, on ``device``. All are in memory at once.
        data: at the networks' input size.
        pairs: rows of ``data.pairs("test")``. The pairs of one image are neighbours.
        methods: by variant and name, the methods whose maps are made here. Eq. 3 (``gradient``) is one on every variant.
        stored: by variant, the maps that exist already, of the same pairs. A variant without maps may be missing.
        metrics: the settings of all metrics.
        deletion: the settings of the deletion curves.
        r: share of the image's pixels in the region that the curves delete.
        seed: root seed of the maps' and curves' random draws.
        reference: the variant of the cross-scoring; see :func:`ibsgl.evaluation.scoring.scorers`.
        batch_size: images per batch.
        device: where the networks run.
        statistics: feature statistics, for methods that require them.

    Raises:
        ValueError: variants or methods do not fit together.
        FloatingPointError: a method returned a value that is not finite, or is negative.
    """
    _check(networks, methods, stored, reference)
    readers = {variant: ahead(maps.batches(batch_size, device)) for variant, maps in stored.items()}
    scores, curves = [], []
    ids: list[str] = []
    logits: dict[str, list[torch.Tensor]] = {
        variant: [torch.zeros(0, len(data.index.class_names))] for variant in networks
    }
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network))
        for rows, images, targets in pair_batches(data, pairs, batch_size, device, "evaluation"):
            first = ~rows["image_id"].duplicated().to_numpy()
            # The last batch may have had other classes of the first image.
            new = first & ~rows["image_id"].isin(ids[-1:]).to_numpy()
            image_of_pair = pd.factorize(rows["image_id"])[0]
            ids += rows["image_id"][new].tolist()
            p_full, maps = {}, {}
            for variant, network in networks.items():
                with torch.inference_mode():
                    whole = image_logits(network, images[first])[image_of_pair]
                    p_full[variant] = target_probabilities(network, whole, targets)
                logits[variant].append(whole[new].cpu())
                made = maps_of_batch(
                    network, data, rows, images, targets, methods[variant], seed=seed, statistics=statistics
                )
                read = next(readers[variant]) if variant in readers else {}
                maps[variant] = made | read
                own = deletion_curves(
                    network,
                    rows,
                    images,
                    targets,
                    made[CROSS_SCORED],
                    deletion,
                    r=r,
                    seed=seed,
                    batch_size=batch_size,
                )
                curves.append(own.assign(variant=variant))
            region = data.regions(rows, metrics.region).to(device)
            scores.append(
                score_maps(networks, rows, images, targets, region, p_full, maps, metrics, reference=reference)
            )
    of_images = {variant: torch.cat(parts) for variant, parts in logits.items()}
    return Measured(
        scores=pd.concat(scores, ignore_index=True) if scores else _no_scores(),
        predictions=predictions(data, "test", ids, of_images),
        curves=pd.concat(curves, ignore_index=True) if curves else _no_curves(),
    )


def _check(
    networks: Mapping[str, SplitNetwork],
    methods: Mapping[str, Mapping[str, Attribution]],
    stored: Mapping[str, Maps],
    reference: str,
) -> None:
    """``ValueError`` unless the arguments of :func:`measure_variants` fit together."""
    if networks.keys() != methods.keys():
        raise ValueError(f"there are networks of {', '.join(networks)}, and methods for {', '.join(methods)}")
    if reference not in networks:
        raise ValueError(f"there is no network of the variant {reference!r}")
    for variant in networks:
        if CROSS_SCORED not in methods[variant]:
            raise ValueError(f"{variant}: the method {CROSS_SCORED!r} is missing")
    for variant, maps in stored.items():
        if variant not in networks:
            raise ValueError(f"there are maps of the variant {variant!r}, but no network")
        if twice := sorted(maps.labels.keys() & methods[variant].keys()):
            raise ValueError(f"{variant}: the maps of {twice[0]!r} are stored, and are to be made too")


def _no_scores() -> pd.DataFrame:
    """The scores of no pair. With more shards than images, some shards are empty."""
    types: dict[str, type] = dict.fromkeys(("image_id", "class_name", "variant", "scored_on", "method"), str)
    types |= {"target": int} | dict.fromkeys(("p_full", "p_kept", *METRICS), float)
    return pd.DataFrame(columns=list(types)).astype(types)


def _no_curves() -> pd.DataFrame:
    types = {"image_id": str, "class_name": str, "repeat": int, "fraction": float, "probability": float, "variant": str}
    return pd.DataFrame(columns=list(types)).astype(types)
