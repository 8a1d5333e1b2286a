"""What a run has measured on one network: every replicate, variant and test image.

Files are Parquet, in ``…/<model>/<replicate>/evaluation/<shard>``: scores, losses, predictions, curves and diagnostics. The
schema metadata of the scores has the key ``ibsgl``: JSON with the seed, the commit, and the digests of data and weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pandas.api.types import is_numeric_dtype, is_string_dtype

from ibsgl.files import named
from ibsgl.reporting.columns import METADATA_KEY, PAIR

# The files of a shard: what identifies a row, and the other columns that must be there.
_FILES = {
    "scores": (["variant", "scored_on", "method", "replicate", *PAIR], ["model", "arch", "label", "p_full", "p_kept"]),
    "losses": (["variant", "replicate", *PAIR], ["l_ce", "l_ss", "overlap"]),
    "predictions": (["variant", "replicate", "split", "image_id"], ["correct"]),
    "curves": (["variant", "replicate", *PAIR, "repeat", "fraction"], ["model", "probability"]),
    "diagnostics": (["replicate", *PAIR], ["nats", "r_other", "r_activation", "r_gradient", "region_share"]),
}
_TEXTS = {"variant", "scored_on", "method", "split", "model", "arch", "label", *PAIR}
# Which file a quantity is computed from. Every other quantity is a column of the scores.
_SOURCES = {
    **dict.fromkeys(("l_ce", "l_ss", "overlap"), "losses"),
    **dict.fromkeys(("accuracy", "map"), "predictions"),
    **dict.fromkeys(("deletion_area", "deletion_area_relative"), "curves"),
}
# The files of a run must agree on these facts.
_COMMON = ("data_digest", "seed", "class_names")


class Quantity(NamedTuple):
    """A number that was measured on every image.

    Attributes:
        metric: a metric's key, accuracy, map, l_ce, l_ss, overlap, deletion_area or deletion_area_relative.
        variant: the variant that the maps or the predictions are from.
        method: the saliency method, for metrics of maps.
        scored_on: the variant whose probabilities Average Drop and Average Increase use; ``None``: ``variant``.
    """

    metric: str
    variant: str
    method: str = "gradient"
    scored_on: str | None = None


@dataclass(frozen=True, eq=False)
class Measurements:
    """The measurements of one network, from all replicates and shards.

    Attributes:
        model: the network's name in the config.
        arch: its architecture.
        scores: one row per (variant, scored_on, method, replicate, test pair); metrics in [0,1].
        losses: one row per (variant, replicate, held-out pair): ``l_ce`` in nats, ``l_ss`` and ``overlap`` in [0,1].
        predictions: one row per (variant, replicate, image): ``split`` (test or further), ``correct``, ``logit_<k>``,
            ``label_<k>``.
        curves: one row per (variant, replicate, test pair, repeat, fraction): ``probability`` in [0,1].
        diagnostics: one row per (replicate, held-out pair), of the pretrained network: ``nats``, correlations,
            ``region_share``.
        metadata: the facts of the first file. ``settings`` by method are of all files, and so are ``passes``, the ways in which
            each method's passes were run. ``replicates`` has the facts of each replicate, by number.
    """

    model: str
    arch: str
    scores: pd.DataFrame
    losses: pd.DataFrame
    predictions: pd.DataFrame
    curves: pd.DataFrame
    diagnostics: pd.DataFrame
    metadata: dict[str, Any]

    @cached_property
    def variants(self) -> list[str]:
        """The variants that were measured, in the order of the files."""
        frames = (self.scores, self.predictions, self.losses, self.curves)
        return list(dict.fromkeys(variant for frame in frames for variant in frame["variant"].unique()))

    def methods(self, variant: str) -> list[str]:
        """The saliency methods that were run on ``variant`` in at least one replicate."""
        rows = self.scores[(self.scores["variant"] == variant) & (self.scores["scored_on"] == variant)]
        return list(rows["method"].unique())

    def label(self, method: str) -> str:
        """The name of ``method`` in tables."""
        labels = self.scores.loc[self.scores["method"] == method, "label"]
        return str(labels.iloc[0]) if len(labels) else method

    def missing(self, quantity: Quantity) -> str:
        """Why :meth:`values` has nothing to return for ``quantity``; an empty text if it has."""
        if len(self._found(quantity)):
            return ""
        if quantity.variant not in self.variants:
            return f"no variant {quantity.variant} in this run"
        if quantity.metric not in _SOURCES and quantity.metric not in self.scores:
            return f"no metric {quantity.metric} in this run"
        if quantity.metric in _SOURCES:
            return f"{quantity.metric} was not measured on {quantity.variant}"
        where = "" if quantity.scored_on in (None, quantity.variant) else f" and scored on {quantity.scored_on}"
        return f"{self.label(quantity.method)} was not run on {quantity.variant}{where}"

    def values(self, quantity: Quantity, average: Literal["pairs", "classes"] = "pairs") -> pd.DataFrame:
        """One value per image and replicate. The mean over images is the value that is reported.

        Metrics of maps, accuracy, mAP and deletion areas are in percent, ``l_ce`` is in nats, ``l_ss`` and ``overlap`` are
        fractions. Accuracy and mAP are of test and further images together. The values of mAP are jackknife pseudo-values,
        shifted so that their mean is the mAP itself. ``deletion_area_relative`` is the area under the mean curve divided by the
        mean probability at its start; an image's value is its linear part in that ratio. A start of zero gives 100 %.

        Args:
            quantity: what was measured.
            average: ``pairs``, the mean over (image, class) pairs; ``classes``, the mean over the classes' means. Quantities
                that are measured once per image do not depend on it.

        Returns:
            index ``image_id``, sorted; one column per replicate in which the quantity was measured.

        Raises:
            ValueError: it was not measured, or a value is NaN or infinite.
        """
        if (quantity, average) in self._values:
            return self._values[quantity, average]
        rows = self._rows(quantity)
        if not len(rows):
            raise ValueError(f"{self.model}: {self.missing(quantity)}")
        if quantity.metric == "accuracy":
            wide = 100 * rows.pivot(index="image_id", columns="replicate", values="correct").astype(np.float64)
        elif quantity.metric == "map":
            parts = {number: _map_values(frame) for number, frame in rows.groupby("replicate", sort=True)}
            wide = pd.DataFrame(parts).sort_index()
        elif _SOURCES.get(quantity.metric) == "curves":
            wide = self._areas(rows, average, relative=quantity.metric == "deletion_area_relative")
        else:
            scale = 1 if quantity.metric in _SOURCES else 100
            wide = scale * image_values(rows, quantity.metric, average)
        if not np.isfinite(wide.to_numpy(dtype=np.float64)).all():
            raise ValueError(
                f"{self.model}/{quantity.variant}/{quantity.method}: {quantity.metric} has values that are NaN or infinite"
            )
        self._values[quantity, average] = wide.rename_axis(columns="replicate")
        return self._values[quantity, average]

    def _rows(self, quantity: Quantity) -> pd.DataFrame:
        frame: pd.DataFrame = getattr(self, _SOURCES.get(quantity.metric, "scores"))
        return frame.iloc[self._found(quantity)]

    def _found(self, quantity: Quantity) -> Sequence[int] | np.ndarray:
        """The places of the rows of ``quantity`` in its file."""
        source = _SOURCES.get(quantity.metric, "scores")
        frame: pd.DataFrame = getattr(self, source)
        key: tuple[str, ...] = (quantity.variant,)
        if source == "scores":
            key = (quantity.variant, quantity.scored_on or quantity.variant, quantity.method)
            if quantity.metric not in frame:
                return []
        if source not in self._places:
            # A search through all rows for each quantity would take minutes.
            group = ["variant", "scored_on", "method"][: len(key)]
            places = frame.groupby(group, sort=False).indices
            self._places[source] = {name if isinstance(name, tuple) else (name,): rows for name, rows in places.items()}
        return self._places[source].get(key, [])

    @cached_property
    def _places(self) -> dict[str, dict[tuple[str, ...], np.ndarray]]:
        """By file and group, the places of its rows."""
        return {}

    @cached_property
    def _values(self) -> dict[tuple[Quantity, str], pd.DataFrame]:
        """What :meth:`values` has returned: many differences have a value in common."""
        return {}

    @staticmethod
    def _areas(rows: pd.DataFrame, average: Literal["pairs", "classes"], *, relative: bool) -> pd.DataFrame:
        index = ["replicate", *PAIR]
        curves = rows.pivot_table(index=index, columns="fraction", values="probability", aggfunc="mean").sort_index(
            axis=1
        )
        fractions = curves.columns.to_numpy(dtype=np.float64)
        area = np.trapezoid(curves.to_numpy(), fractions, axis=1)
        measured = pd.DataFrame({"area": area, "start": curves.iloc[:, 0].to_numpy()}, index=curves.index).reset_index()
        areas = image_values(measured, "area", average)
        if not relative:
            return 100 * areas
        starts = image_values(measured, "start", average)
        mean_start = starts.mean()
        ratio = (areas.mean() / mean_start.where(mean_start > 0)).fillna(1.0)
        return 100 * (ratio + (areas - starts * ratio) / mean_start.where(mean_start > 0, 1.0))


def read_measurements(folders: Iterable[str | Path]) -> Measurements:
    """The measurements of one network.

    Args:
        folders: ``…/<model>/<replicate>/evaluation/<shard>``, of all replicates and shards.

    Raises:
        ValueError: a file lacks its metadata or a column; files are of several networks or disagree on data, seed, classes or
            weights; a row is doubled; or two groups were not measured on the same images. The message names files and
            values.
    """
    places = sorted(map(Path, folders), key=str)
    if not places:
        raise ValueError("there are no measurements to read")
    frames = {
        name: pd.concat(
            [read_table(place, name).assign(file=str(place / f"{name}.parquet")) for place in places], ignore_index=True
        )
        for name in _FILES
    }
    metadata = {str(place / "scores.parquet"): _metadata(place / "scores.parquet") for place in places}
    models = sorted(frames["scores"]["model"].unique())
    if len(models) != 1:
        raise ValueError(f"give the measurements of one model, not of {len(models)}: {', '.join(models) or 'none'}")
    for key in _COMMON:
        _check_agreement(key, [(path, facts.get(key)) for path, facts in metadata.items()])
    # The shards of one replicate have the same networks, those of different replicates do not.
    by_replicate: dict[str, list[tuple[str, object]]] = {}
    for place in places:
        path = str(place / "scores.parquet")
        by_replicate.setdefault(place.parents[1].name, []).append((path, metadata[path].get("weights_digest")))
    for number, digests in by_replicate.items():
        _check_agreement(f"weights_digest in replicate {number}", digests)
    for name, (identity, _) in _FILES.items():
        check_rows(frames[name], identity, f"{models[0]}: {name}")
        # In one order, so that no sum depends on the shards.
        rows = frames[name].drop(columns="file")
        frames[name] = rows.sort_values(["replicate", *PAIR[:1]], kind="stable", ignore_index=True)
    facts = dict(next(iter(metadata.values())))
    facts["settings"] = {
        method: chosen for other in reversed(metadata.values()) for method, chosen in other.get("settings", {}).items()
    }
    facts["passes"] = _passes_of(metadata.values())
    # Weights and times differ between replicates.
    facts["replicates"] = {
        int(number): dict(metadata[digests[0][0]]) | {"seconds": sum(metadata[path]["seconds"] for path, _ in digests)}
        for number, digests in by_replicate.items()
    }
    arch = ", ".join(sorted(frames["scores"]["arch"].unique()))
    return Measurements(model=models[0], arch=arch, metadata=facts, **frames)


def _passes_of(metadata: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By method, how the passes of stored maps were run: several ways, for example, if compiling failed in one job."""
    found: dict[str, list[dict[str, Any]]] = {}
    for facts in metadata:
        for place, chosen in facts.get("settings", {}).items():
            ways = found.setdefault(place.rpartition("/")[2], [])
            if "passes" in chosen and chosen["passes"] not in ways:
                ways.append(chosen["passes"])
    return {method: ways for method, ways in found.items() if ways}


def check_rows(frame: pd.DataFrame, identity: Sequence[str], name: str) -> None:
    """Check that no row is doubled and that all groups have the same images, or the same (image, class) pairs.

    Args:
        frame: rows, with the columns ``identity``, and ``file`` if messages are to name the files.
        identity: the columns that identify a row.
        name: of the rows, for messages.

    Raises:
        ValueError: a row is missing or doubled. The message names two groups, their files and the row.
    """
    doubled = frame.duplicated(list(identity))
    if doubled.any():
        row = frame[doubled].iloc[0]
        file = f" ({row['file']})" if "file" in frame else ""
        what = ", ".join(f"{column} {row[column]}" for column in identity)
        raise ValueError(f"{name} has several rows for {what}{file}; give each folder only once")
    group = [column for column in ("variant", "scored_on", "method", "replicate") if column in identity]
    place = [column for column in identity if column not in group]
    reference = None
    for key, rows in frame.groupby(group, sort=False):
        files = f" ({', '.join(map(str, rows['file'].unique()))})" if "file" in rows else ""
        title = f"{name} of {'/'.join(map(str, key))}{files}"
        found = pd.MultiIndex.from_frame(rows[place])
        if reference is None:
            reference = title, found
        if len(found) == len(reference[1]) and found.equals(reference[1]):
            continue
        different = found.symmetric_difference(reference[1])
        if len(different):
            raise ValueError(
                f"{title} and {reference[0]} were not measured on the same rows: {len(different)} are in one only, such as "
                f"{different[0]}; measure again what is incomplete"
            )


def read_table(place: Path, name: str) -> pd.DataFrame:
    """One file of an evaluation: ``scores``, ``losses``, ``predictions``, ``curves`` or ``diagnostics``.

    Args:
        place: the folder of one shard.
        name: of the file, without its suffix.

    Raises:
        ValueError: the file cannot be read, or a column is missing or has values of another kind.
    """
    path = place / f"{name}.parquet"
    with named(path):
        table = pq.read_table(path)
        # Text that is no UTF-8 would be found much later.
        table.validate(full=True)
        frame = table.to_pandas()
        columns = [column for part in _FILES[name] for column in part]
        if absent := [column for column in columns if column not in frame]:
            raise ValueError(f"{path} lacks the columns {', '.join(absent)}; delete the folder and measure again")
        for column in columns:
            values = frame[column]
            identifies = column in _FILES[name][0]
            right = is_string_dtype(values) if column in _TEXTS else is_numeric_dtype(values)
            if not right or (identifies and values.isna().any()):
                kind = "text" if column in _TEXTS else "numbers"
                raise ValueError(f"{path}: its column {column} is not of {kind}; delete the folder and measure again")
    return frame


def _metadata(path: Path) -> dict[str, Any]:
    with named(path):
        content = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
        facts = json.loads(content) if content is not None else None
        if not isinstance(facts, dict) or not isinstance(facts.get("settings", {}), dict):
            raise ValueError(
                f"{path} has no 'ibsgl' record in its metadata; give a file that the evaluation has written"
            )
        return facts | {"seconds": float(facts.get("seconds", 0.0))}


def _check_agreement(key: str, values: Sequence[tuple[str, object]]) -> None:
    """Raise unless all files give ``key`` one value. The message names one file for each value."""
    first: dict[str, str] = {}
    for path, value in values:
        first.setdefault(json.dumps(value, sort_keys=True), path)
    if len(first) > 1:
        found = "; ".join(f"{path} has {value}" for value, path in first.items())
        raise ValueError(f"the files disagree on {key}: {found}; measure again what is out of date")


def image_values(rows: pd.DataFrame, column: str, average: Literal["pairs", "classes"]) -> pd.DataFrame:
    """Pairs' values → images × replicates, such that the mean over images is that over pairs or over the classes' means.

    An image's value is its linear part in the mean: m + I·Σ w·(v − m), over its pairs with the weights w. So a constant has
    no variance, however many pairs an image has.
    """
    if average not in ("pairs", "classes"):
        raise ValueError(f"average must be 'pairs' or 'classes', not {average!r}")
    wide = rows.pivot(index=PAIR, columns="replicate", values=column).astype(np.float64)
    images = wide.index.get_level_values("image_id")
    # Groups with a mean of their own: the classes, or all pairs together.
    names = wide.index.get_level_values("class_name").to_numpy()
    groups = names if average == "classes" else np.zeros(len(wide), dtype=np.int64)
    means = wide.groupby(groups).transform("mean")
    sizes = pd.Series(groups).groupby(groups).transform("size").to_numpy()
    count = len(np.unique(groups))
    parts = (wide - means).div(sizes * count, axis=0)
    sums = parts.groupby(images, sort=True).sum() * images.nunique()
    # A sum leaves NaN out.
    undefined = wide.isna().groupby(images, sort=True).any()
    return (sums + wide.groupby(groups).mean().mean()).mask(undefined)


def _map_values(predictions: pd.DataFrame) -> pd.Series:
    """Jackknife pseudo-values of mAP in percent, shifted so that their mean is the mAP."""
    classes = sum(column.startswith("logit_") for column in predictions)
    whole, left_out = [], []
    for k in range(classes):
        value, without = _average_precision(
            predictions[f"logit_{k}"].to_numpy(dtype=np.float64), predictions[f"label_{k}"].to_numpy(dtype=np.float64)
        )
        if not np.isnan(value):
            whole.append(value)
            left_out.append(without)
    images = pd.Index(predictions["image_id"], name="image_id")
    if not whole:
        return pd.Series(np.nan, index=images)
    mean = float(np.mean(whole))
    if len(images) == 1:
        return pd.Series(100 * mean, index=images)
    # Without its only image a class is left out of the mean. If that was the last class, the mean stays as it was.
    parts = np.array(left_out)
    known = ~np.isnan(parts)
    without_image = np.where(known.any(0), np.where(known, parts, 0).sum(0) / np.maximum(known.sum(0), 1), mean)
    pseudo = -(len(images) - 1) * without_image
    return pd.Series(100 * (mean + pseudo - pseudo.mean()), index=images)


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision of one class (:func:`ibsgl.metrics.classification.average_precision`), and without each image (N,)."""
    positives = labels.sum()
    if not positives:
        return float("nan"), np.full(len(scores), np.nan)
    # Images with the same score are one step of the curve.
    _, step = np.unique(-scores, return_inverse=True)
    in_step, hits_in_step = np.bincount(step).astype(np.float64), np.bincount(step, weights=labels)
    rank, hits = in_step.cumsum(), hits_in_step.cumsum()
    gain = hits_in_step * hits / rank

    def from_here(values: np.ndarray) -> np.ndarray:
        return values[::-1].cumsum()[::-1]

    above = gain.cumsum() - gain
    # Without an image, each step from its own on has one image fewer: one miss, or one hit.
    fewer = np.maximum(rank - 1, 1)
    without_miss = above + from_here(hits_in_step * hits / fewer)
    without_hit = above + from_here(hits_in_step * (hits - 1) / fewer) - (hits - 1) / fewer
    # A class whose only image is left out has no average precision.
    others = positives - 1 if positives > 1 else np.nan
    left_out = np.where(labels > 0, without_hit[step] / others, without_miss[step] / positives)
    return float(gain.sum() / positives), left_out
