"""What the tables are made of: saliency maps, their scores, the effect of guidance and the deletion curves.

Every function takes one (image, class) pair per row of a ``pairs`` frame and gives one result per row, in that order. Random
draws are seeded by method and image, so neither batches nor shards show in a result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ibsgl import config
from ibsgl.attribution import Attribution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.guidance import localization_losses
from ibsgl.metrics import deletion, faithfulness, localization
from ibsgl.metrics.classification import accuracy
from ibsgl.network import SplitNetwork, autocast, chunked, evaluating, in_pieces, shared_gradient
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


def _saliency(
    method: Attribution,
    name: str,
    network: SplitNetwork,
    data: VOCData,
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    seed: int,
    statistics: FeatureStatistics | None,
) -> torch.Tensor:
    """The method's maps (B,H,W) float32 of one batch; in smaller batches where the memory does not hold it."""

    def run(start: int, stop: int) -> torch.Tensor:
        part, context = slice(start, stop), {}
        # New ones each time: those of a piece that is run again have been drawn from.
        generators = [generator(seed, name, image_id, device=images.device) for image_id in rows["image_id"][part]]
        if "statistics" in method.requires:
            context["statistics"] = statistics
        if "region" in method.requires:
            context["region"] = data.regions(rows[part]).to(images.device)
        # The batch itself and no view of it: methods that see the same tensor may share its pass.
        whole = stop - start == len(rows)
        inputs = (images, targets) if whole else (images[part], targets[part])
        return method(network, *inputs, generators, **context).float()

    return torch.cat(list(chunked(run, len(rows), len(rows), images.device)))


def compute_maps(
    network: SplitNetwork,
    data: VOCData,
    pairs: pd.DataFrame,
    methods: Mapping[str, Attribution],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    statistics: FeatureStatistics | None = None,
) -> Iterator[tuple[pd.DataFrame, dict[str, torch.Tensor]]]:
    """Saliency of ``methods``, whose draws are seeded by (seed, name, image id), a batch of pairs at a time.

    Yields:
        (rows, {name: saliency (B,H,W) float32 on the CPU}) for successive rows of ``pairs``.

    Raises:
        FloatingPointError: a method gave a value that is not finite or is negative.
    """
    for rows, images, targets in _batches(data, pairs, batch_size, device, ", ".join(methods)):
        maps = {}
        with shared_gradient():
            for name, method in methods.items():
                saliency = _saliency(method, name, network, data, rows, images, targets, seed, statistics)
                bad = ~(saliency.isfinite() & (saliency >= 0)).flatten(1).all(1)
                if bad.any():
                    row = rows.iloc[int(bad.nonzero()[0])]
                    raise FloatingPointError(
                        f"{name}: the map of image {row['image_id']}, class {row['class_name']} is not finite and ≥ 0"
                    )
                maps[name] = saliency.cpu()
        yield rows, maps


_IDENTITY = {"image_id": pa.string(), "target": pa.int64()}


def write_maps(
    path: Path,
    batches: Iterator[tuple[pd.DataFrame, dict[str, torch.Tensor]]],
    methods: Mapping[str, Attribution],
    size: int,
    settings: Mapping[str, Any],
) -> None:
    """Write what :func:`compute_maps` yields to the Parquet file ``path`` as it comes: a row a pair, a column a method.

    The maps (``size``, ``size``) are float32 to the last bit, their bytes split by significance and compressed. What the
    table prints (the methods' labels) and what the maps were made with (``settings``) travel in the file's metadata.
    """
    labels = {name: method.label for name, method in methods.items()}
    saliency = pa.list_(pa.float32(), size * size)
    schema = pa.schema(
        _IDENTITY | dict.fromkeys(methods, saliency),
        metadata={"ibsgl": json.dumps({"labels": labels, "settings": settings})},
    )
    leaves = [f"{name}.list.element" for name in methods]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        use_byte_stream_split=leaves,
    ) as writer:
        for rows, maps in batches:
            columns = [pa.array(rows[key].to_numpy(), kind) for key, kind in _IDENTITY.items()]
            columns += [
                pa.FixedSizeListArray.from_arrays(maps[name].contiguous().numpy().ravel(), type=saliency)
                for name in methods
            ]
            writer.write_table(pa.table(columns, schema=schema))


class Maps:
    """The maps of one shard of test pairs, read a few at a time from the files that :func:`write_maps` made.

    Args:
        files: of the shard, each with other methods' maps.
        pairs: the shard's pairs, in order.
        methods: which maps to read; ``None``: all.

    Raises:
        ValueError: a file's pairs are not ``pairs``, or a method is missing.
    """

    def __init__(self, files: Sequence[Path], pairs: pd.DataFrame, methods: Sequence[str] | None = None):
        self.pairs = pairs
        self.labels: dict[str, str] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self._files: list[tuple[pq.ParquetFile, list[str]]] = []
        for path in files:
            # Buffered ahead, the whole file would be in memory by its end.
            file = pq.ParquetFile(path, pre_buffer=False)
            facts = json.loads(file.schema_arrow.metadata[b"ibsgl"])
            names = [name for name in facts["labels"] if methods is None or name in methods]
            if file.read(list(_IDENTITY)).to_pydict() != {key: pairs[key].tolist() for key in _IDENTITY}:
                raise ValueError(f"{path}: the maps are not those of this index; delete the file and run again")
            self.labels |= {name: facts["labels"][name] for name in names}
            self.settings |= dict.fromkeys(names, facts["settings"])
            self._files.append((file, names))
        if missing := sorted(set(methods or ()) - self.labels.keys()):
            raise ValueError(f"{files[0].parent}: there are no maps of {missing[0]}; delete the folder and run again")

    def batches(self, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """{method: saliency (B,H,W)} for successive ``batch_size`` pairs."""
        readers = [file.iter_batches(batch_size, columns=names) for file, names in self._files if names]
        for parts in zip(*readers, strict=True):
            maps = {}
            for part in parts:
                for name, column in zip(part.schema.names, part.columns, strict=True):
                    values = column.flatten().to_numpy()
                    side = math.isqrt(column.type.list_size)
                    maps[name] = torch.from_numpy(values.reshape(-1, side, side).copy())
            yield maps


def score_maps(
    network: SplitNetwork,
    data: VOCData,
    maps: Maps,
    metrics: config.Metrics,
    *,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """Score the maps of several methods on one network.

    Returns:
        one row per (method, pair): ``method``, ``image_id``, ``class_name``, ``target``, the localisation metrics, the
        target's probability on the whole image (``p_full``) and on what the map keeps (``p_kept``), Average Drop and
        Average Increase. All in [0,1].
    """
    fill = network.mean.to(device) if metrics.kept.fill == "mean" else torch.zeros(3, 1, 1, device=device)

    def target_probability(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast(device):
            logits = in_pieces(network, images.contiguous(memory_format=torch.channels_last))
        return network.probabilities(logits.float()).gather(1, targets[:, None]).squeeze(1)

    # More shards than images: an empty one is as good as any other.
    frames = [pd.DataFrame(columns=["method", "image_id", "class_name", "target"])] * maps.pairs.empty
    with evaluating(network), torch.inference_mode():
        batches = _batches(data, maps.pairs, batch_size, device, "scores")
        for (rows, images, targets), of_methods in zip(batches, maps.batches(batch_size), strict=True):
            region = data.regions(rows, metrics.region).to(device)
            p_full = target_probability(images, targets)
            for name, saliency in of_methods.items():
                saliency = saliency.to(device)
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
    return pd.concat(frames, ignore_index=True)


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
            run = partial(_bottleneck_maps, network, rows, images, targets, method, statistics, seed)
            maps += [part.cpu() for part in chunked(run, len(rows), len(rows), device)]
    return torch.cat(maps)


def _bottleneck_maps(
    network: SplitNetwork,
    rows: pd.DataFrame,
    images: torch.Tensor,
    targets: torch.Tensor,
    method: Attribution,
    statistics: FeatureStatistics,
    seed: int,
    start: int,
    stop: int,
) -> torch.Tensor:
    """L^ib (n,h,w) of the rows ``start`` … ``stop`` of a batch."""
    part = slice(start, stop)
    generators = [generator(seed, "bottleneck", image_id, device=images.device) for image_id in rows["image_id"][part]]
    with torch.no_grad(), autocast(images.device):
        features = network.stem(images[part])
    return method.feature_saliency(network, features.float(), targets[part], statistics, generators)


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
                features = in_pieces(network.stem, images)
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
    maps: Maps,
    settings: config.Deletion,
    *,
    r: float,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """Figure 4: one row per (pair, repeat, fraction) with the target's ``probability``; ``maps`` are of one method."""
    fractions = np.linspace(0, 1, settings.points)
    fill = network.mean.to(device) if settings.fill == "mean" else torch.zeros(3, 1, 1, device=device)
    numbers = {"repeat": int, "fraction": float, "probability": float}
    frames = [pd.DataFrame(columns=["image_id", "class_name", *numbers]).astype(numbers)] * maps.pairs.empty
    with evaluating(network), torch.inference_mode(), autocast(device):
        batches = _batches(data, maps.pairs, batch_size, device, "deletion")
        for (rows, images, targets), of_methods in zip(batches, maps.batches(batch_size), strict=True):
            (saliency,) = of_methods.values()
            curves = deletion.deletion_curve(
                network,
                images,
                targets,
                saliency.to(device),
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
    return pd.concat(frames, ignore_index=True)
