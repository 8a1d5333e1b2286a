"""Files of one further metric: one Parquet file per variant and shard, with one row per (method, image, class)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.files import named
from ibsgl.reporting.columns import METADATA_KEY, PAIR
from ibsgl.seals import sealed

_SCHEMA = pa.schema(
    {
        "method": pa.string(),
        "image_id": pa.string(),
        "class_name": pa.string(),
        "target": pa.int64(),
        "value": pa.float64(),
    }
)
# What the metadata of a file has.
_FACTS = {"model", "replicate", "variant", "reasons", "settings", "seconds", "started", "data_digest", "class_names"}


def write_metric(out: str | Path, table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write what :func:`ibsgl.evaluation.further.measure_further` has returned, with ``facts`` in the schema.

    Args:
        out: the file.
        table: its rows.
        facts: ``model``, ``replicate``, ``variant``, the ``reasons`` of methods without values,
            ``settings``, ``started``, ``seconds``, ``data_digest``, ``class_names``, and others; with the network
            ``weights_digest``.
    """
    content = pa.Table.from_pandas(table[_SCHEMA.names], schema=_SCHEMA, preserve_index=False)
    with sealed(out) as temporary:
        pq.write_table(content.replace_schema_metadata({METADATA_KEY: json.dumps(facts)}), temporary)


def _check_agreement(facts: Mapping[Path, Mapping[str, Any]]) -> None:
    """``ValueError`` unless all files are of one network and data set, and those of a metric have one set of settings."""
    seen: dict[tuple[str, ...], tuple[Path, Any]] = {}
    for path, found in facts.items():
        settings = dict(found["settings"])
        # Each variant has methods of its own.
        methods = {key: settings.pop(key, None) for key in ("methods", "precisions")}
        metric = path.parent.name
        for key, value in (
            (("model",), found["model"]),
            (("data_digest",), found["data_digest"]),
            (("seed",), settings.get("seed")),
            (("settings", metric), settings),
            (("settings of the methods", metric, found["variant"]), methods),
        ):
            first, known = seen.setdefault(key, (path, value))
            if known != value:
                raise ValueError(
                    f"{first} and {path} differ in {key[0]}; give the files of one run, and measure again what is older"
                )


class MetricFiles(NamedTuple):
    """The values of the further metrics of one network.

    Attributes:
        values: one row per (metric, variant, replicate, method, pair): ``metric`` (the config's name), ``value``, NaN for none.
        reasons: by (metric, variant, method), why it has no values at all.
        facts: the metadata of each file, by its path.
    """

    values: pd.DataFrame
    reasons: dict[tuple[str, str, str], str]
    facts: dict[Path, dict[str, Any]]


def read_metrics(files: Iterable[str | Path]) -> MetricFiles:
    """The files …/<variant>/metrics/<metric>/<shard>.parquet of one network.

    Raises:
        ValueError: there are none, one is no such file, a row is doubled, or they are of different data, networks or
            settings. The message names a file.
    """
    frames: list[pd.DataFrame] = []
    reasons: dict[tuple[str, str, str], str] = {}
    facts: dict[Path, dict[str, Any]] = {}
    for path in sorted(map(Path, files), key=str):
        with named(path):
            table = pq.read_table(path)
            table.validate(full=True)
            found = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
            if table.schema.remove_metadata() != _SCHEMA or not isinstance(found, dict) or not found.keys() >= _FACTS:
                raise ValueError(f"{path} has no values of a further metric; delete it and run again")
        metric = path.parent.name
        names = {key: found[key] for key in ("variant", "replicate", "model")}
        frames.append(table.to_pandas().assign(metric=metric, **names))
        reasons |= {(metric, found["variant"], method): reason for method, reason in found["reasons"].items()}
        facts[path] = found
    if not frames:
        raise ValueError("there are no values of further metrics to read")
    _check_agreement(facts)
    values = pd.concat(frames, ignore_index=True)
    doubled = values.duplicated(["metric", "variant", "replicate", "method", *PAIR])
    if doubled.any():
        row = values[doubled].iloc[0]
        raise ValueError(f"there are several values of {row['metric']} for {row['image_id']}; give each file only once")
    # In one order, so that no sum depends on the shards.
    values = values.sort_values(["metric", "variant", "replicate", "method", *PAIR], ignore_index=True)
    return MetricFiles(values, reasons, facts)
