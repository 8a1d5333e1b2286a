"""Score files: one Parquet file per variant, with one row per (method, image, class).

The schema metadata has the key ``ibsgl``: JSON with the seed, the commit, and the digests of data and weights.
Values are fractions in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.files import written
from ibsgl.reporting.columns import GROUP, IDENTITY, METADATA_KEY, PAIR, PROBABILITIES
from ibsgl.reporting.score_files import with_metadata


@dataclass(frozen=True, eq=False)
class CombinedScores:
    """The scores of all shards of one variant.

    Attributes:
        table: the rows, with the metadata that :func:`read_scores` needs.
        model: the network's name in the config.
        variant: pretrained, control or guided.
        tags: facts about code, data, weights and machine.
        settings: by method, the settings of the steps that made and scored its maps.
        means: by method, the mean of every metric and of ``p_full`` and ``p_kept`` over the pairs.
        started: when the first shard began, in seconds since 1970.
        seconds: how long all shards took together.
    """

    table: pa.Table
    model: str
    variant: str
    tags: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    means: dict[str, dict[str, float]]
    started: float
    seconds: float

    def write(self, path: str | Path) -> None:
        """Write the table as the Parquet file ``path``."""
        with written(path) as temporary:
            pq.write_table(self.table, temporary)


def combine_scores(files: Iterable[str | Path]) -> CombinedScores:
    """Put the score files of one variant's shards together, in the order of ``files``.

    Raises:
        ValueError: there are no files, or one was not written by :func:`write_scores`.
    """
    # The columns of the metrics are found by their type, because an import of METRICS would load torch.
    parts = {str(file): pq.read_table(file) for file in files}
    if not parts:
        raise ValueError("there are no score files to combine")
    first, *others = (_metadata(part, path) for path, part in parts.items())
    settings, started, seconds = (first.pop(key) for key in ("settings", "started", "seconds"))
    # A shard without images has columns without a type.
    rows = pa.concat_tables(
        [part.replace_schema_metadata(None) for part in parts.values()], promote_options="permissive"
    )
    measured = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    averaged = rows.group_by("method", use_threads=False).aggregate([(column, "mean") for column in measured])
    model, variant = (rows[column][0].as_py() for column in ("model", "variant"))
    return CombinedScores(
        table=with_metadata(rows, first),
        model=model,
        variant=variant,
        tags={key: value for key, value in first.items() if key != "seed"},
        settings=settings,
        means={row["method"]: {column: row[f"{column}_mean"] for column in measured} for row in averaged.to_pylist()},
        started=started,
        seconds=seconds + sum(other["seconds"] for other in others),
    )


def read_scores(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Score files as one frame, sorted by model, variant, method, image and class, with a column ``file``.

    Args:
        paths: Parquet files with the columns :data:`IDENTITY`, every metric and :data:`PROBABILITIES`, one row per (variant,
            method, image, class). Their metadata has at least ``data_digest``, ``seed``, ``class_names`` and
            ``weights_digest``.

    Returns:
        The frame. ``attrs["metadata"]`` maps each file to its metadata.

    Raises:
        ValueError: a file lacks its metadata or a column; files disagree on data, seed or classes; one variant was
            scored with different weights; or two groups were not scored on the same (image, class) pairs. The message
            names files and values.
    """
    # Imported here, because it loads torch, which the other functions do not need.
    from ibsgl.metrics import METRICS

    frames, metadata = [], {}
    for path in sorted(str(path) for path in paths):
        table = pq.read_table(path)
        metadata[path] = _metadata(table, path)
        absent = [column for column in (*IDENTITY, *METRICS, *PROBABILITIES) if column not in table.column_names]
        if absent:
            raise ValueError(f"{path} lacks the columns {', '.join(absent)}; delete the file and score again")
        frames.append(table.to_pandas().assign(file=path))
    if not frames:
        raise ValueError("there are no score files for a table")
    for key in ("data_digest", "seed", "class_names"):
        _check_agreement(key, [(path, facts.get(key)) for path, facts in metadata.items()])
    scores = pd.concat(frames, ignore_index=True)
    for (model, variant), rows in scores.groupby(["model", "variant"], sort=True):
        values = [(path, metadata[path].get("weights_digest")) for path in rows["file"].unique()]
        _check_agreement(f"weights_digest of {model}'s {variant} variant", values)
    check_pairs(scores)
    scores = scores.sort_values([*GROUP, *PAIR], kind="stable", ignore_index=True)
    scores.attrs["metadata"] = metadata
    return scores


def check_pairs(scores: pd.DataFrame) -> None:
    """Check that all groups (model, variant, method) have the same (image, class) pairs, each exactly once.

    Raises:
        ValueError: a pair is missing or doubled. The message names two groups, their files and the pair.
    """
    reference = None
    for group, rows in scores.groupby(GROUP, sort=True):
        files = f" ({', '.join(rows['file'].unique())})" if "file" in rows else ""
        name = f"{'/'.join(group)}{files}"
        pairs = pd.MultiIndex.from_frame(rows[PAIR])
        if pairs.has_duplicates:
            raise ValueError(f"{name} has several rows for {pairs[pairs.duplicated()][0]}; give each file only once")
        if reference is None:
            reference = name, pairs
        different = pairs.symmetric_difference(reference[1])
        if len(different):
            raise ValueError(
                f"{name} and {reference[0]} were not scored on the same (image, class) pairs: {len(different)} are in "
                f"one only, such as {different[0]}; score again what is incomplete"
            )


def _metadata(table: pa.Table, path: str) -> dict[str, Any]:
    content = (table.schema.metadata or {}).get(METADATA_KEY)
    if content is None:
        raise ValueError(f"{path} has no 'ibsgl' record in its metadata; give a file that the scoring step has written")
    return json.loads(content)


def _check_agreement(key: str, values: list[tuple[str, object]]) -> None:
    """Raise unless all files give ``key`` one value. The message names one file for each value."""
    first: dict[str, str] = {}
    for path, value in values:
        first.setdefault(json.dumps(value, sort_keys=True), path)
    if len(first) > 1:
        found = "; ".join(f"{path} has {value}" for value, path in first.items())
        raise ValueError(f"the score files disagree on {key}: {found}; score again what is out of date")
